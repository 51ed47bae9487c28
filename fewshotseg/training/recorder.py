"""What a training leaves behind: log, bar, samples, and checkpoints with the model inside."""

import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fewshotseg import figures, pictures
from fewshotseg.data import canvas, tiles
from fewshotseg.errors import InputError
from fewshotseg.genseg import levels, losses, outer_variables
from fewshotseg.results import metrics, sliding
from fewshotseg.results.trained_models import NONE_HELD_OUT
from fewshotseg.runs import checkpoint
from fewshotseg.runs import log as log_lib
from fewshotseg.training import devices, loop, stages
from fewshotseg.training.build import Experiment
from fewshotseg.training.stages import Stage
from fewshotseg.training.state import TrainState


class Recorder:
    """Everything around the steps of one stage; its `hooks` go into `loop.fit`.

    Attributes:
      state: where to begin: the initial state, or that of the newest checkpoint.
      model: what predicts, as of the last validation.

    Args:
      experiment: the objects of the run.
      stage: to be recorded.
      state: at step 0.
      folder: of the stage.
    """

    def __init__(
        self, experiment: Experiment, stage: Stage, state: TrainState, folder: pathlib.Path
    ):
        self._experiment, self._stage, self._folder = experiment, stage, folder
        self._checkpoints = checkpoint.Checkpoints(folder / "checkpoints")
        self._progress = {"seconds": 0.0}
        self._writes = devices.is_main()
        if self._writes:
            checkpoint.check_free_space(folder, state)
        self._unmeasured = -1.0 if experiment.data.validation else NONE_HELD_OUT
        self.state, self.model = state, self._candidate(state, self._unmeasured, 0)
        if self._checkpoints.latest_step() is not None:
            self.state, self.model, self._progress = self._checkpoints.restore(state)
        self.step = int(self.state.step)
        self._log = log_lib.NoLog()
        if self._writes:
            self._log = log_lib.Log(folder / "log.jsonl", stage.stage, self.step)
        self._bar = log_lib.progress_bar(stage.name, stage.num_steps, self.step, shown=self._writes)
        self._compiled = set()
        self._started = time.perf_counter() - self._progress["seconds"]
        self._measured, self._values = {}, {}

    @property
    def hooks(self) -> tuple[Callable, ...]:
        """In the order of one turn."""
        intervals = self._experiment.loop
        return (
            self._measure,
            loop.every(intervals.log_every, self._read),
            loop.every(intervals.checkpoint_every, self._read),
            loop.every(intervals.eval_every, self._validate),
            self._write,
            loop.every(intervals.sample_every, self._draw_samples),
            loop.every(intervals.checkpoint_every, self.save),
        )

    def announced(self, advance: Callable) -> Callable:
        """`advance`, whose first turn of every kind is shown as compiling and not as progress."""

        def run(state, step):
            kind = self._stage.kind(step)
            if kind in self._compiled:
                return advance(state, step)
            self._compiled.add(kind)
            with log_lib.compiling(self._bar, kind):
                return jax.block_until_ready(advance(state, step))

        return run

    def save(self, turn: loop.Turn) -> None:
        """Writes a checkpoint; an interrupted training that was never validated leaves its last weights."""
        model = self.model
        if self._experiment.loop.select == "last" or float(model["dice"]) < 0:
            model = self._candidate(turn.state, float(model["dice"]), turn.step)
        self._checkpoints.save(turn.step, turn.state, model, self._progress)

    def close(self) -> None:
        self._bar.close()
        self._log.close()
        self._checkpoints.close()

    def _measure(self, turn):
        self._measured.update(turn.metrics)  # not every turn measures everything
        self._bar.update(turn.step - turn.previous)

    def _read(self, turn):
        values = jax.device_get(self._measured)
        self._require_finite(values, turn.step)
        self._values.update(values)
        self._measured = {}

    def _validate(self, turn):
        if self._stage.segment is None or not self._experiment.data.validation:
            self.model = self._candidate(turn.state, self._unmeasured, turn.step)
            return
        dice = validation_dice(
            self._experiment,
            self._stage.segment,
            levels.average_of(turn.state.players["segmenter"]),
        )
        # `not <=`: NaN, where all masks are empty and nothing was found, is no worse than anything.
        if self._experiment.loop.select == "last" or not dice <= float(self.model["dice"]):
            self.model = self._candidate(turn.state, dice, turn.step)
        found = {"validation/dice": dice, "validation/model_dice": float(self.model["dice"])}
        self._progress.update(found)
        self._values.update(found)

    def _write(self, turn):
        self._progress["seconds"] = time.perf_counter() - self._started
        if not self._values:
            return
        seconds = {"seconds": self._progress["seconds"]}
        self._log.write(turn.step, {**seconds, **self._values, **self._mixing(turn.state)})
        shown = {k: v for k, v in self._values.items() if k.endswith(("/loss", "/l1"))}
        if "validation/dice" in self._progress:
            shown["val Dice"] = self._progress["validation/dice"]
        text = ", ".join(f"{k.replace('/loss', '')} {float(v):.3f}" for k, v in shown.items())
        self._bar.set_postfix_str(text, refresh=False)
        self._values = {}

    def _require_finite(self, values: Mapping[str, Any], step: int) -> None:
        last = self._checkpoints.latest_step()
        for key, value in values.items():
            if not np.isfinite(value).all():
                kept = f"The checkpoint of step {last} in {self._folder / 'checkpoints'} is kept: "
                raise InputError(
                    f"{self._stage.name}: {key} is {value} at step {step}. {kept if last else ''}Lower "
                    "the learning rate (optim, gan_optim or outer_optim) and train in a new --workdir."
                )

    def _mixing(self, state):
        if self._stage.use is None:
            return {}
        used = self._stage.use(state.theta)
        sides = used["architecture"] if "architecture" in state.theta else {}
        others = {f"outer/{name}": used[name] for name in state.theta if name != "architecture"}
        return {**{f"architecture/{side}": w for side, w in sides.items()}, **others}

    def _candidate(self, state, dice, step):
        """The model to predict with, and what a later command may want to draw with."""
        players = {name: player.params for name, player in state.players.items()}
        if "segmenter" in players:
            players["segmenter"] = levels.average_of(state.players["segmenter"])
        return {
            "players": players,
            "theta": state.theta,
            "dice": np.float32(dice),
            "step": np.int32(step),
        }

    def _draw_samples(self, turn):
        """A picture of what the segmenter is trained on beside real pairs."""
        if not self._writes:
            return
        if self._stage.pairs is not None:
            self._write_samples(turn, *self._pairs_of_sources(turn.state))
        elif self._stage.draw is not None:
            self._write_samples(turn, *self._drawn_images(turn.state))

    def _pairs_of_sources(self, state):
        """A column of images and one of outlines per source, a row per example."""
        titles, columns = [], []
        for name, pairs in self._stage.pairs(state).items():
            masks = np.asarray(pairs.masks)
            images = [
                pictures.to_uint8(pictures.in_planes(image, mask))
                for image, mask in zip(np.asarray(pairs.images), masks, strict=True)
            ]
            outlined = map(pictures.overlay, images, map(pictures.in_planes, masks, masks))
            titles += [name.replace("_", " "), "and its label"]
            columns += [images, list(outlined)]
        return [list(row) for row in zip(*columns, strict=True)], titles

    def _drawn_images(self, state):
        """Mask, drawn image and real image of the first training cases."""
        data = self._experiment.data
        train = data.train
        if data.tiles:
            train = tiles.typical(train, data.tiles, stages.NUM_SAMPLES)
        masks, real = (train[name][: stages.NUM_SAMPLES] for name in ("mask", "image"))
        one_hot = losses.one_hot_foreground(jnp.asarray(masks), data.num_classes)
        columns = {"synthetic image": self._stage.draw(state, one_hot)}
        if state.theta:
            found = state.replace(theta=outer_variables.discretize(state.theta))
            columns["discretised"] = self._stage.draw(found, one_hot)
        columns["real image"] = real
        rows = [
            [
                pictures.colour_mask(pictures.in_planes(mask, mask)),
                *(
                    pictures.to_uint8(pictures.in_planes(np.asarray(x[i]), mask))
                    for x in columns.values()
                ),
            ]
            for i, mask in enumerate(masks)
        ]
        return rows, ("mask", *columns)

    def _write_samples(self, turn, rows, titles):
        path = self._folder / "samples" / f"step_{turn.step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figures.image_grid(rows, path, titles)
        first = titles[0] == "mask"
        self._log.write_image(
            turn.step, "samples", np.concatenate([np.hstack(row[first:]) for row in rows])
        )


def validation_dice(experiment: Experiment, segment: Callable, params: Any) -> float:
    """Mean Dice of some weights over the validation cases, at the scale of the network."""
    threshold, classes = experiment.threshold, experiment.data.num_classes
    rows = [
        metrics.case_metrics(canvas.probabilities_to_mask(p, threshold), m, classes)
        for p, m in segmented_validation(experiment, segment, params)
    ]
    return metrics.mean_dice(rows)


def segmented_validation(
    experiment: Experiment, segment: Callable, params: Any
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Probabilities `[*spatial, K]` and mask of every validation case, at the scale of the network."""
    data = experiment.data
    if not data.tiles:
        images, masks = (data.validation[name] for name in ("image", "mask"))
        yield from zip(segment(params, images), masks, strict=True)
        return
    predict, batch_size = functools.partial(segment, params), experiment.evaluation.batch_size
    for image, mask, extent in zip(*map(data.validation.get, _SCALED), strict=True):
        whole = tuple(slice(0, n) for n in extent)
        yield sliding.segment_scaled(predict, image[whole], data.tiles, batch_size), mask[whole]


_SCALED = ("image", "mask", "extent")
