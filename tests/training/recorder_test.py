"""Which weights become the model, what is logged, and that only the validation cases decide."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest

from fewshotseg.errors import InputError
from fewshotseg.genseg import levels
from fewshotseg.runs import checkpoint, log
from fewshotseg.training import loop
from fewshotseg.training.build import Loop
from fewshotseg.training.recorder import Recorder
from fewshotseg.training.stages import Stage
from fewshotseg.training.state import TrainState

WIDTHS = (1, 3, 2)  # columns that the model finds after steps 1, 2, 3


def _mask(width):
    mask = np.zeros((1, 4, 4), np.uint8)
    mask[:, :, :width] = 1
    return mask


def _state(width, step):
    weights = {"width": jnp.float32(width)}
    current = {"width": jnp.float32(99.0)}  # is not what predicts
    player = levels.PlayerState(current, {}, weights, jnp.int32(step))
    return TrainState({"segmenter": player}, {}, {}, jnp.int32(step))


def _segment(params, images):
    columns = np.arange(4) < float(params["width"])
    return np.broadcast_to(columns[None, None, :, None], (*images.shape[:3], 1)).astype(np.float32)


def _experiment(select):
    """The training case has one column, the validation case three, the test case two."""
    image = np.zeros((1, 4, 4, 1), np.float32)
    cases = {name: {"image": image, "mask": _mask(w)} for name, w in (("train", 1), ("val", 3))}
    data = types.SimpleNamespace(
        train=cases["train"],
        validation=cases["val"],
        num_classes=2,
        tiles=None,
        test_sets={"test": _mask(2)},
    )
    return types.SimpleNamespace(data=data, threshold=0.5, loop=Loop(1, 1, 1, 1, select))


def _advance(state, step):
    return _state(WIDTHS[step], step + 1), {"segmenter/loss": jnp.float32(0.5)}, 1


STAGE = Stage(
    name="joint",
    stage="train",
    num_steps=3,
    init=lambda players: _state(0, 0),
    advance=_advance,
    kind=lambda step: "inner step",
    segment=_segment,
)


def _run(folder, select, stage=STAGE, num_steps=3):
    recorder = Recorder(_experiment(select), stage, stage.init(None), folder)
    try:
        loop.fit(
            recorder.state,
            recorder.announced(stage.advance),
            num_steps=num_steps,
            step=recorder.step,
            hooks=recorder.hooks,
            save=recorder.save,
        )
    finally:
        recorder.close()
    return recorder.model


@pytest.mark.parametrize(("select", "width"), [("last", 2), ("best", 3)])
def test_the_model_is_the_average_of_the_last_step_or_of_the_best(select, width, tmp_path):
    model = _run(tmp_path, select)
    assert float(model["players"]["segmenter"]["width"]) == width
    saved, _ = checkpoint.load_model(tmp_path / "checkpoints")
    assert float(saved["players"]["segmenter"]["width"]) == width
    lines = log.read_log(tmp_path / "log.jsonl")
    dice = [2 * min(w, 3) / (w + 3) for w in WIDTHS]  # against the validation case
    np.testing.assert_allclose([line["validation/dice"] for line in lines], dice)
    assert float(saved["dice"]) == pytest.approx(dice[-1] if select == "last" else max(dice))


@pytest.mark.parametrize(("select", "width"), [("last", 2), ("best", 3)])
def test_a_resumed_training_has_the_same_model(select, width, tmp_path):
    _run(tmp_path, select, num_steps=2)
    model = _run(tmp_path, select)
    assert float(model["players"]["segmenter"]["width"]) == width
    assert [line["step"] for line in log.read_log(tmp_path / "log.jsonl")] == [1, 2, 3]


def test_an_interrupted_training_leaves_its_last_weights(tmp_path):
    def interrupted(state, step):
        if step == 2:
            raise KeyboardInterrupt
        return _advance(state, step)

    stage = dataclasses.replace(STAGE, advance=interrupted)
    for select, width in (("last", 3), ("best", 3)):
        with pytest.raises(KeyboardInterrupt):
            _run(tmp_path / select, select, stage)
        saved, _ = checkpoint.load_model(tmp_path / select / "checkpoints")
        assert float(saved["players"]["segmenter"]["width"]) == width and int(saved["step"]) == 2


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path):
    def diverging(state, step):
        state, _, taken = _advance(state, step)
        return state, {"segmenter/loss": jnp.float32(np.nan if step else 0.5)}, taken

    stage = dataclasses.replace(STAGE, advance=diverging)
    with pytest.raises(InputError, match="joint: segmenter/loss is nan at step 2. The checkpoint"):
        _run(tmp_path, "last", stage)


def test_compiling_is_shown_once_per_kind_and_is_no_progress(tmp_path, capfd):
    stage = dataclasses.replace(
        STAGE, kind=lambda step: "outer step" if step == 1 else "inner step"
    )
    _run(tmp_path, "last", stage)
    shown = capfd.readouterr().err
    for kind in ("inner step", "outer step"):
        assert f"compiling the {kind}" in shown


def test_hooks_act_at_multiples_and_at_the_end():
    seen = []
    loop.fit(
        0,
        lambda state, step: (state + 1, {}, 2 if step == 2 else 1),
        num_steps=8,
        hooks=[loop.every(3, lambda turn: seen.append((turn.step, turn.state)))],
    )
    assert seen == [(4, 3), (6, 5), (8, 7)]  # 3 lies within the turn from 2 to 4
