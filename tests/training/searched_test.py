"""Methods that search first: their trials, and the training with what was found."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import demo
from fewshotseg import errors
from fewshotseg.methods import METHODS, resolve
from fewshotseg.models import factory
from fewshotseg.results import predictor
from fewshotseg.training import build, build_parts, build_search, config_check, search, train


def _config(**fields):
    config = demo.get_config("runlocal,method=mixture_chosen")
    config.cross_fit.num_folds = 4
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(scope="module")
def experiment():
    return build.build(_config())


def test_a_search_is_over_all_labelled_cases_and_says_what_it_moves(experiment):
    problem = experiment.search("mixture_chosen")
    assert problem.num_folds == 4 and problem.num_starts == 1
    np.testing.assert_array_equal(problem.theta["mixture"], np.zeros(4))
    shares = problem.describe(problem.theta)["mixture"]
    assert shares == dict.fromkeys(("augmented", "copy_paste", "cutmix", "colour_transfer"), 0.25)
    assert experiment.search_fields["num_steps"] == 20  # those of the training
    assert search.most_trials("choice", experiment.search_fields) == 5 * 4


def test_the_segmenter_of_a_search_is_a_cheaper_one():
    config = _config()
    build_search.make_cheaper(config.segmenter, 0.25, True)
    assert config.segmenter.efficient_unet.widths == (32, 24, 16, 8, 8)
    assert config.segmenter.efficient_unet.trained == "frozen"
    assert config.segmenter.unet.width == 4  # that of the toy experiment is less than 8 already
    config.segmenter.efficient_unet.weights, config.segmenter.efficient_unet.trained = (
        "",
        "finetune",
    )
    build_search.make_cheaper(config.segmenter, 0.25, True)
    assert (
        config.segmenter.efficient_unet.trained == "finetune"
    )  # drawn weights learn, or are noise


def test_a_trial_may_be_shorter_than_the_warm_up_and_folds_know_the_look_alikes_of_the_run(
    monkeypatch,
):
    fields = {"cross_fit.num_steps": 3, "optim.warmup_steps": 10, "data.look_alike": 1.0}
    seen = []
    create, divide = build_parts.create_parts, build_search.folds.divide
    monkeypatch.setattr(
        build_parts,
        "create_parts",
        lambda config, *args, **more: (
            seen.append(config.optim.warmup_steps) or create(config, *args, **more)
        ),
    )
    monkeypatch.setattr(
        build_search.folds, "divide", lambda *args: seen.append(args[4]) or divide(*args[:4])
    )
    experiment = build.build(_config(**fields))
    assert experiment.search("mixture_chosen").num_steps == 3
    assert seen == [2, 1.0]


def test_the_training_keeps_the_theta_that_was_found(experiment):
    found = {"mixture": np.array([2.0, -2.0, 0.0, 1.0], np.float32)}
    stage = experiment.training("mixture_chosen", found)
    state = stage.init(None)
    np.testing.assert_array_equal(state.theta["mixture"], found["mixture"])
    shares = np.asarray(stage.use(state.theta)["mixture"])
    logits = 4 * np.tanh(found["mixture"] / 4)
    np.testing.assert_allclose(shares, np.exp(logits) / np.exp(logits).sum(), rtol=1e-6)
    assert all(stage.kind(step) == "inner step" for step in range(20))


def test_a_search_is_on_the_disk_and_shown(tmp_path):
    asked = []

    def create(name, report):
        def run(theta, fold, start, differentiate):
            report(fold, start, 0)
            report(fold, start, 7)
            asked.append((fold, start))
            return search.Trial(float(np.sum((theta["mixture"] - 12.0) ** 2)), None)

        return search.Problem({"mixture": np.zeros(2, np.float32)}, 2, 1, run)

    method = types.SimpleNamespace(search="choice")
    fields = {"num_steps": 7, "num_folds": 2, "num_starts": 1, "num_components": 2, "level": 0.1}
    fields |= {"num_rounds": 1, "num_candidates": 1}
    made = types.SimpleNamespace(methods={"m": method}, search=create, search_fields=fields, seed=0)
    theta = train.search_theta(made, "m", tmp_path)
    assert len(asked) == 6 and search.num_done(tmp_path / "search.json") == 6
    again = train.search_theta(made, "m", tmp_path)
    assert len(asked) == 6
    np.testing.assert_array_equal(theta["mixture"], again["mixture"])


def test_what_is_handed_over_is_trained_first_among_its_like():
    chosen = ("real_plain", "end2end", "mixture", "real_only")
    methods = {name: resolve(METHODS[name], ("augmented",), "generator") for name in chosen}
    assert [name for name, _ in train._in_order(methods)] == [
        "real_only", "real_plain", "mixture", "end2end"
    ]  # fmt: skip


def test_a_method_may_have_a_segmenter_of_its_own():
    config = _config()
    config.segmenter.name, config.segmenter.efficient_unet.weights = "efficient_unet", ""
    spec = build_parts.create_spec(config, 2)
    for name, there in (("real_only", True), ("unet_only", False)):
        params = jax.eval_shape(
            build_parts.create_networks(config, spec, METHODS[name])["segmenter"].init,
            jax.random.key(0),
        )
        assert ("encoder" in params) == there, name
        made = predictor.create_predictor(config.to_dict(), {}, ["a"], "test", method=name)
        assert made.segmenter == ("efficient_unet" if there else "unet")


def test_a_generator_that_has_seen_all_cases_is_refused():
    config = _config()
    config.pairs.sources = ("augmented", "generator")
    with pytest.raises(errors.InputError, match="pairs.sources.*leave out 'generator'"):
        config_check.check_config(config)


def test_variables_that_make_no_difference_are_refused():
    config = _config()
    config.cross_fit.variables = ("architecture",)
    with pytest.raises(errors.InputError, match="cross_fit.variables.*'mixture'"):
        config_check.check_config(config)


def _pooled_problem(monkeypatch, number, encode):
    """A search whose U-Net takes what `encode` makes of images in their place."""
    create = build_parts.create_networks

    def networks(*args):
        made = create(*args)
        net = made["segmenter"]

        def apply(params, images, keys):
            return net.apply(params, images[0] if isinstance(images, tuple) else images, keys)

        return made | {"segmenter": net._replace(apply=apply, encode=encode)}

    monkeypatch.setattr(build_parts, "create_networks", networks)
    fields = {"cross_fit.pool_batches": number, "cross_fit.num_steps": 3}
    problem = build.build(_config(**fields)).search("mixture_chosen")
    monkeypatch.undo()
    return problem


def test_a_trial_on_a_pool(monkeypatch):
    """As many batches as the pool has are mixed; each is encoded once, not once for every step."""
    seen = []

    def encode(params, images):
        jax.debug.callback(lambda: seen.append(1))
        return (images,)

    losses = []
    for number in (1, 2, 2):
        problem = _pooled_problem(monkeypatch, number, encode)
        seen.clear()
        problem.warm_up(False)
        losses.append(problem.run(problem.theta, 0, 0, False).loss)
        jax.effects_barrier()
        # Real and synthetic images; the trial has those of the warm-up.
        assert len(seen) == 2 * number
    assert np.isfinite(losses).all() and losses[1] == losses[2] != losses[0]


def test_without_a_frozen_encoder_there_is_no_pool(monkeypatch):
    losses = []
    for number in (0, 2):
        problem = _pooled_problem(monkeypatch, number, None)
        losses.append(problem.run(problem.theta, 0, 0, False).loss)
    assert losses[0] == losses[1]


def test_a_pool_cannot_hold_pairs_that_move():
    config = _config(**{"cross_fit.pool_batches": 2})
    config_check.check_config(config)
    config.cross_fit.variables = ("mixture", "blend_width")
    with pytest.raises(errors.InputError, match="cross_fit.pool_batches is 2.*'synthetic_weight'"):
        config_check.check_config(config)


def test_a_network_without_its_frozen_parts_computes_the_same():
    net = factory.Network(
        init=lambda key: {"a": jnp.full(2, 3.0), "b": jax.random.normal(key, (2,))},
        apply=lambda params, x: params["a"] * x + params["b"],
        rates={"a": 0.0},
    )
    params = net.init(jax.random.key(0))
    rest = factory.without_frozen(net, params)
    assert set(rest.init(jax.random.key(0))) == {"b"} and not rest.rates
    left = {"b": params["b"]}
    np.testing.assert_array_equal(rest.apply(left, 2.0), net.apply(params, 2.0))
