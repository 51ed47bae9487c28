"""One stage of training: the loop over steps, with its log, checkpoints, samples and resume."""

import dataclasses
import functools
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fewshotseg import errors, figures
from fewshotseg.data import cases
from fewshotseg.genseg import losses
from fewshotseg.genseg.state import GenSegState
from fewshotseg.runs import checkpoint, interrupts
from fewshotseg.runs import log as summaries
from fewshotseg.training import devices as parallel


@dataclasses.dataclass
class Stage:
    """One stage of training: steps until `num_steps`, with log, checkpoints and samples.

    Subclasses give the initial state, `advance`, and what is measured on the way.
    """

    config: Any
    data: cases.Data
    folder: pathlib.Path
    name: str = ""
    stage: str = ""

    def run(self) -> Any:
        """Runs or resumes the stage; returns what `result` makes of the end."""
        with interrupts.remembered_interrupts() as raise_if_interrupted:
            return self._run(raise_if_interrupted)

    def _run(self, raise_if_interrupted):
        checkpoints = checkpoint.Checkpoints(self.folder / "checkpoints")
        state = self.initial_state()
        if parallel.is_main():
            checkpoint.check_free_space(self.folder, state)
        best, progress = self.initial_best(state), {"seconds": 0.0}
        if checkpoints.latest_step() is not None:
            state, best, progress = checkpoints.restore(state)
        step, num_steps = int(state.step), self.config[self.stage].num_steps
        writes = parallel.is_main()
        log = summaries.NoLog()
        if writes:
            log = summaries.Log(self.folder / "log.jsonl", self.stage, step)
        bar = summaries.progress_bar(self.name, num_steps, step, shown=writes)
        started = time.perf_counter() - progress["seconds"]
        measured = {}  # since the last line of the log; not every step measures everything
        settled = state, best, dict(progress)  # after a whole turn of the loop, nothing left to do
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
                if due(self.config.sample_every) and writes:
                    self.write_samples(state, step, log)
                if due(self.config.checkpoint_every):
                    checkpoints.save(step, state, best, progress)
                bar.update(consumed)
                settled = state, best, dict(progress)
                raise_if_interrupted()
        except KeyboardInterrupt:
            state, best, progress = settled
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
                kept = f"The checkpoint of step {last} in {self.folder / 'checkpoints'} is kept: "
                raise errors.InputError(
                    f"{self.name}: {key} is {value} at step {step}. {kept if last else ''}Lower the "
                    "learning rate (optim, gan_optim or outer_optim) and train in a new --workdir."
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


def to_uint8(image: np.ndarray) -> np.ndarray:
    """RGB uint8 `[H, W, 3]` of an image `[H, W, C]` in [-1, 1]."""
    pixels = np.round((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8)
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels
