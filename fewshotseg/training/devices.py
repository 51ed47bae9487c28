"""Data parallelism, on the devices of one process or of several. The only file that says pmap.

A step is written once, per device, with collectives over an axis name. Its state is replicated and
carries no device axis (`in_axes=None`, `out_axes=None`); only drawn batches do. So a checkpoint does
not know how many devices wrote it, and nothing outside this file knows how many there are.

Several processes (a TPU pod, a cluster of GPU machines) all run the same program on the same data and
see the same files; collectives span all devices. Process 0 alone writes.
"""

import inspect
import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from fewshotseg import errors

AXIS_NAME = "devices"
AUTO = "auto"
SHUTDOWN_TIMEOUT = 24 * 3600  # seconds that the others wait while process 0 evaluates and reports


def start(coordinator: str | None, num_processes: int, process_id: int) -> None:
    """Joins a run of several processes; before anything else that touches JAX.

    Args:
      coordinator: 'HOST:PORT' of process 0, reachable from all; or 'auto': JAX asks Slurm, Kubernetes,
        Open MPI or the Cloud TPU for all three.
      num_processes: of the run.
      process_id: 0 to num_processes - 1, a different one for each.

    Raises:
      InputError: the arguments do not fit together, or the others cannot be reached.
    """
    if coordinator == AUTO:
        _start_as_scheduled()
        return
    valid = re.fullmatch(r"\S+:(\d{1,5})", coordinator or "")
    if not valid or not 0 < int(valid[1]) < 2**16 or not 0 <= process_id < num_processes:
        raise errors.InputError(
            f"--coordinator={coordinator or ''} --num_processes={num_processes} "
            f"--process_id={process_id}: give HOST:PORT of process 0, the number of processes, and "
            f"for each of them another id below it; or --coordinator={AUTO}."
        )
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, **_patience())
    except (RuntimeError, ValueError) as error:
        raise errors.InputError(
            f"process {process_id} could not join the others at {coordinator} "
            f"({str(error).splitlines()[0]}): start all {num_processes} processes with the same "
            "--coordinator and --num_processes."
        ) from error


def _start_as_scheduled():
    try:
        jax.distributed.initialize(**_patience())
    except (RuntimeError, ValueError, ImportError, KeyError) as error:
        raise errors.InputError(
            f"--coordinator={AUTO} found no job of Slurm, Kubernetes, Open MPI or a Cloud TPU "
            f"({str(error).splitlines()[0]}): give --coordinator=HOST:PORT, --num_processes and "
            "--process_id."
        ) from error


def _patience():
    """JAX before 0.8 cannot be told how long to wait at the end; there, the others give up sooner."""
    known = inspect.signature(jax.distributed.initialize).parameters
    name = "shutdown_timeout_seconds"
    return {name: SHUTDOWN_TIMEOUT} if name in known else {}


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def process_count() -> int:
    """How many processes train together."""
    return jax.process_count()


def compile_step(
    function: Callable, batched_args: Sequence[int] = (), batched_results: Sequence[int] = ()
) -> Callable:
    """Compiles `function(*args)` for all local devices.

    Args:
      function: per-device function that averages what it returns over `AXIS_NAME`.
      batched_args: positions of arguments with a leading device axis; all others are replicated.
      batched_results: positions, in the tuple that `function` returns, of results that differ per
        device and get a leading device axis.

    Returns:
      The compiled function; its other results are replicated and have no device axis.
    """
    return _Pmapped(function, tuple(batched_args), tuple(batched_results))


def compile_draw(function: Callable) -> Callable:
    """Compiles a function whose results differ per device: they get a leading device axis."""
    return _Pmapped(function, (), None)


class _Pmapped:
    """pmap needs one argument with a device axis; the device index serves where there is none."""

    def __init__(self, function, batched_args, batched_results):
        self._function = function
        self._batched_args = batched_args
        self._out_axes = 0 if batched_results is None else None
        if batched_results:
            number = max(batched_results) + 1
            self._out_axes = tuple(0 if i in batched_results else None for i in range(number))
        self._compiled = None
        self._indices = None
        self._replicated = None

    def __call__(self, *args):
        if self._compiled is None:
            axes = [0 if i in self._batched_args else None for i in range(len(args))]
            self._compiled = jax.pmap(
                lambda _, *args: self._function(*args),
                axis_name=AXIS_NAME,
                in_axes=(0, *axes),
                out_axes=self._out_axes,
            )
            self._indices = jnp.arange(jax.local_device_count())
            self._replicated = _sharding_of_results(self._indices)
        return self._compiled(self._indices, *map(self._place, range(len(args)), args))

    def _place(self, position, arg):
        """Replicated arguments lie as results do: a state that comes from elsewhere compiles no more."""
        if self._replicated is None or position in self._batched_args:
            return arg

        def place(x):  # asked first: putting what lies there already costs as much as putting
            there = isinstance(x, jax.Array) and x.sharding == self._replicated
            return x if there else jax.device_put(x, self._replicated)

        return jax.tree.map(place, arg)


def _sharding_of_results(indices):
    """That of a replicated result; None where arguments need no such care (several processes, old JAX)."""
    if jax.process_count() > 1:
        return None
    probe = jax.pmap(lambda _, x: x, axis_name=AXIS_NAME, in_axes=(0, None), out_axes=None)
    sharding = probe(indices, jnp.float32(0.0)).sharding
    return sharding if isinstance(sharding, jax.sharding.NamedSharding) else None


def check_batch_size(field: str, batch_size: int, sources: int = 1) -> None:
    """Raises `InputError` if `batch_size` cannot be split evenly over all devices and sources of pairs."""
    devices = jax.device_count()
    if batch_size % (devices * sources):
        shares = [f"{devices} devices"] if devices > 1 or sources == 1 else []
        shares += [f"{sources} sources of synthetic pairs"] if sources > 1 else []
        raise errors.InputError(
            f"{field}={batch_size} cannot be split evenly over {' and '.join(shares)}: "
            f"use a multiple of {devices * sources}."
        )
