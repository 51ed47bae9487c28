"""The estimators of the hypergradient side by side, on one's own data: which to choose, and at what price.

For every number K of inner steps, all estimators start from the same state with the same batches. The
exact one (`mixed_mode`) is the reference.
"""

import csv
import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fewshotseg import files
from fewshotseg.data import cases, split_files
from fewshotseg.results.report import plots as report_plots
from fewshotseg.runs import checkpoint
from fewshotseg.runs import folder as run_files
from fewshotseg.runs import log as summaries
from fewshotseg.training import build as experiment
from fewshotseg.training import config_check, train
from fewshotseg.training import estimators as estimator_factory

REFERENCE = "mixed_mode"
COLUMNS = (
    "estimator",
    "K",
    "cosine",
    "norm",
    "milliseconds",
    "megabytes",
    "compile_seconds",
    "loss",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One estimator at one K.

    Attributes:
      estimator: name.
      K: number of inner steps.
      cosine: of the angle to the exact hypergradient of the same K steps.
      norm: over that of the exact one.
      milliseconds: one estimate, median of the repeats, compilation not counted.
      megabytes: peak of what it holds on the device beyond theta, state and batches (MiB).
      compile_seconds: of all its programs, 0 where the compilation cache had them.
      loss: outer loss after the K steps.
    """

    estimator: str
    K: int
    cosine: float
    norm: float
    milliseconds: float
    megabytes: float
    compile_seconds: float
    loss: float


class Meter:
    """Compiles for one device, and measures compile time and the memory in use at every call.

    Peak memory is the largest sum, over calls, of all live arrays and what XLA says the program needs
    for its results and temporaries: exact, without sampling, on every backend.
    """

    def __init__(self):
        self.compile_seconds = 0.0
        self.peak = 0
        self.metering = False

    def compile(
        self, function: Callable, batched_args: Sequence[int] = (), batched_results: Sequence = ()
    ) -> Callable:
        """The `compile=` of an estimator."""
        del batched_args, batched_results
        jitted, programs = jax.jit(function), {}

        def call(*args):
            args = jax.tree.map(jnp.asarray, args)
            key = jax.tree.structure(args), *((x.shape, x.dtype) for x in jax.tree.leaves(args))
            if key not in programs:
                started = time.perf_counter()
                programs[key] = jitted.lower(*args).compile()
                self.compile_seconds += time.perf_counter() - started
            if self.metering:
                needs = programs[key].memory_analysis()
                extra = needs.temp_size_in_bytes + needs.output_size_in_bytes
                self.peak = max(self.peak, live_bytes() + extra)
            return programs[key](*args)

        return call


def live_bytes() -> int:
    """Bytes of all arrays on the device."""
    return sum(x.nbytes for x in jax.live_arrays())


def compare_estimators(config, workdir: str | pathlib.Path) -> list[Row]:
    """Compares the estimators at the state of a run, and writes a table and a plot beside it.

    The state is the earliest checkpoint that is kept of method end2end (at the last step the learning
    rate is 0, and so is the hypergradient); without one, that after pre-training, which is done if
    need be.

    Args:
      config: as `configs/default.py` describes it; `config.diagnose` says what to compare.
      workdir: of the run; `hypergradient/` in it gets estimators.csv and estimators.png.

    Raises:
      InputError: see `train.train_and_evaluate`.
    """
    config_check.check_config(config)
    workdir = pathlib.Path(workdir)
    checkpoint.check_writable(workdir / "hypergradient")
    run_files.write(config, workdir)
    data = cases.create_data(config)
    split_files.write_split(workdir / "splits.json", data.split, {})
    state = _state(config, data, workdir)
    most = max(config.diagnose.inner_steps)
    draw, draw_outer = experiment.create_draws(
        config, data.num_classes, config.train.batch_size, axis_name=None, compile=jax.jit
    )
    arrays, unseen = (jax.tree.map(jnp.asarray, dict(x)) for x in (data.train, data.validation))
    step = int(state.step)
    keys = jnp.stack([experiment.step_key(config, "train", step + k) for k in range(most)])
    batches, outer_batch = draw(arrays, keys), draw_outer(unseen, keys[0])
    del arrays, unseen
    rows = []
    total = len(config.diagnose.estimators) * len(config.diagnose.inner_steps)
    bar = summaries.progress_bar("estimators", total, 0, unit="estimate")
    for num_steps in config.diagnose.inner_steps:
        first = jax.tree.map(lambda x, n=num_steps: x[:n], (batches, keys))
        problem = state.theta, state.inner, first[0], outer_batch, first[1]
        exact = None
        names = sorted(config.diagnose.estimators, key=lambda name: name != REFERENCE)
        for name in names:
            bar.set_postfix_str(f"K={num_steps} {name}", refresh=True)
            result, row = _measure(config, data, name, problem, exact)
            exact = result if name == REFERENCE else exact
            rows.append(row)
            bar.update(1)
            write_rows(rows, workdir / "hypergradient" / "estimators.csv")
            jax.clear_caches()
    bar.close()
    plot = report_plots.estimators([dataclasses.asdict(row) for row in rows])
    files.write_bytes(workdir / "hypergradient" / "estimators.png", plot)
    return rows


def _state(config, data, workdir):
    gan = train.Pretraining(config, data, workdir / "generator").run().inner.gan
    training = train.Training(config, data, workdir / "end2end", "end2end", gan)
    state = training.initial_state()
    if checkpoint.has_checkpoint(workdir / "end2end" / "checkpoints"):
        checkpoints = checkpoint.Checkpoints(workdir / "end2end" / "checkpoints")
        state, _, _ = checkpoints.restore(state, checkpoints.steps()[0])
        checkpoints.close()
    print(f"State: step {int(state.step)} of {config.train.num_steps} in {workdir}", flush=True)
    return jax.tree.map(jnp.asarray, jax.device_get(state))


def _measure(config, data, name, problem, exact):
    config = config.copy_and_resolve_references()
    config.outer.estimator = name
    config.outer.num_inner_steps = config.outer.every = problem[-1].shape[0]
    if name == "conjugate_gradient":
        config.outer.through_generator_training = False
    networks = experiment.create_networks(config, data.num_classes)
    method, _ = experiment.create_method(config, networks, data.num_classes, "end2end", "train")
    meter = Meter()
    estimate = estimator_factory.create_estimator(
        config, dataclasses.replace(method, axis_name=None), axis_name=None, compile=meter.compile
    )
    result = jax.block_until_ready(estimate(*problem))
    grad, loss = jax.device_get((result.grad, result.loss))
    del result
    before, meter.metering = live_bytes(), True
    jax.block_until_ready(estimate(*problem))
    meter.metering, seconds = False, []
    for _ in range(config.diagnose.repeats):
        started = time.perf_counter()
        jax.block_until_ready(estimate(*problem))
        seconds.append(time.perf_counter() - started)
    found, reference = (_flat(g) for g in (grad, grad if exact is None else exact))
    norms = np.linalg.norm(found), np.linalg.norm(reference)
    row = Row(
        estimator=name,
        K=problem[-1].shape[0],
        cosine=float(found @ reference / max(norms[0] * norms[1], 1e-30)),
        norm=float(norms[0] / max(norms[1], 1e-30)),
        milliseconds=1e3 * statistics.median(seconds),
        megabytes=(meter.peak - before) / 2**20,
        compile_seconds=meter.compile_seconds,
        loss=float(loss),
    )
    return grad, row


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]).astype(np.float64)


def write_rows(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Writes the table as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)


def table(rows: Sequence[Row]) -> str:
    """The table for people, as Markdown; times are relative to the exact estimator of the same K."""
    lines = [
        "| K | estimator | cosine to exact | norm / exact | time / exact | memory (MiB) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        exact = next(r for r in rows if r.K == row.K)
        lines.append(
            f"| {row.K} | {row.estimator} | {row.cosine:+.3f} | {row.norm:.3g} | "
            f"{row.milliseconds / exact.milliseconds:.2f} | {row.megabytes:.1f} |"
        )
    return "\n".join(lines)
