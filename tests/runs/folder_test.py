"""What a run folder says about itself."""

import json

import jax
import numpy as np
import pytest

from configs import demo
from fewshotseg import files
from fewshotseg.errors import InputError
from fewshotseg.runs import checkpoint
from fewshotseg.runs import folder as run_files


@pytest.fixture
def config():
    return demo.get_config("runlocal")


def write_trained(config, workdir, methods=("real_only",)):
    """A run with a checkpoint, and an evaluation, of every method."""
    run_files.write(config, workdir)
    for method in methods:
        checkpoints = checkpoint.Checkpoints(workdir / method / "checkpoints")
        checkpoints.save(20, {"w": np.ones(2)}, {"w": np.ones(2)}, {})
        checkpoints.close()
        summary = workdir / method / "evaluation" / "test" / "summary.json"
        summary.parent.mkdir(parents=True)
        summary.write_text("{}")


def test_the_configuration_can_be_read_back(config, tmp_path):
    run_files.write(config, tmp_path)
    again = run_files.read_config(tmp_path)
    assert again == json.loads(config.to_json())
    assert again["name"] == "demo" and again["methods"] == list(config.methods)
    run_files.write(config, tmp_path)  # the same once more is welcome


@pytest.mark.parametrize(
    "path, value",
    [
        ("seed", 1),
        ("train.num_steps", 19),
        ("pretrain.num_steps", 21),
        ("data.phantom.shifted", True),
        ("outer.variables", ("architecture", "synthetic_weight")),
        ("optim.learning_rate", 1e-4),
    ],
)
def test_another_configuration_is_refused_and_the_field_named(path, value, config, tmp_path):
    write_trained(config, tmp_path)
    config.update_from_flattened_dict({path: value})
    with pytest.raises(InputError, match=rf"other settings \({path}\): .*another --workdir"):
        run_files.write(config, tmp_path)
    with pytest.raises(InputError, match=path):
        run_files.check_same(config, tmp_path)
    assert run_files.read_config(tmp_path) == json.loads(demo.get_config("runlocal").to_json())


def test_a_field_that_one_side_lacks_is_named(config, tmp_path):
    write_trained(config, tmp_path)
    with config.unlocked():
        config.train.more = 1
    with pytest.raises(InputError, match=r"train\.more"):
        run_files.write(config, tmp_path)


def test_what_does_not_change_the_training_may_change(config, tmp_path):
    write_trained(config, tmp_path)
    config.methods = ("joint",)
    config.evaluate.batch_size = 3
    config.compilation_cache = "elsewhere"
    config.test_sets.shifted.phantom.num_cases = 9
    run_files.write(config, tmp_path)
    assert run_files.read_config(tmp_path)["methods"] == ["joint"]


def test_nothing_binds_before_something_is_trained(config, tmp_path):
    run_files.write(config, tmp_path)
    (tmp_path / "generator" / "checkpoints" / "20.orbax-checkpoint-tmp-1").mkdir(parents=True)
    config.data.folder.images_dir = "images"
    run_files.write(config, tmp_path)  # the first start had a mistyped folder, say
    assert run_files.read_config(tmp_path)["data"]["folder"]["images_dir"] == "images"


def test_trials_of_a_search_bind_before_the_first_checkpoint(config, tmp_path):
    run_files.write(config, tmp_path)
    assert not run_files.is_begun(tmp_path)
    (tmp_path / "mixture_searched").mkdir()
    (tmp_path / "mixture_searched" / "search.json").write_text('{"trials": []}')
    assert run_files.is_begun(tmp_path) and not run_files.is_trained(tmp_path)
    config.seed += 1
    with pytest.raises(InputError, match="other settings .seed"):
        run_files.write(config, tmp_path)


