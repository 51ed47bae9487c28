"""The comparison of estimators, on a tiny phantom run."""

import csv
import shlex
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import toy_config
from PIL import Image

from configs import demo
from fewshotseg import errors
from fewshotseg.methods import METHODS
from fewshotseg.models import factory
from fewshotseg.runs import folder
from fewshotseg.training import (
    build,
    build_pairs,
    build_parts,
    compare_estimators,
    config_check,
    estimators,
    train,
)


def _config():
    config = toy_config.get_config()
    config.pretrain.num_steps = 2
    config.checkpoint_every = 2
    config.diagnose.estimators = ("truncated", "evolution_strategies")
    config.diagnose.inner_steps = (2,)
    config.diagnose.repeats, config.diagnose.draws = 1, 3
    config.outer.evolution_strategies.num_pairs = 1
    return config


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Rows and folder of a comparison at K = 2, after pre-training, of networks that compile fast."""
    config, workdir = _config(), tmp_path_factory.mktemp("compare")
    row = build_pairs.FamilyRow(tiny.paint_family, {"generator": tiny.create_painter})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(build_pairs.FAMILIES, "gan", row)
        patch.setattr(factory, "create_segmenter", tiny.create_pixel_segmenter)
        folder.write(config, workdir)
        experiment = build.build(config)
        train.run_stage(experiment, experiment.pretraining(), workdir / "generator")
        return compare_estimators.compare_estimators(config, workdir), workdir


def test_the_exact_one_is_the_reference_without_being_asked_for(compared):
    exact, truncated, _ = compared[0]
    assert (exact.label, truncated.label) == ("unrolled", "truncated")
    assert exact.cosine == pytest.approx(1.0, abs=1e-6)
    assert exact.norm == pytest.approx(1.0, abs=1e-6)
    assert 0.0 < truncated.cosine < 0.99999  # it looks one step back of two
    assert truncated.norm < 0.99
    assert truncated.loss == pytest.approx(exact.loss, rel=1e-4)
    assert exact.draws == truncated.draws == 1 and exact.cosine_spread == 0.0


def test_noise_is_drawn_several_times(compared):
    noisy = compared[0][2]
    assert noisy.label == "evolution_strategies" and noisy.draws == 3
    assert noisy.cosine_spread > 0.01  # one pair for 3 outer variables
    assert noisy.loss == pytest.approx(compared[0][0].loss, rel=1e-4)


def test_time_and_memory_are_measured(compared):
    exact, truncated, _ = compared[0]
    assert exact.milliseconds > 0 and exact.megabytes > truncated.megabytes > 0


def test_table_plot_and_command_are_written(compared):
    rows, workdir = compared
    with (workdir / "hypergradient" / "estimators.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [(r["estimator"], r["gradient"], int(r["K"])) for r in written] == [
        (r.estimator, r.gradient, r.K) for r in rows
    ]
    assert float(written[0]["cosine"]) == rows[0].cosine
    with Image.open(workdir / "hypergradient" / "estimators.png") as image:
        assert image.width > 600
    table = compare_estimators.table(rows)
    assert table.count("\n") == len(rows) + 1 and "| 2 | truncated |" in table
    page = (workdir / "hypergradient" / "estimators.md").read_text()
    assert shlex.join(sys.argv[1:]) in page and table in page
    assert "step 0 of 20" in page


def test_label_names_the_gradient_where_it_is_not_the_default():
    row = compare_estimators.Row("sama", "finite_difference", 1, *[0.0] * 8)
    assert row.label == "sama+finite_difference"
    assert estimators.parse_choice(row.label) == ("sama", "finite_difference")


@pytest.mark.parametrize(
    ("step", "most", "remedy"),
    [
        (96, 5, r"at step 96 of 100, .* asks for 5 more: compare at most 4 .* before step 95"),
        (100, 1, r"at step 100 of 100, .* asks for 1 more: train a run .* before step 99"),
    ],
)
def test_steps_past_the_end_are_refused(step, most, remedy):
    with pytest.raises(errors.InputError, match=remedy):
        compare_estimators.check_steps_left(step, most, 100)
    compare_estimators.check_steps_left(100 - most, most, 100)


def test_a_misspelt_workdir_trains_nothing(tmp_path):
    workdir = tmp_path / "mispelt"
    with pytest.raises(errors.InputError, match="mispelt is not the folder of a run"):
        compare_estimators.compare_estimators(_config(), workdir)
    assert not workdir.exists()


def test_a_run_that_has_not_got_to_its_generator_trains_nothing(tmp_path):
    config = _config()
    folder.write(config, tmp_path)
    with pytest.raises(errors.InputError, match=r"generator is not trained yet \(step 0 of 2\)"):
        compare_estimators.compare_estimators(config, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "environment.json"]


def test_meter_counts_arrays_results_and_temporaries():
    meter = compare_estimators.Meter()
    double = meter.compile(lambda x: jnp.concatenate([x, jnp.sin(x)]))
    x = jnp.ones(2**18)  # 1 MiB
    double(x)
    assert meter.peak == 0  # not metering yet
    meter.metering = True
    double(x)
    assert 3 * 2**20 <= meter.peak < 5 * 2**20  # argument and result
    assert meter.compile_seconds > 0


def test_repeated_shapes_compile_once():
    meter, traced = compare_estimators.Meter(), []

    def function(x, k):
        traced.append(x.shape)
        return x + k

    compiled = meter.compile(function)
    for k in range(3):
        assert float(compiled(jnp.float32(1.0), k)) == 1 + k
    assert compiled(jnp.ones(2), 0).shape == (2,)
    assert traced == [(), (2,)]


@pytest.mark.parametrize(
    ("block", "field", "value", "message"),
    [
        (
            "diagnose",
            "estimators",
            ("unrolled", "newton"),
            "diagnose.estimators: 'newton' is none of 'unrolled'",
        ),
        (
            "diagnose",
            "estimators",
            ("one_step+backward",),
            "diagnose.estimators: 'backward' is none of 'mixed', 'reverse'",
        ),
        (
            "diagnose",
            "estimators",
            ("forward_mode+finite_difference",),
            "diagnose.estimators: the estimator 'forward_mode' is exact .*: take 'reverse'",
        ),
        ("diagnose", "inner_steps", (0, 1), r"diagnose.inner_steps is \(0, 1\): use at least 1"),
        ("diagnose", "repeats", 0, "diagnose.repeats is 0: use at least 1"),
        ("diagnose", "draws", 0, "diagnose.draws is 0: use at least 1"),
        ("outer", "estimator", "newton", "outer.estimator is 'newton': use one of 'unrolled', "),
        ("outer", "gradient", "backward", "outer.gradient is 'backward': use one of 'mixed', "),
    ],
)
def test_bad_fields_are_named(block, field, value, message):
    config = demo.get_config("runlocal")
    config[block][field] = value
    with pytest.raises(errors.InputError, match=message):
        config_check.check_config(config)


@pytest.mark.parametrize("gradient", estimators.GRADIENTS)
def test_every_gradient_can_be_chosen_by_one_field(gradient):
    config = demo.get_config(f"runlocal,estimator=sama+{gradient}")
    config_check.check_config(config)
    spec = build_parts.create_spec(config, 2)
    parts = build_parts.create_parts(config, spec, METHODS["end2end"], "train")
    value_and_grad = parts.options["gradient"](lambda p, outer, data: (0.5 * p**4 * outer, {}))

    def cross(p, outer):
        return jax.grad(lambda o: value_and_grad(p, o, None)[1])(outer)

    # d/do of the gradient 2 p^3 o; the difference over the radius 0.01 is 2 p (p^2 + 1e-4) instead
    exact = 2 * 0.5**3
    shifted = exact + (2 * 0.5 * 1e-4 if gradient == "finite_difference" else 0.0)
    found = float(cross(jnp.float32(0.5), jnp.float32(3.0)))
    assert found == pytest.approx(shifted, abs=1e-5)


@pytest.mark.parametrize("loop", ["host", "scan"])
@pytest.mark.parametrize("name", estimators.ESTIMATORS)
def test_every_estimator_can_be_chosen_by_one_field(name, loop):
    """The fields of the default configuration fit its function, and it estimates."""
    config = demo.get_config(f"runlocal,estimator={name}")
    if name == "conjugate_gradient":
        with pytest.raises(errors.InputError, match="symmetric Hessian: set outer.through_gen"):
            config_check.check_config(config)
        config.outer.through_generator_training = False
    if name == "pes":
        with pytest.raises(
            errors.InputError, match="set outer.every to outer.num_inner_steps=1, or"
        ):
            config_check.check_config(config)
        config.outer.every = config.outer.num_inner_steps
    config_check.check_config(config)
    grad = _toy_estimate(name, build_parts.outer_fields(config, name), loop)
    assert np.isfinite(grad) and grad != 0


def _toy_estimate(name, fields, loop="auto"):
    """Of L = (w - A)^2 / 2, V = w^2 / 2 from w = 1 at A = 3, one step of gradient descent at 0.1."""
    equation = estimators.hypergradient.Stationarity(
        lambda w: w, lambda _, w: w, lambda w, a, *_: w - a, lambda g, w: -0.1 * g
    )
    estimate = estimators.create_estimator(
        name,
        fields,
        lambda w, a, batch, rng: (w - 0.1 * (w - a), {}),
        lambda w, a, batch: (0.5 * w**2, {}),
        equation,
        loop=loop,
    )
    keys = jax.random.split(jax.random.key(0), 1)
    theta, state = jnp.float32(3.0), jnp.float32(1.0)
    memory = estimators.start(name, fields, theta, state)
    memory = (memory,) if estimators.ESTIMATORS[name].start else ()
    return float(estimate(theta, state, None, None, keys, *memory).grad)


def test_fields_reach_the_estimator():
    """dV/dA = alpha w_1 for `identity`, w_1 = 1.2."""
    for alpha in (0.5, 2.0):
        found = _toy_estimate("identity", {"step_size": alpha})
        assert found == pytest.approx(1.2 * alpha, rel=1e-6)


def test_an_estimator_is_a_function_and_a_row(monkeypatch):
    """The whole seam, with one that returns twice the direct term and has a field."""

    def doubled(inner_step, outer_loss, *, factor, axis_name=None):
        exact = estimators.hypergradient.unrolled(inner_step, outer_loss, axis_name=axis_name)

        def estimate(*problem):
            result = exact(*problem)
            return result._replace(grad=factor * result.grad)

        return estimate

    monkeypatch.setitem(estimators.ESTIMATORS, "doubled", estimators.Estimator(doubled))
    single = _toy_estimate("unrolled", {})
    assert single == pytest.approx(0.1 * 1.2, rel=1e-6)
    for loop in ("host", "scan"):
        assert _toy_estimate("doubled", {"factor": 2.0}, loop) == pytest.approx(2 * single)
    with pytest.raises(ValueError, match="sama needs the inner problem as an equation"):
        estimators.create_estimator("sama", {}, None, None)
