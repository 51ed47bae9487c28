"""Checkpoints: exact, atomic, clear about a full disk; and the runs that go on from them."""

import errno
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import toy_runs

from fewshotseg import checkpoint, commands, experiment, summaries, train
from fewshotseg.errors import InputError

STATE = {"w": jnp.arange(5.0) / 3, "opt": (jnp.int32(7), jnp.ones((2, 2), jnp.float32))}
BEST = {"w": np.float32([1.5, -2.5])}


@pytest.fixture(scope="module")
def toy():
    """Configuration and data of the toy run."""
    config = toy_runs.config()
    return config, experiment.create_data(config)


def damaged_numbers(tree):
    """Every leaf replaced by numbers that only a copy of all bits survives: NaN, -0, denormals."""
    numbers = np.random.default_rng(0)

    def draw(leaf):
        leaf = np.asarray(leaf)
        if not np.issubdtype(leaf.dtype, np.floating):
            return numbers.integers(0, 2**31 - 1, leaf.shape).astype(leaf.dtype)
        bits = numbers.integers(0, 2**32, leaf.shape, dtype=np.uint32).view(np.float32)
        return np.where(numbers.random(leaf.shape) < 0.1, np.float32("-0."), bits)

    return jax.tree.map(draw, tree)


# --- One checkpoint ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["end2end", "real_only"])
def test_round_trip_of_a_real_state_is_exact(method, toy, tmp_path, cached_programs):
    stage = toy_runs.stage_of(*toy, tmp_path, method)
    state = stage.initial_state()
    written, best = damaged_numbers(state), damaged_numbers(stage.initial_best(state))
    checkpoints = checkpoint.Checkpoints(tmp_path / "c")
    checkpoints.save(3, written, best, {"seconds": 1.25})
    checkpoints.close()
    again = checkpoint.Checkpoints(tmp_path / "c")
    restored, restored_best, progress = again.restore(state)
    assert again.latest_step() == 3 and progress == {"seconds": 1.25}
    toy_runs.assert_same_bits(restored, written)
    toy_runs.assert_same_bits(restored_best, best)
    toy_runs.assert_same_bits(checkpoint.load_best(tmp_path / "c")[0], best)


def test_keeps_two_and_restores_the_one_asked_for(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, {"w": jnp.float32(step)}, BEST, {})
    assert checkpoints.steps() == [2, 3]
    assert checkpoints.restore({"w": jnp.float32(0)}, 2)[0]["w"] == 2
    assert checkpoints.restore({"w": jnp.float32(0)})[0]["w"] == 3


def test_an_interrupted_write_is_ignored(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(1, STATE, BEST, {})
    checkpoints.close()
    left_over = tmp_path / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", left_over)
    shutil.rmtree(left_over / "state")
    assert checkpoint.has_checkpoint(tmp_path)
    np.testing.assert_array_equal(checkpoint.load_best(tmp_path)[0]["w"], BEST["w"])
    again = checkpoint.Checkpoints(tmp_path)
    assert again.latest_step() == 1 and not left_over.exists()
    again.save(2, STATE, BEST, {})
    assert again.steps() == [1, 2]


def test_a_write_that_was_stopped_can_be_done_again(tmp_path, monkeypatch):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    save = checkpoints._manager.save

    def stopped(step, args):
        (tmp_path / f"{step}.orbax-checkpoint-tmp").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints._manager, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(1, STATE, BEST, {})
    monkeypatch.setattr(checkpoints._manager, "save", save)
    checkpoints.save(1, STATE, BEST, {})
    assert checkpoints.steps() == [1]


def test_a_folder_without_a_complete_checkpoint_has_none(tmp_path):
    assert not checkpoint.has_checkpoint(tmp_path / "missing")
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    assert not checkpoint.has_checkpoint(tmp_path)
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="train first"):
            checkpoint.load_best(folder)


