"""Models of run folders: which one is loaded, and that it predicts as its network does."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import demo
from fewshotseg import files
from fewshotseg.errors import InputError
from fewshotseg.methods import METHODS
from fewshotseg.models import factory
from fewshotseg.results import flips, trained_models
from fewshotseg.results import predictor as predictors
from fewshotseg.results.choice import predicting_method
from fewshotseg.runs import checkpoint

TRAINED = ("real_only", "joint", "end2end")


@pytest.fixture(scope="module")
def segmenter():
    """A tiny network and weights."""
    config = demo.get_config("runlocal")
    spec = factory.Spec(num_classes=2, image_size=(32, 32), channels=3)
    network = factory.create_segmenter("unet", config.segmenter.unet.to_dict(), spec)
    return network, jax.device_get(network.init(jax.random.key(0)))


@pytest.fixture(scope="module")
def run(tmp_path_factory, segmenter):
    """A run folder; every method has its own weights, and end2end the worst validation Dice."""
    root = tmp_path_factory.mktemp("run")
    config = json.loads(demo.get_config("runlocal").to_json())
    files.write_json(root / "config.json", {**config, "methods": list(TRAINED)})
    files.write_json(root / "classes.json", ["lesion"])
    for number, (method, dice) in enumerate(zip(TRAINED, (0.7, 0.9, 0.3), strict=True)):
        weights = jax.tree.map(lambda w, n=number: w + 0.01 * n, segmenter[1])
        best = {
            "players": {"segmenter": weights},
            "dice": np.float32(dice),
            "step": np.int32(10 + number),
        }
        saved = checkpoint.Checkpoints(root / method / "checkpoints")
        saved.save(20, {"w": np.zeros(1)}, best, {})
        saved.close()
    return root


def _number(predictor, segmenter):
    """Which of the models `run` saved."""
    (weights,) = predictor.predict_probabilities.args
    difference = jax.tree.map(lambda a, b: float(np.mean(a - b)), weights, segmenter[1])
    return TRAINED[round(100 * np.mean(jax.tree.leaves(difference)))]


def test_the_configuration_chooses_and_no_score_does(run, segmenter):
    default = trained_models.load_predictor(run)
    assert _number(default, segmenter) == "end2end"  # the worst on the validation images
    assert "end2end of" in default.source and "the last of the run's methods" in default.source
    assert "step 12" in default.source
    for method in TRAINED:
        named = trained_models.load_predictor(run, method)
        assert _number(named, segmenter) == method and "named by predict.method" in named.source
        assert _number(trained_models.load_predictor(run / method), segmenter) == method


def test_the_run_may_name_a_method_when_it_is_trained(run, segmenter, tmp_path):
    config = json.loads((run / "config.json").read_text())
    (tmp_path / "run").symlink_to(run)  # same checkpoints, another configuration
    for method in ("real_only", "joint"):
        (tmp_path / "named" / method).mkdir(parents=True)
        (tmp_path / "named" / method / "checkpoints").symlink_to(run / method / "checkpoints")
    config["predict"]["method"] = "real_only"
    files.write_json(tmp_path / "named" / "config.json", config)
    files.write_json(tmp_path / "named" / "classes.json", ["lesion"])
    assert _number(trained_models.load_predictor(tmp_path / "named"), segmenter) == "real_only"
    assert _number(trained_models.load_predictor(tmp_path / "named", "joint"), segmenter) == "joint"
    with pytest.raises(InputError, match="predict.method is 'end2end', but trained .* joint"):
        trained_models.load_predictor(tmp_path / "named", "end2end")


def test_probabilities_are_those_of_the_network(run, segmenter):
    images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    found = trained_models.load_predictor(run / "real_only").predict_probabilities(images)
    logits = segmenter[0].apply(segmenter[1], images, None)
    assert found.shape == (2, 32, 32, 1)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-np.asarray(logits))), atol=1e-5)


def test_several_runs_are_averaged(run, segmenter, tmp_path):
    images = np.random.default_rng(1).uniform(-1, 1, (1, 32, 32, 3)).astype(np.float32)
    members = [trained_models.load_predictor(run / method) for method in TRAINED[:2]]
    mean = trained_models.load_ensemble([run / method for method in TRAINED[:2]])
    wanted = sum(member.predict_probabilities(images) for member in members) / 2
    np.testing.assert_allclose(mean.predict_probabilities(images), wanted, atol=1e-6)
    np.testing.assert_allclose(mean.network(images), wanted, atol=1e-6)
    assert "mean of real_only of" in mean.source and "; joint of" in mean.source
    config = json.loads((run / "config.json").read_text())
    config["evaluate"]["threshold"] = 0.3
    files.write_json(tmp_path / "config.json", config)
    files.write_json(tmp_path / "classes.json", ["lesion"])
    (tmp_path / "joint").symlink_to(run / "joint")
    with pytest.raises(InputError, match=r"differ in threshold \(0.3 and 0.5\)"):
        trained_models.load_ensemble([run, tmp_path])


def test_flips_are_averaged_where_they_belong(run):
    images = np.random.default_rng(2).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    plain = trained_models.load_predictor(run)
    assert plain.flip_axes == (-1,)  # as it was trained: others the network has never seen
    config = json.loads((run / "config.json").read_text())
    assert trained_models._flip_axes(config, "real_plain") == ()
    with pytest.raises(InputError, match="trained without mirror images"):
        flips.with_flips(dataclasses.replace(plain, flip_axes=()))
    found = flips.with_flips(plain)
    parts = [
        np.flip(plain.predict_probabilities(np.flip(images, axes)), axes) for axes in ((), (2,))
    ]
    np.testing.assert_allclose(found.predict_probabilities(images), np.mean(parts, 0), atol=1e-6)
    np.testing.assert_allclose(found.network(images), np.mean(parts, 0), atol=1e-5)
    assert abs(parts[0] - parts[1]).max() > 1e-3


def test_a_temperature_divides_the_logits(run, segmenter):
    config = json.loads((run / "config.json").read_text())
    images = np.random.default_rng(3).uniform(-1, 1, (1, 32, 32, 3)).astype(np.float32)
    logits = np.asarray(segmenter[0].apply(segmenter[1], images, None))
    cool = predictors.create_predictor(config, segmenter[1], ["lesion"], "test", 2.0)
    for function in (cool.predict_probabilities, cool.network):
        np.testing.assert_allclose(function(images), 1 / (1 + np.exp(-logits / 2)), atol=1e-5)


def test_the_temperature_of_a_run_is_read(run, tmp_path):
    for name in ("config.json", "classes.json"):
        (tmp_path / name).symlink_to(run / name)
    (tmp_path / "real_only").mkdir()
    (tmp_path / "real_only" / "checkpoints").symlink_to(run / "real_only" / "checkpoints")
    for step, wanted in ((10, 1.7), (9, 1.0)):  # the weights are those of step 10
        files.write_json(
            tmp_path / "real_only" / "calibration.json", {"step": step, "temperature": 1.7}
        )
        assert trained_models.load_predictor(tmp_path, "real_only").temperature == wanted


def test_folders_without_a_model(run, tmp_path):
    with pytest.raises(InputError, match="not the folder of a run"):
        trained_models.load_predictor(tmp_path)
    files.write_json(tmp_path / "config.json", json.loads((run / "config.json").read_text()))
    with pytest.raises(InputError, match="nothing is trained here yet: run --mode=train first"):
        trained_models.load_predictor(tmp_path)
    with pytest.raises(InputError, match=r"is not the folder of joint: give --workdir="):
        trained_models.load_predictor(run / "real_only", "joint")


def test_rule_of_choice():
    methods = ("real_only", "separate", "end2end")
    assert predicting_method("", methods, methods)[0] == "end2end"
    method, why = predicting_method("", methods, ("real_only",))
    assert method == "real_only" and "end2end is not yet" in why
    # Trained with other methods than the configuration lists now: the table's order.
    assert predicting_method("", (), ("end2end", "real_only"))[0] == list(METHODS)[-1]
    with pytest.raises(InputError, match="nothing is trained"):
        predicting_method("", methods, ())
