"""The estimators of the hypergradient side by side, on one's own data: which to choose, and at what price.

For every number K of inner steps, all estimators start from the same state with the same batches. The
exact one, `unrolled`, is the reference.
"""

import csv
import dataclasses
import io
import pathlib
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fewshotseg import errors, files
from fewshotseg.results.report import plots
from fewshotseg.runs import checkpoint, folder, log
from fewshotseg.training import build, build_data, build_pairs, build_parts, config_check, stages
from fewshotseg.training.estimators import ESTIMATORS, parse_choice, start

REFERENCE = "unrolled"
METHOD = "end2end"


@dataclasses.dataclass(frozen=True)
class Row:
    """One estimator at one K.

    Attributes:
      estimator: name.
      gradient: how inner gradients were differentiated.
      K: number of inner steps.
      cosine: of the angle to the exact hypergradient of the same K steps; mean over the draws.
      cosine_spread: standard deviation over the draws, 0 for one.
      draws: of the estimator's own noise.
      norm: over that of the exact one; mean over the draws.
      milliseconds: one estimate, median of the repeats, compilation not counted.
      megabytes: peak of what it holds on the device beyond theta, state and batches (MiB).
      compile_seconds: of all its programs, 0 where the compilation cache had them.
      loss: outer loss after the K steps.
    """

    estimator: str
    gradient: str
    K: int
    cosine: float
    cosine_spread: float
    draws: int
    norm: float
    milliseconds: float
    megabytes: float
    compile_seconds: float
    loss: float

    @property
    def label(self) -> str:
        """As `diagnose.estimators` names it."""
        return self.estimator if self.gradient == "mixed" else f"{self.estimator}+{self.gradient}"


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))


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
    """Compares the estimators at the state of a run, and writes what it finds into its folder.

    The state is the earliest checkpoint that is kept of method end2end; without one, that after the
    pre-training of the generator. Nothing is trained.

    Args:
      config: as `configs/default.py` describes it; `config.diagnose` says what to compare.
      workdir: of the run; `hypergradient/` in it gets estimators.csv, estimators.md with the command and
        the state, and estimators.png.

    Raises:
      InputError: there is no such run, its settings are others, its generator is not trained, theta is
        empty, or fewer steps are left of it than are to be compared.
    """
    config_check.check_config(config)
    config_check.require_held_out(config, "hypergradient")
    workdir = pathlib.Path(workdir)
    folder.check_same(config, workdir)
    _check_trained(config, workdir)
    checkpoint.check_writable(workdir / "hypergradient")
    data = build_data.create_data(config)
    spec = build_parts.create_spec(config, data.num_classes)
    state = _state(config, data, spec, workdir)
    if not jax.tree.leaves(state.theta):
        raise errors.InputError(
            f"outer.variables is {tuple(config.outer.variables)}: none of these moves in {METHOD}, name "
            "'architecture', with search.encoder or search.decoder."
        )
    step, most = int(state.step), max(config.diagnose.inner_steps)
    check_steps_left(step, most, config.train.num_steps)
    where = f"State: step {step} of {config.train.num_steps}, {folder.device()}"
    print(f"{where}, {workdir}", flush=True)
    method = build_pairs.resolve_method(config, METHOD)
    draw, draw_outer = build_parts.create_draws(
        config, data.num_classes, method, config.train.batch_size, axis_name=None, compile=jax.jit
    )
    arrays, unseen = (jax.tree.map(jnp.asarray, dict(x)) for x in (data.train, data.validation))
    keys = jnp.stack([stages.step_key(config.seed, "train", step + k) for k in range(most)])
    batches, outer_batch = draw(arrays, keys), draw_outer(unseen, keys[0])
    del arrays, unseen
    choices = list(dict.fromkeys((REFERENCE, *config.diagnose.estimators)))
    # Those who perturb trainings cannot but go through the generator's.
    if not config.outer.through_generator_training:
        choices = [choice for choice in choices if not ESTIMATORS[parse_choice(choice)[0]].draws]
    rows = []
    total = len(choices) * len(config.diagnose.inner_steps)
    bar = log.progress_bar("estimators", total, 0, unit="estimate")
    for num_steps in config.diagnose.inner_steps:
        first = jax.tree.map(lambda x, n=num_steps: x[:n], (batches, keys))
        problem = state.theta, state.players, first[0], outer_batch, first[1]
        exact = None
        for choice in choices:
            bar.set_postfix_str(f"K={num_steps} {choice}", refresh=True)
            found, row = _measure(config, spec, choice, problem, exact)
            exact = found if choice == REFERENCE else exact
            rows.append(row)
            bar.update(1)
            _write(rows, workdir / "hypergradient", where)
            jax.clear_caches()
    bar.close()
    plot = plots.estimators([{**dataclasses.asdict(row), "estimator": row.label} for row in rows])
    files.write_bytes(workdir / "hypergradient" / "estimators.png", plot)
    return rows


def check_steps_left(step: int, most: int, num_steps: int) -> None:
    """Raises `InputError` unless `most` steps are left of `num_steps` after `step`.

    Past the end of a schedule that falls to 0 nothing moves, and zeros would be compared.
    """
    if step + most > num_steps:
        left = num_steps - step
        fewer = f"compare at most {left} (diagnose.inner_steps), or " if left else ""
        raise errors.InputError(
            f"the state is at step {step} of {num_steps}, and diagnose.inner_steps asks for {most} more: "
            f"{fewer}train a run whose checkpoint_every keeps one at or before step {num_steps - most} "
            "(the last two are kept)."
        )


