"""Training: the loop over the levels, its checkpoints, and what it leaves behind."""

import dataclasses
import functools
import os
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fewshotseg import (
    checkpoint,
    errors,
    experiment,
    figures,
    genseg,
    hypergradient,
    losses,
    metrics,
    parallel,
    run_files,
    summaries,
    trained,
)
from fewshotseg.data import splits, transforms
from fewshotseg.models import search_space
from fewshotseg.state import GenSegState


def train_and_evaluate(config, workdir: str | os.PathLike[str]) -> None:
    """Trains every method of `config.methods` and evaluates it on every test set.

    Killed at any moment and called again with the same arguments, it goes on from the last
    checkpoint and ends with the same numbers, bit for bit.

    Args:
      config: as `configs/default.py` describes it.
      workdir: of the run; created if missing.

    Raises:
      InputError: bad data, a bad field, a workdir of another configuration, a full disk, or a loss
        that is not finite.
    """
    experiment.check_config(config)
    workdir = pathlib.Path(workdir)
    checkpoint.check_writable(workdir)
    run_files.write(config, workdir)
    print(
        f"{config.name}: seed {config.seed}, {run_files.device()}, results in {workdir}", flush=True
    )
    data = experiment.create_data(config)
    tests = {name: ids for name, (_, ids) in data.test_sets.items()}
    splits.write_split(workdir / "splits.json", data.split, tests)
    run_files.write_json(list(data.source.class_names), workdir / "classes.json")
    figures.contact_sheet(
        [data.source.load(i) for i in data.split.train], workdir / "contact_sheet.png"
    )
    trained.threshold_baseline(data, workdir)
    gan = None
    if any(method != "real_only" for method in config.methods):
        gan = _Pretraining(config, data, workdir / "generator").run().inner.gan
    for method in config.methods:
        folder = workdir / method
        if not trained.is_evaluated(folder, data):
            best = _Training(config, data, folder, method, gan).run()
            trained.evaluate_model(config, data, folder, best)


@dataclasses.dataclass
class _Stage:
    """One stage of training: steps until `num_steps`, with log, checkpoints and samples.

    Subclasses give the initial state, `advance`, and what is measured on the way.
    """

    config: Any
    data: experiment.Data
    folder: pathlib.Path
    name: str = ""
    stage: str = ""

    def run(self) -> Any:
        """Runs or resumes the stage; returns what `result` makes of the end."""
        checkpoints = checkpoint.Checkpoints(self.folder / "checkpoints")
        state = self.initial_state()
        checkpoint.check_free_space(self.folder, state)
        best, progress = self.initial_best(state), {"seconds": 0.0}
        if checkpoints.latest_step() is not None:
            state, best, progress = checkpoints.restore(state)
        step, num_steps = int(state.step), self.config[self.stage].num_steps
        log = summaries.Log(self.folder / "log.jsonl", self.stage, step)
        bar = summaries.progress_bar(self.name, num_steps, step)
        started = time.perf_counter() - progress["seconds"]
        measured = {}  # since the last line of the log; not every step measures everything
        try:
            while step < num_steps:
                previous = step
                state, latest, consumed = self.advance(state, step)
                measured.update(latest)
                step += consumed

                def due(every, previous=previous, step=step):
                    return step // every != previous // every or step >= num_steps

                values = {}
                if due(self.config.log_every) or due(self.config.checkpoint_every):
                    values = jax.device_get(measured)
                    self._require_finite(values, step, checkpoints.latest_step())
                    measured = {}
                if due(self.config.eval_every):
                    validated, best = self.validate(state, step, best)
                    values.update(validated)
                    progress.update({k: float(v) for k, v in validated.items() if np.ndim(v) == 0})
                progress["seconds"] = time.perf_counter() - started
                if values:
                    log.write(step, {"seconds": progress["seconds"], **values, **self.extra(state)})
                    bar.set_postfix_str(self._describe(values, progress), refresh=False)
                if due(self.config.sample_every):
                    self.write_samples(state, step, log)
                if due(self.config.checkpoint_every):
                    checkpoints.save(step, state, best, progress)
                bar.update(consumed)
        except KeyboardInterrupt:
            checkpoints.save(int(state.step), state, self.usable(state, best), progress)
            raise
        finally:
            bar.close()
            log.close()
            checkpoints.close()
        return self.result(state, best)

    def _require_finite(self, values, step, last):
        for key, value in values.items():
            if not np.isfinite(value).all():
                raise errors.InputError(
                    f"{self.name}: {key} is {value} at step {step}. The checkpoint of step {last} in "
                    f"{self.folder / 'checkpoints'} is kept: lower the learning rate (optim, gan_optim "
                    "or outer_optim) and train in a new --workdir."
                )

    def _describe(self, values, progress):
        shown = {
            k: v for k, v in values.items() if k.endswith(("/loss", "/l1")) and np.ndim(v) == 0
        }
        if "validation/dice" in progress:
            shown["val Dice"] = progress["validation/dice"]
        return ", ".join(f"{k.replace('/loss', '')} {float(v):.3f}" for k, v in shown.items())

    def extra(self, state) -> dict:
        return {}

    def usable(self, state, best):
        return best

    def write_samples(self, state: GenSegState, step: int, log: summaries.Log) -> None:
        """A grid of mask, drawn image and real image for the first training cases."""
        if state.inner.gan is None:
            return
        masks, real = self.data.train["mask"][:6], self.data.train["image"][:6]
        drawn = np.asarray(self._draw(state.inner.gan.generator, state.theta, jnp.asarray(masks)))
        rows = [
            [figures.colour_mask(m), to_uint8(d), to_uint8(r)]
            for m, d, r in zip(masks, drawn, real, strict=True)
        ]
        path = self.folder / "samples" / f"step_{step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figures.image_grid(rows, path, ("mask", "synthetic image", "real image"))
        log.write_image(step, "samples", np.concatenate([np.hstack(row[1:]) for row in rows]))

    @functools.cached_property
    def _draw(self):
        @jax.jit
        def draw(generator, theta, masks):
            one_hot = losses.one_hot_foreground(masks, self.data.num_classes)
            return self.method.generate(generator, theta["architecture"], one_hot, None)

        return draw


