"""Checkpoints: exact, atomic, and clear about a full disk."""

import errno
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from fewshotseg.errors import InputError
from fewshotseg.runs import checkpoint

STATE = {"w": jnp.arange(5.0) / 3, "opt": (jnp.int32(7), jnp.ones((2, 2), jnp.float32))}
BEST = {"w": np.float32([1.5, -2.5])}


def test_round_trip_is_exact(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path / "c")
    checkpoints.save(3, STATE, BEST, {"seconds": 1.25})
    checkpoints.close()
    again = checkpoint.Checkpoints(tmp_path / "c")
    state, best, progress = again.restore(STATE)
    assert again.latest_step() == 3
    np.testing.assert_array_equal(state["w"], STATE["w"])
    assert state["opt"][0] == 7 and state["opt"][0].dtype == np.int32
    np.testing.assert_array_equal(best["w"], BEST["w"])
    assert progress == {"seconds": 1.25}
    np.testing.assert_array_equal(checkpoint.load_model(tmp_path / "c")[0]["w"], BEST["w"])


def test_keeps_two_and_restores_the_one_asked_for(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, {"w": jnp.float32(step)}, BEST, {})
    assert checkpoints.steps() == [2, 3]
    assert checkpoints.restore({"w": jnp.float32(0)}, 2)[0]["w"] == 2


def test_an_interrupted_write_is_ignored(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(1, STATE, BEST, {})
    checkpoints.close()
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
    shutil.rmtree(tmp_path / "2.orbax-checkpoint-tmp" / "state")
    assert checkpoint.Checkpoints(tmp_path).latest_step() == 1
    assert checkpoint.load_model(tmp_path)[0]["w"].shape == (2,)


def test_full_disk_while_writing_names_the_checkpoint_that_is_kept(tmp_path, monkeypatch):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(4, STATE, BEST, {})

    def no_space(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", no_space)
    with pytest.raises(InputError, match="checkpoint of step 4 is kept: free some space"):
        checkpoints.save(5, STATE, BEST, {})
    assert checkpoint.Checkpoints(tmp_path).latest_step() == 4


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    checkpoints = checkpoint.Checkpoints(tmp_path)

    def broken(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(checkpoints._manager, "save", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        checkpoints.save(5, STATE, BEST, {})


def test_too_little_space_is_said_at_the_start(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="MiB free, but checkpoints need"):
        checkpoint.check_free_space(tmp_path, STATE)
    checkpoint.check_free_space(tmp_path, {"w": jnp.zeros(5)})


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another --workdir"):
        checkpoint.Checkpoints(tmp_path / "file" / "checkpoints")


def test_other_shapes_are_refused(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(1, STATE, BEST, {})
    with pytest.raises(InputError, match="does not fit this configuration"):
        checkpoints.restore({**STATE, "more": jnp.zeros(3)})


def test_nothing_trained_yet(tmp_path):
    with pytest.raises(InputError, match="train first"):
        checkpoint.load_model(tmp_path / "missing")
    with pytest.raises(InputError, match="train first"):
        checkpoint.load_model(tmp_path)
