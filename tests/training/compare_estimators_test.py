"""The comparison of estimators, on a tiny phantom run."""

import csv
import functools

import jax
import jax.numpy as jnp
import pytest
from PIL import Image

from configs import demo
from fewshotseg import errors
from fewshotseg.training import build as experiment
from fewshotseg.training import compare_estimators as diagnose
from fewshotseg.training import config_check
from fewshotseg.training import estimators as estimator_factory


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Rows and folder of a comparison at K = 2."""
    config = demo.get_config("runlocal")
    config.data.image_size = 16
    config.segmenter.num_levels = config.discriminator.num_levels = 1
    config.generator.num_levels = 2
    config.pretrain.num_steps = 2
    config.checkpoint_every = 2
    config.diagnose.estimators = ("truncated", "mixed_mode")
    config.diagnose.inner_steps = (2,)
    config.diagnose.repeats = 1
    folder = tmp_path_factory.mktemp("diagnose")
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)  # compiling is all that takes time
    try:
        return diagnose.compare_estimators(config, folder), folder
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def test_the_exact_one_is_the_reference(compared):
    exact, truncated = compared[0]
    assert (exact.estimator, truncated.estimator) == ("mixed_mode", "truncated")
    assert exact.cosine == pytest.approx(1.0, abs=1e-6)
    assert exact.norm == pytest.approx(1.0, abs=1e-6)
    assert 0.0 < truncated.cosine < 0.9999  # it looks one step back of two
    assert truncated.loss == pytest.approx(exact.loss, rel=1e-4)


def test_time_and_memory_are_measured(compared):
    exact, truncated = compared[0]
    assert exact.milliseconds > 0 and exact.megabytes > truncated.megabytes > 0


def test_table_and_plot_are_written(compared):
    rows, folder = compared
    with (folder / "hypergradient" / "estimators.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [(r["estimator"], int(r["K"])) for r in written] == [(r.estimator, r.K) for r in rows]
    assert float(written[0]["cosine"]) == rows[0].cosine
    with Image.open(folder / "hypergradient" / "estimators.png") as image:
        assert image.width > 600
    table = diagnose.table(rows)
    assert table.count("\n") == len(rows) + 1 and "| 2 | truncated |" in table


def test_meter_counts_arrays_results_and_temporaries():
    meter = diagnose.Meter()
    double = meter.compile(lambda x: jnp.concatenate([x, jnp.sin(x)]))
    x = jnp.ones(2**18)  # 1 MiB
    double(x)
    assert meter.peak == 0  # not metering yet
    meter.metering = True
    double(x)
    assert 3 * 2**20 <= meter.peak < 5 * 2**20  # argument and result
    assert meter.compile_seconds > 0


def test_repeated_shapes_compile_once():
    meter, traced = diagnose.Meter(), []

    def function(x, k):
        traced.append(x.shape)
        return x + k

    compiled = meter.compile(function)
    for k in range(3):
        assert float(compiled(jnp.float32(1.0), k)) == 1 + k
    assert compiled(jnp.ones(2), 0).shape == (2,)
    assert traced == [(), (2,)]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "estimators",
            ("mixed_mode", "newton"),
            "diagnose.estimators .* 'newton' is none of 'mixed_",
        ),
        ("estimators", (), r"diagnose.estimators is \(\): name some of 'mixed_mode'"),
        ("inner_steps", (0, 1), r"diagnose.inner_steps is \(0, 1\): use at least 1"),
        ("repeats", 0, "diagnose.repeats is 0: use at least 1"),
    ],
)
def test_bad_fields_are_named(field, value, message):
    config = demo.get_config("runlocal")
    config.diagnose[field] = value
    with pytest.raises(errors.InputError, match=message):
        config_check.check_config(config)


@pytest.mark.parametrize("name", estimator_factory.ESTIMATORS)
def test_every_estimator_can_be_chosen_by_one_field(name):
    config = demo.get_config(f"runlocal,estimator={name}")
    if name == "conjugate_gradient":
        with pytest.raises(errors.InputError, match="symmetric Hessian: set outer.through_gen"):
            config_check.check_config(config)
        config.outer.through_generator_training = False
    config_check.check_config(config)
    networks = experiment.create_networks(config, 2)
    method, _ = experiment.create_method(config, networks, 2, "end2end", "train")
    finite = name in ("finite_difference", "sama")
    assert isinstance(method.gradient, functools.partial) == finite
    assert callable(
        estimator_factory.create_estimator(config, method, compile=lambda f, **_: jax.jit(f))
    )