def _check_trained(config, workdir):
    trained = workdir / "generator" / "checkpoints"
    steps = []
    if checkpoint.has_checkpoint(trained):
        checkpoints = checkpoint.Checkpoints(trained)
        steps = checkpoints.steps()
        checkpoints.close()
    if not steps or steps[-1] < config.pretrain.num_steps:
        raise errors.InputError(
            f"{workdir}: its generator is not trained yet (step {max(steps, default=0)} of "
            f"{config.pretrain.num_steps}). Train first: the same command without --mode=hypergradient."
        )


def _state(config, data, spec, workdir):
    generator = build.create_pretraining(config, data, spec)
    players = _restore(workdir / "generator", generator.init(None), newest=True).players
    state = build.create_training(config, data, spec, "end2end").init(players)
    if checkpoint.has_checkpoint(workdir / "end2end" / "checkpoints"):
        state = _restore(workdir / "end2end", state, newest=False)
    return jax.tree.map(jnp.asarray, jax.device_get(state))


def _restore(stage_folder, state, newest):
    checkpoints = checkpoint.Checkpoints(stage_folder / "checkpoints")
    step = checkpoints.steps()[-1 if newest else 0]
    state, _, _ = checkpoints.restore(state, step)
    checkpoints.close()
    return state


def _measure(config, spec, choice, problem, exact):
    name, gradient = parse_choice(choice)
    config = config.copy_and_resolve_references()
    config.outer.estimator, config.outer.gradient = name, gradient
    config.outer.num_inner_steps = config.outer.every = num_steps = problem[-1].shape[0]
    memory = start(name, build_parts.outer_fields(config, name), *problem[:2])
    problem = (*problem, memory) if ESTIMATORS[name].start else problem
    if ESTIMATORS[name].needs_symmetry:
        config.outer.through_generator_training = False
    meter = Meter()
    method = build_pairs.resolve_method(config, METHOD)
    parts = build_parts.create_parts(config, spec, method, "train", axis_name=None)
    inner_step = stages.create_inner_step(
        parts,
        stages.moving_players(parts, method),
        config.outer.through_generator_training,
    )
    estimate = build_parts.create_estimate(
        config, parts, method, inner_step, axis_name=None, compile=meter.compile
    )
    grads, losses = _draws(config, name, estimate, problem)
    before, meter.metering = live_bytes(), True
    jax.block_until_ready(estimate(*problem))
    meter.metering, seconds = False, []
    for _ in range(config.diagnose.repeats):
        started = time.perf_counter()
        jax.block_until_ready(estimate(*problem))
        seconds.append(time.perf_counter() - started)
    exact = grads[0] if exact is None else exact
    norms = [float(np.linalg.norm(g)) for g in grads]
    size = float(np.linalg.norm(exact))
    cosines = [float(g @ exact / max(n * size, 1e-30)) for g, n in zip(grads, norms, strict=True)]
    row = Row(
        estimator=name,
        gradient=gradient,
        K=num_steps,
        cosine=statistics.fmean(cosines),
        cosine_spread=statistics.stdev(cosines) if len(cosines) > 1 else 0.0,
        draws=len(cosines),
        norm=statistics.fmean(norms) / max(size, 1e-30),
        milliseconds=1e3 * statistics.median(seconds),
        megabytes=(meter.peak - before) / 2**20,
        compile_seconds=meter.compile_seconds,
        loss=losses[0],
    )
    return grads[0], row


def _draws(config, name, estimate, problem):
    """Flat hypergradients and losses; several where the estimator draws noise.

    It draws from the keys, which the inner steps do not read: their randomness is in the batches. So
    other keys are the same steps with other noise, which is checked.
    """
    *rest, keys = problem[:5]
    grads, losses = [], []
    for draw in range(config.diagnose.draws if ESTIMATORS[name].draws else 1):
        noise = keys if draw == 0 else jax.vmap(lambda k, d=draw: jax.random.fold_in(k, d))(keys)
        result = jax.block_until_ready(estimate(*rest, noise, *problem[5:]))
        grads.append(_flat(jax.device_get(result.grad)))
        losses.append(float(result.loss))
    assert max(losses) == min(losses), f"the steps read the keys: {losses}"
    return grads, losses


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]).astype(np.float64)


def _write(rows, output, where):
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    files.write_bytes(output / "estimators.csv", text.getvalue().encode())
    command = shlex.join(["python", pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])
    page = f"```bash\n{command}\n```\n\n{where}\n\n{table(rows)}\n"
    files.write_bytes(output / "estimators.md", page.encode())


def table(rows: Sequence[Row]) -> str:
    """The table for people, as Markdown; times are relative to the exact estimator of the same K."""
    lines = [
        "| K | estimator | cosine to exact | norm / exact | time / exact | memory (MiB) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        exact = next(r for r in rows if r.K == row.K)
        spread = f" ± {row.cosine_spread:.3f}, {row.draws} draws" if row.draws > 1 else ""
        lines.append(
            f"| {row.K} | {row.label} | {row.cosine:+.3f}{spread} | {row.norm:.3g} | "
            f"{row.milliseconds / exact.milliseconds:.2f} | {row.megabytes:.1f} |"
        )
    return "\n".join(lines)
