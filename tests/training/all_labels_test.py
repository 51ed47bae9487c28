"""data.validate='none': all labelled images train, and no number looks as if an image had been held out."""

import json

import fewshot_table
import jax
import numpy as np
import pytest
import tiny
import toy_config

from fewshotseg import errors
from fewshotseg.models import factory
from fewshotseg.results import trained_models
from fewshotseg.results.report import inputs, page
from fewshotseg.runs import checkpoint, folder
from fewshotseg.training import (
    build,
    build_data,
    build_review,
    build_search,
    compare_estimators,
    config_check,
    recorder,
    train,
)


def _config(methods="real_only+colour_transfer", **fields):
    config = toy_config.get_config(f"method={methods}")
    config.data.validate = "none"
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(autouse=True, scope="module")
def pixels():
    """A segmenter of a few numbers: no test here is about networks, and most of the time is compiling."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factory, "create_segmenter", tiny.create_pixel_segmenter)
        yield


@pytest.fixture(scope="module")
def experiment():
    config = _config()
    config_check.check_config(config)
    return build.build(config)


@pytest.fixture(scope="module")
def run(tmp_path_factory, experiment):
    """A run with and one without synthetic pairs, from its start to its report."""
    workdir = tmp_path_factory.mktemp("all")
    folder.write(_config(), workdir)
    train.train_and_evaluate(experiment, workdir)
    return workdir


def test_the_images_that_would_validate_train_like_the_others(experiment):
    divided = build_data.create_data(_config(**{"data.validate": "held_out"}))
    data = experiment.data
    assert len(divided.split.validation) == 2 and data.validation == {}
    assert data.split.train == (*divided.split.train, *divided.split.validation)
    assert data.split.test == divided.split.test and data.split.validation == ()
    for name, values in data.train.items():
        whole = np.concatenate([divided.train[name], divided.validation[name]])
        np.testing.assert_array_equal(values, whole)


def test_a_search_is_the_same_one(monkeypatch):
    """All labelled images are held out once in it, whatever becomes of them afterwards."""
    asked = []

    def note(step, loss, init, draw, arrays, folds, theta, **options):
        asked.append((arrays, folds, jax.random.key_data(options["key"])))

    monkeypatch.setattr(build_search.cross_fit, "create_problem", note)
    for validate in ("held_out", "none"):
        config = _config("mixture_chosen", **{"data.validate": validate, "cross_fit.num_folds": 4})
        build.build(config).search("mixture_chosen")
    jax.tree.map(np.testing.assert_array_equal, *asked)


def test_nothing_is_measured_on_images_that_were_trained_on(run):
    for method in ("real_only", "colour_transfer"):
        records = inputs.read_log(run / method / "log.jsonl")
        assert records[-1]["step"] == 20 and "segmenter/real_loss" in records[-1]
        assert not [key for record in records for key in record if "validation" in key]
        assert not (run / method / "calibration.json").exists()
    found = trained_models.load_predictor(run)
    assert found.temperature == 1.0
    assert "step 20, trained on all labelled images" in found.source


def test_a_run_says_what_it_trained_on(run):
    split = json.loads((run / "splits.json").read_text())
    assert len(split["train"]) == 8 and split["validation"] == []
    assert "no case is held out to validate: all 8 labelled cases train" in split["notes"]
    assert inputs.read_run(run).labelled == "8 (all training)"
    text = page.build_report([run], run / "report.html").read_text()
    assert "8 (all training)" in text and "Dice on the validation images" not in text
    assert "none was left to measure Dice on" in text
    assert "No image was held out to fit a temperature to" in text


def test_rows_of_the_benchmark_say_it(run):
    cases, runs = fewshot_table.read_runs([run])
    assert {row["method"] for row in cases} == {
        "real_only on all labels",
        "colour_transfer on all labels",
    }
    assert {row["labels"] for row in cases} == {8}
    assert all(row["validation_dice"] is None for row in runs)


class _Killed(Exception):
    pass


def test_killed_goes_on_bit_for_bit(run, experiment, tmp_path, monkeypatch):
    save = recorder.Recorder.save

    def save_and_die(self, turn):
        save(self, turn)
        raise _Killed

    folder.write(_config(), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(recorder.Recorder, "save", save_and_die)
        with pytest.raises(_Killed):
            train.train_and_evaluate(experiment, tmp_path)
    stage = experiment.training("real_only")
    train.run_stage(experiment, stage, tmp_path / "real_only")
    steps = [record["step"] for record in inputs.read_log(tmp_path / "real_only" / "log.jsonl")]
    assert steps == [5, 10, 15, 20]
    models = [
        checkpoint.load_model(path / "real_only" / "checkpoints")[0] for path in (run, tmp_path)
    ]
    jax.tree.map(np.testing.assert_array_equal, *models)


@pytest.mark.parametrize(
    ("methods", "fields", "words"),
    [
        ("end2end", {}, "data.validate is 'none', and end2end differentiates the loss on images"),
        ("real_only+mixture_learned", {}, "and mixture_learned differentiates"),
        ("real_only", {"train.select": "best"}, "train.select is 'best': it looks at images held"),
        ("mixture", {"feedback.file": "r.jsonl"}, "feedback.betas is .*: images held out choose"),
        ("real_only", {"data.num_train": 0}, "data.num_train is 0 and data.num_validation 2"),
    ],
)
def test_what_looks_at_images_held_out_is_refused(methods, fields, words):
    with pytest.raises(errors.InputError, match=words):
        config_check.check_config(_config(methods, **fields))


def test_what_does_not_look_at_them_is_not_refused():
    config_check.check_config(_config("separate+joint+mixture_searched"))
    config_check.check_config(_config("end2end", **{"outer.variables": ()}))
    config_check.check_config(
        _config("mixture", **{"feedback.file": "r.jsonl", "feedback.betas": (0.3,)})
    )
    config_check.check_config(_config(**{"data.num_validation": 0}))


def test_modes_that_look_at_them_are_refused(tmp_path):
    with pytest.raises(errors.InputError, match="hypergradient looks at images held out"):
        compare_estimators.compare_estimators(_config(), tmp_path)
    with pytest.raises(errors.InputError, match="review looks at images held out"):
        build_review.create_session(_config(), tmp_path)