def _dice(class_rows) -> float:
    """Mean Dice over the classes of one case; 1 where there is nothing and nothing was found."""
    values = [row["dice"] for row in class_rows]
    return 1.0 if np.isnan(values).all() else float(np.nanmean(values))


def to_uint8(image: np.ndarray) -> np.ndarray:
    """RGB uint8 `[H, W, 3]` of an image `[H, W, C]` in [-1, 1]."""
    pixels = np.round((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8)
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def _compile_gan_step(method: genseg.Method):
    step = functools.partial(genseg.gan_step, method=method)
    return parallel.compile_step(hypergradient.indexed(step), batched_args=(2,))


def _compile_inner_step(method: genseg.Method, train_generator: bool):
    """`genseg.inner_step` as two programs, so that methods share what is slow to compile."""
    gan_step = _compile_gan_step(method)

    def step_segmenter(segmenter, drawing, batch, rng):
        return genseg.segmenter_step(segmenter, *drawing, batch, rng, method=method)

    step_segmenter = parallel.compile_step(hypergradient.indexed(step_segmenter), batched_args=(2,))

    def step(inner, theta, batches, rngs, k):
        gan, measured = inner.gan, {}
        if train_generator:
            gan, measured = gan_step(gan, theta, batches, rngs, k)
        drawing = (None if gan is None else gan.generator, theta)
        segmenter, more = step_segmenter(inner.segmenter, drawing, batches, rngs, k)
        return inner.replace(gan=gan, segmenter=segmenter), {**measured, **more}

    return step


class _Pretraining(_Stage):
    """Generator and discriminator on real pairs, before anything else (level 1 alone)."""

    def __init__(self, config, data, folder):
        super().__init__(config, data, folder, "generator", "pretrain")
        self.networks = experiment.create_networks(config, data.num_classes)
        self.method, self.outer_optimizer = experiment.create_method(
            config, self.networks, data.num_classes, "separate", "pretrain"
        )
        self.draw, _ = experiment.create_draws(config, data.num_classes, config.pretrain.batch_size)
        self.arrays = jax.tree.map(jnp.asarray, dict(data.train))

        self.step = _compile_gan_step(self.method)

    def initial_state(self):
        gan = experiment.init_gan(self.config, self.networks, self.method)
        theta = experiment.init_theta(self.config, self.networks["generator"].num_levels)
        return experiment.init_state(gan, None, theta, self.outer_optimizer)

    def initial_best(self, state):
        return {"generator": state.inner.gan.generator}

    def advance(self, state, step):
        keys = experiment.step_key(self.config, self.stage, step)[None]
        batches = self.draw(self.arrays, keys)
        gan, measured = self.step(state.inner.gan, state.theta, batches, keys, 0)
        inner = state.inner.replace(gan=gan)
        return state.replace(inner=inner, step=state.step + 1), measured, 1

    def validate(self, state, step, best):
        return {}, {"generator": state.inner.gan.generator}

    def result(self, state, best):
        return state


class _Training(_Stage):
    """The segmenter, with the generator as the method says."""

    def __init__(self, config, data, folder, method, gan):
        super().__init__(config, data, folder, method, "train")
        self.networks = experiment.create_networks(config, data.num_classes)
        self.method, self.outer_optimizer = experiment.create_method(
            config, self.networks, data.num_classes, method, "train"
        )
        self.gan = None if method == "real_only" else gan
        self.end2end = method == "end2end"
        self.draw, self.draw_outer = experiment.create_draws(
            config, data.num_classes, config.train.batch_size
        )
        self.arrays = jax.tree.map(jnp.asarray, dict(data.train))
        self.validation_arrays = jax.tree.map(jnp.asarray, dict(data.validation))
        inner_step = functools.partial(
            genseg.inner_step,
            method=self.method,
            train_generator=method in ("joint", "end2end"),
            through_generator=config.outer.through_generator_training,
        )
        self.step = _compile_inner_step(self.method, method in ("joint", "end2end"))
        loop = config.outer.loop
        if loop == "auto":
            loop = "host" if jax.default_backend() == "cpu" else "scan"
        self.estimate = hypergradient.unrolled(
            inner_step,
            functools.partial(genseg.outer_loss, method=self.method),
            loop=loop,
            checkpoint=config.outer.checkpoint,
            axis_name=parallel.AXIS_NAME,
            compile=parallel.compile_step,
            step=self.step,
        )
        self.predict = experiment.compile_segmenter(self.method.segment)

    def initial_state(self):
        segmenter = experiment.init_segmenter(self.config, self.networks, self.method)
        theta = {}
        if self.gan is not None:
            theta = experiment.init_theta(self.config, self.networks["generator"].num_levels)
        return experiment.init_state(self.gan, segmenter, theta, self.outer_optimizer)

    def initial_best(self, state):
        return self._candidate(state, -1.0, 0)

    def advance(self, state, step):
        outer = self.config.outer
        hyper = self.end2end and step >= outer.start and step % outer.every == 0
        count = outer.num_inner_steps if hyper else 1
        count = min(count, self.config.train.num_steps - step)
        keys = jnp.stack(
            [experiment.step_key(self.config, self.stage, step + k) for k in range(count)]
        )
        batches = self.draw(self.arrays, keys)
        if not hyper:
            inner, measured = self.step(state.inner, state.theta, batches, keys, 0)
            return state.replace(inner=inner, step=state.step + 1), measured, 1
        outer_batch = self.draw_outer(self.validation_arrays, keys[0])
        result = self.estimate(state.theta, state.inner, batches, outer_batch, keys)
        theta, theta_opt, norm = self._outer_update(result.grad, state.theta_opt, state.theta)
        measured = {**result.metrics, "outer/hypergradient_norm": norm}
        state = GenSegState(result.inner_state, theta, theta_opt, state.step + count)
        return state, measured, count

    @functools.cached_property
    def _outer_update(self):
        variables = self.config.outer.variables

        @jax.jit
        def update(grad, opt, theta):
            moved = {
                k: g if k in variables else jax.tree.map(jnp.zeros_like, g) for k, g in grad.items()
            }
            updates, opt = self.outer_optimizer.update(moved, opt, theta)
            return optax.apply_updates(theta, updates), opt, optax.global_norm(moved)

        return update

    def extra(self, state):
        if not self.end2end:
            return {}
        weights = search_space.mixing_weights(state.theta["architecture"])
        return {f"architecture/{side}": w for side, w in weights.items()}

    def validate(self, state, step, best):
        threshold, classes = self.config.evaluate.threshold, self.data.num_classes
        images, masks = self.data.validation["image"], self.data.validation["mask"]
        probabilities = self.predict(state.inner.segmenter.ema, images)
        rows = [
            metrics.case_metrics(transforms.probabilities_to_mask(p, threshold), m, classes)
            for p, m in zip(probabilities, masks, strict=True)
        ]
        dice = float(np.mean([_dice(case) for case in rows]))
        if dice > float(best["dice"]):
            best = self._candidate(state, dice, step)
        return {"validation/dice": dice, "validation/best_dice": float(best["dice"])}, best

    def usable(self, state, best):
        """What an interrupted run predicts with: the best model; if there is none, the current one."""
        return self._candidate(state, -1.0, 0) if float(best["dice"]) < 0 else best

    def _candidate(self, state, dice, step):
        gan = state.inner.gan
        return {
            "segmenter": state.inner.segmenter.ema,
            "generator": {} if gan is None else gan.generator,
            "theta": state.theta,
            "dice": np.float32(dice),
            "step": np.int32(step),
        }

    def result(self, state, best):
        return best
