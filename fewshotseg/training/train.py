"""Training: the loop over the levels, its checkpoints, and what it leaves behind."""

import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fewshotseg import figures, files
from fewshotseg.data import cases, split_files
from fewshotseg.data import image_files as transforms
from fewshotseg.genseg import levels as genseg
from fewshotseg.genseg.state import GenSegState
from fewshotseg.hypergradient import unrolled as hypergradient
from fewshotseg.models import search_space
from fewshotseg.results import evaluate, metrics
from fewshotseg.results import predictor as trained
from fewshotseg.runs import checkpoint
from fewshotseg.runs import folder as run_files
from fewshotseg.training import build as experiment
from fewshotseg.training import config_check
from fewshotseg.training import devices as parallel
from fewshotseg.training import estimators as estimator_factory
from fewshotseg.training.loop import Stage


def train_and_evaluate(config, workdir: str | os.PathLike[str]) -> None:
    """Trains every method of `config.methods` and evaluates it on every test set.

    Killed at any moment and called again with the same arguments, it goes on from the last
    checkpoint and ends with the same numbers, bit for bit. Of several processes, the first writes.

    Args:
      config: as `configs/default.py` describes it.
      workdir: of the run; created if missing.

    Raises:
      InputError: bad data, a bad field, a workdir of another configuration, a full disk, or a loss
        that is not finite.
    """
    config_check.check_config(config)
    workdir = pathlib.Path(workdir)
    if parallel.is_main():
        checkpoint.check_writable(workdir)
        run_files.write(config, workdir)
        print(
            f"{config.name}: seed {config.seed}, {run_files.device()}, results in {workdir}",
            flush=True,
        )
    data = cases.create_data(config)
    if parallel.is_main():
        _describe(data, workdir)
    gan = None
    if any(method != "real_only" for method in config.methods):
        gan = Pretraining(config, data, workdir / "generator").run().inner.gan
    for method in config.methods:
        folder = workdir / method
        if not evaluate.is_evaluated(folder, data.test_sets):
            best = Training(config, data, folder, method, gan).run()
            if parallel.is_main():
                model = trained.create_predictor(
                    config, best["segmenter"], data.source.class_names, method
                )
                evaluate.evaluate_model(
                    model,
                    data.test_sets,
                    folder,
                    batch_size=config.evaluate.batch_size,
                    nsd_tolerance=config.evaluate.nsd_tolerance,
                )
            # Programs of finished methods are of no more use, and a process may only hold so many:
            # the 65,530 memory maps that Linux allows are used up after a few runs.
            jax.clear_caches()


def _describe(data: cases.Data, workdir: pathlib.Path) -> None:
    """Writes what a run knows before it trains: its split, classes, contact sheet and threshold."""
    tests = {name: ids for name, (_, ids) in data.test_sets.items()}
    split_files.write_split(workdir / "splits.json", data.split, tests)
    files.write_json(workdir / "classes.json", data.source.class_names)
    figures.contact_sheet(
        [data.source.load(i) for i in data.split.train], workdir / "contact_sheet.png"
    )
    train = [data.source.load(i) for i in data.split.train]
    found = evaluate.threshold_baseline(train, data.test_sets, workdir)
    print("Best grey-value threshold, Dice:", {k: round(v, 3) for k, v in found.items()})


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


class Pretraining(Stage):
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


class Training(Stage):
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
        self.step = _compile_inner_step(self.method, method in ("joint", "end2end"))
        self.estimate = estimator_factory.create_estimator(config, self.method, self.step)
        self.predict = trained.compile_segmenter(self.method.segment)

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
        dice = metrics.mean_dice(rows)
        if not dice <= float(best["dice"]):  # NaN: all masks empty, nothing predicted
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
