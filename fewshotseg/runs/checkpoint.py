"""Checkpoints: atomic, with the model that predicts inside, restored bit for bit.

One checkpoint holds three items: `state` (everything training needs), `model` (the weights
that predict) and `progress` (numbers beside the state). Orbax writes to a
temporary name and renames, so a killed run leaves either the old or the new checkpoint, never half
of one. Arrays are stored without their placement: any number of devices can restore them.
"""

import contextlib
import errno
import os
import pathlib
import shutil
import threading
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from fewshotseg import errors

DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG)
FREE_COPIES = 4  # two kept, one being written, one to spare


class Checkpoints:
    """The checkpoints of one stage of a run.

    Args:
      directory: created if it is missing.
      keep: how many to keep.

    Raises:
      InputError: the directory cannot be written.
    """

    def __init__(self, directory: pathlib.Path, keep: int = 2):
        self._directory = pathlib.Path(directory).absolute()
        index = jax.process_index()
        self._writes = index == 0
        if self._writes:
            check_writable(self._directory)
        # Every process reads for itself; none waits for another here.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process_{index}"
        )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep if self._writes else None,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=self._writes,
            create=False,
            read_only=not self._writes,
            multiprocessing_options=alone
            if jax.process_count() > 1
            else ocp.options.MultiprocessingOptions(),
        )
        self._manager = None
        if self._directory.is_dir():
            self._manager = ocp.CheckpointManager(self._directory, options=options)

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step() if self._manager else None

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, model: Any, progress: dict) -> None:
        """Writes a checkpoint (process 0 does), or keeps the last one and says so.

        Args:
          step: number of steps done.
          state: pytree of arrays.
          model: pytree of arrays, the model to predict with.
          progress: JSON values.

        Raises:
          InputError: the disk is full or not writable.
        """
        if not self._writes or step == self._manager.latest_step():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(jax.device_get(state)),
            model=ocp.args.StandardSave(jax.device_get(model)),
            progress=ocp.args.JsonSave(progress),
        )
        try:
            with _silent_threads():
                self._manager.save(step, args=items)
        except Exception as error:  # Orbax passes on what the file system or TensorStore raises
            if not disk_fault(error):
                raise
            last = self._manager.latest_step()
            kept = f"The checkpoint of step {last} is kept" if last else "There is none yet"
            raise errors.InputError(
                f"the checkpoint of step {step} could not be written to {self._directory} "
                f"({disk_fault(error)}). {kept}: free some space and run the same command again."
            ) from error

    def restore(self, state: Any, step: int | None = None) -> tuple[Any, Any, dict]:
        """A checkpoint as `(state, model, progress)`.

        Args:
          state: a pytree of the structure, shapes and types to restore.
          step: which of `steps()`; None for the newest.

        Raises:
          InputError: there is a checkpoint, but of other shapes: the configuration has changed.
        """
        step = self._manager.latest_step() if step is None else step
        abstract = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), state)
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract),
            model=ocp.args.StandardRestore(),
            progress=ocp.args.JsonRestore(),
        )
        try:
            restored = self._manager.restore(step, args=items)
        except (ValueError, KeyError, TypeError) as error:
            raise errors.InputError(
                f"the checkpoint in {self._directory} does not fit this configuration: use another "
                f"--workdir, or delete it ({str(error).splitlines()[0]})."
            ) from error
        return restored.state, restored.model, restored.progress

    def close(self) -> None:
        if self._manager:
            self._manager.close()


def has_checkpoint(directory: pathlib.Path) -> bool:
    """Whether there is a complete one."""
    return directory.is_dir() and bool(ocp.utils.checkpoint_steps(directory.absolute()))


def load_model(directory: pathlib.Path) -> tuple[Any, dict]:
    """Weights to predict with, and the progress beside them, from a stage's checkpoints.

    Raises:
      InputError: there is no checkpoint.
    """
    directory = pathlib.Path(directory).absolute()
    if not directory.is_dir():
        raise errors.InputError(f"there are no checkpoints in {directory}: train first.")
    with ocp.CheckpointManager(
        directory, options=ocp.CheckpointManagerOptions(read_only=True)
    ) as manager:
        step = manager.latest_step()
        if step is None:
            raise errors.InputError(f"there is no complete checkpoint in {directory}: train first.")
        items = ocp.args.Composite(
            model=ocp.args.StandardRestore(), progress=ocp.args.JsonRestore()
        )
        restored = manager.restore(step, args=items)
    return restored.model, restored.progress


def check_writable(directory: pathlib.Path) -> None:
    """Creates `directory` and writes a file there.

    Raises:
      InputError: that did not work.
    """
    probe = directory / ".writable"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise errors.InputError(
            f"{directory} cannot be written ({error.strerror}): choose another --workdir."
        ) from error


def check_free_space(directory: pathlib.Path, state: Any) -> None:
    """Compares the free space with what the checkpoints of `state` will need.

    Raises:
      InputError: the disk is too full.
    """
    needed = FREE_COPIES * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise errors.InputError(
            f"{directory} has {free / 2**20:.0f} MiB free, but checkpoints need "
            f"{needed / 2**20:.0f} MiB: free some space or choose another --workdir."
        )


def disk_fault(error: BaseException) -> str | None:
    """What is wrong with the disk if that is what `error` is about, else None."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in DISK_FAULTS else None
    found = [os.strerror(code) for code in DISK_FAULTS if os.strerror(code) in str(error)]
    return found[0] if found else None


@contextlib.contextmanager
def _silent_threads():
    """Orbax raises here what went wrong in its threads; they need not print a traceback as well."""
    before, threading.excepthook = threading.excepthook, lambda args: None
    try:
        yield
    finally:
        threading.excepthook = before