def test_other_shapes_are_refused(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(1, STATE, BEST, {})
    with pytest.raises(InputError, match="does not fit this configuration") as caught:
        checkpoints.restore({**STATE, "more": jnp.zeros(3)})
    assert "\n" not in str(caught.value)


# --- Disks ---------------------------------------------------------------------------------------

FULL = {
    "file system": OSError(errno.ENOSPC, "No space left on device"),
    "quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
    "TensorStore": ValueError(
        'RESOURCE_EXHAUSTED: Error writing "w/0" in OCDBT database: Failed to write 172 bytes to file '
        "12: No space left on device [tensorstore_spec='{...}'] [os_error_code='28']"
    ),
}


@pytest.mark.parametrize("error", FULL.values(), ids=FULL)
def test_full_disk_while_writing_names_the_checkpoint_that_is_kept(error, tmp_path, monkeypatch):
    checkpoints = checkpoint.Checkpoints(tmp_path)

    def fail(*args, **kwargs):
        raise error

    save = checkpoints._manager.save
    monkeypatch.setattr(checkpoints._manager, "save", fail)
    with pytest.raises(InputError, match="There is none yet: free some space"):
        checkpoints.save(4, STATE, BEST, {})
    save(4, args=ocp.args.Composite(best=ocp.args.StandardSave(BEST)))
    with pytest.raises(InputError, match="checkpoint of step 4 is kept: free some space") as caught:
        checkpoints.save(5, STATE, BEST, {})
    assert "tensorstore" not in str(caught.value) and len(str(caught.value)) < 400
    assert checkpoint.Checkpoints(tmp_path).latest_step() == 4


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    checkpoints = checkpoint.Checkpoints(tmp_path)

    def broken(*args, **kwargs):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(checkpoints._manager, "save", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        checkpoints.save(5, STATE, BEST, {})


def test_too_little_space_is_said_at_the_start(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="MiB free, but checkpoints need"):
        checkpoint.check_free_space(tmp_path, STATE)
    checkpoint.check_free_space(tmp_path, {"w": jnp.zeros(5)})  # 4 copies of 20 bytes fit


def test_a_run_says_at_its_start_that_the_disk_is_full(
    finished_run, tmp_path, monkeypatch, cached_programs
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="0 MiB free.*free some space or choose another"):
        commands.run("train", toy_runs.config("real_only"), toy_runs.Flags(tmp_path / "run"))


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another --workdir"):
        checkpoint.Checkpoints(tmp_path / "file" / "checkpoints")


# --- Runs that were stopped ----------------------------------------------------------------------


def training(toy, finished, folder, method="end2end"):
    """A stage that begins where pre-training of the finished run ended."""
    config, data = toy
    gan = toy_runs.state_of(config, data, finished, "generator").inner.gan
    return train.Training(config, data, folder / method, method, gan)


def test_stopped_half_way_equals_not_stopped(
    finished_run, toy, tmp_path, monkeypatch, cached_programs
):
    """2n steps = n steps, stop, n steps; stopped where it hurts: after a step, before its validation.

    The 2n steps are those of the finished run.
    """

    def stop(*args):
        raise KeyboardInterrupt

    stage = training(toy, finished_run[0], tmp_path)
    monkeypatch.setattr(stage, "validate", stop)
    with pytest.raises(KeyboardInterrupt):
        stage.run()
    # The model of an interrupted run predicts, although nothing has been validated.
    assert 0 < toy_runs.best_of(tmp_path, "end2end")["step"] <= 10
    monkeypatch.undo()
    best = stage.run()
    toy_runs.assert_same_bits(jax.device_get(best), toy_runs.best_of(finished_run[0], "end2end"))
    states = [toy_runs.state_of(*toy, f, "end2end") for f in (tmp_path, finished_run[0])]
    toy_runs.assert_same_bits(*states)
    logs = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in summaries.read_log(path)]
        for path in (f / "end2end" / "log.jsonl" for f in (tmp_path, finished_run[0]))
    ]
    assert logs[0] == logs[1]


def test_full_disk_in_a_run_keeps_the_last_checkpoint_and_the_run_goes_on(
    finished_run, toy, tmp_path, monkeypatch, cached_programs
):
    save = ocp.CheckpointManager.save

    def fails_at_20(self, step, **kwargs):
        if step == 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(self, step, **kwargs)

    stage = training(toy, finished_run[0], tmp_path, "real_only")
    monkeypatch.setattr(ocp.CheckpointManager, "save", fails_at_20)
    with pytest.raises(InputError, match="checkpoint of step 10 is kept: free some space"):
        stage.run()
    assert np.isfinite(toy_runs.best_of(tmp_path, "real_only")["dice"])
    monkeypatch.undo()
    with (tmp_path / "real_only" / "log.jsonl").open("a") as log:
        log.write('{"stage": "train", "step": 2')  # and a line of the log that was cut short
    best = stage.run()
    toy_runs.assert_same_bits(jax.device_get(best), toy_runs.best_of(finished_run[0], "real_only"))
    lines = summaries.read_log(tmp_path / "real_only" / "log.jsonl")
    assert [line["step"] for line in lines] == [5, 10, 15, 20]


def test_killed_three_times_ends_with_the_same_bits(finished_run, programs, tmp_path):
    """While pre-training, before the first checkpoint of a method, and in the last method."""
    workdir = tmp_path / "killed"
    for log, step in (("generator", 15), ("separate", 5), ("end2end", 15)):
        with toy_runs.start(workdir, programs) as process:
            toy_runs.wait_for_step(process, workdir / log / "log.jsonl", step)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert toy_runs.run(workdir, programs).returncode == 0
    for method in toy_runs.METHODS:
        best = [toy_runs.best_of(folder, method) for folder in (workdir, finished_run[0])]
        toy_runs.assert_same_bits(*best)
        for test_set in ("test", "shifted"):
            cases = [toy_runs.cases_of(f, method, test_set) for f in (workdir, finished_run[0])]
            assert cases[0] == cases[1]
    for name in ("generator", *toy_runs.METHODS):
        steps = [line["step"] for line in summaries.read_log(workdir / name / "log.jsonl")]
        assert steps == [5, 10, 15, 20]