def test_training_goes_on_with_more_steps(config, tmp_path, capsys):
    write_trained(config, tmp_path)
    config.train.num_steps = 40
    with pytest.raises(InputError, match=r"train\.num_steps.*above 20"):
        run_files.check_same(config, tmp_path)  # to evaluate, say
    run_files.write(config, tmp_path)
    said = capsys.readouterr().out
    assert "grows from 20 to 40" in said and "cosine schedule of optim now ends at 40" in said
    assert run_files.read_config(tmp_path)["train"]["num_steps"] == 40
    assert json.loads((tmp_path / "continued.json").read_text()) == [{"from": 20, "to": 40}]
    assert not list(tmp_path.glob("*/evaluation/*/summary.json"))
    run_files.write(config, tmp_path)  # the same once more says nothing
    assert not capsys.readouterr().out
    config.train.num_steps = 60
    run_files.write(config, tmp_path)
    history = json.loads((tmp_path / "continued.json").read_text())
    assert history == [{"from": 20, "to": 40}, {"from": 40, "to": 60}]


def test_with_constant_schedules_more_steps_are_steps_in_one_go(config, tmp_path, capsys):
    config.optim.schedule = "constant"
    write_trained(config, tmp_path)
    config.train.num_steps = 40
    run_files.write(config, tmp_path)
    assert "that of 40 steps in one go" in capsys.readouterr().out


def test_an_outer_step_that_was_cut_short_is_told(config, tmp_path, capsys):
    config.optim.schedule = "constant"
    config.outer.num_inner_steps = config.outer.every = 8  # of which 20 is no multiple
    write_trained(config, tmp_path)
    config.train.num_steps = 40
    run_files.write(config, tmp_path)
    assert "an outer step was cut short at 20" in capsys.readouterr().out


def test_methods_of_one_run_have_equal_steps(config, tmp_path):
    write_trained(config, tmp_path, ("real_only", "end2end"))
    config.train.num_steps, config.methods = 40, ("real_only", "joint")
    with pytest.raises(InputError, match="holds end2end, trained for 20 steps"):
        run_files.write(config, tmp_path)
    assert run_files.read_config(tmp_path)["train"]["num_steps"] == 20
    assert len(list(tmp_path.glob("*/evaluation/*/summary.json"))) == 2


def test_environment_names_versions_and_device(config, tmp_path):
    run_files.write(config, tmp_path)
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["versions"]["jax"] == jax.__version__
    assert str(jax.local_device_count()) in environment["device"]
    assert set(environment) >= {"python", "platform", "git_revision", "command"}


def test_a_missing_package_is_no_fault(monkeypatch):
    monkeypatch.setattr(run_files, "PACKAGES", ("no-such-package",))
    assert run_files.environment()["versions"] == {"no-such-package": "not installed"}


def test_no_git_is_no_fault(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert run_files.environment()["git_revision"] == "unknown"


def test_an_installed_copy_does_not_name_the_repository_around_it(monkeypatch, tmp_path):
    monkeypatch.setattr(run_files, "__file__", str(tmp_path / "fewshotseg" / "runs" / "folder.py"))
    assert run_files.environment()["git_revision"] == "none"


@pytest.mark.parametrize("text", [None, "", '{"name": "de'])
def test_not_the_folder_of_a_run(text, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match="not the folder of a run: config.json is missing or dam"):
        run_files.read_config(tmp_path)
    with pytest.raises(InputError, match="no classes.json: train first"):
        run_files.read_class_names(tmp_path)


def test_class_names(tmp_path):
    files.write_json(tmp_path / "classes.json", ["vessel", "tool"])
    assert run_files.read_class_names(tmp_path) == ["vessel", "tool"]


def test_only_allowed_cores_are_counted(monkeypatch):
    monkeypatch.setattr(run_files.os, "sched_getaffinity", lambda pid: {3}, raising=False)
    monkeypatch.setattr(run_files.os, "cpu_count", lambda: 64)
    assert run_files.allowed_cores() == 1 and "with 1 cores" in run_files.device()
    monkeypatch.delattr(run_files.os, "sched_getaffinity")
    assert run_files.allowed_cores() == 64
