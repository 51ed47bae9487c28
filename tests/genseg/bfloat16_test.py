"""All networks in bfloat16, their weights and the hypergradient in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from configs import default
from fewshotseg import hypergradient
from fewshotseg.models import factory
from fewshotseg.training import build_pairs, build_parts, stages

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
K = 2


def _problem(dtype):
    method = tiny.make_method(optimizer="sgd", learning_rate=0.3, dtype=dtype)
    return method, tiny.make_problem(method, K, dtype=np.float32)


@functools.cache
def _estimate(name):
    method, problem = _problem(DTYPES[name])
    estimate = hypergradient.unrolled(method.inner_step(), method.outer_loss())
    return tiny.jit(estimate)(*problem)


def _jaxprs(jaxpr):
    """A program and all programs inside of it."""
    yield jaxpr
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _jaxprs(inner)


@pytest.mark.parametrize("name", DTYPES)
def test_every_convolution_of_the_hypergradient_is_computed_in_the_type_of_the_networks(name):
    """Generator, discriminator and segmenter, forwards, backwards and differentiated once more."""
    method, problem = _problem(DTYPES[name])
    estimate = hypergradient.unrolled(method.inner_step(), method.outer_loss())
    program = jax.make_jaxpr(estimate)(*problem).jaxpr
    convolved = [
        variable.aval.dtype
        for jaxpr in _jaxprs(program)
        for equation in jaxpr.eqns
        if equation.primitive.name == "conv_general_dilated"
        for variable in (*equation.invars, *equation.outvars)
    ]
    assert len(convolved) > 100 and set(convolved) == {jnp.dtype(name)}


def test_weights_and_hypergradient_are_float32_and_point_where_those_of_float32_do():
    exact, coarse = _estimate("float32"), _estimate("bfloat16")
    kept = coarse.grad, coarse.loss, coarse.inner_state["segmenter"].params
    assert {x.dtype for x in jax.tree.leaves(kept)} == {jnp.dtype("float32")}
    for side, grad in exact.grad["architecture"].items():
        other = coarse.grad["architecture"][side]
        assert tiny.dot(grad, other) / (tiny.norm(grad) * tiny.norm(other)) > 0.99, side
        assert tiny.norm(other) == pytest.approx(tiny.norm(grad), rel=0.1)
        assert not np.array_equal(grad, other)  # it was not computed alike
    moved = [jax.tree.map(np.asarray, e.inner_state["generator"].params) for e in (exact, coarse)]
    start = _problem(jnp.float32)[1][1]["generator"].params
    steps = [tiny.along(params, start, -1.0) for params in moved]
    assert tiny.dot(*steps) / (tiny.norm(steps[0]) * tiny.norm(steps[1])) > 0.99


# --- Every network there is, from a configuration --------------------------------------------------

BLOCKS = (
    "segmenter",
    *dict.fromkeys(n for row in build_pairs.FAMILIES.values() for n in row.networks),
)


def _traced_step(arg):
    """The program of one inner step with every network in bfloat16."""
    config = default.get_config(f"runlocal,{arg}")
    for block in BLOCKS:
        config[block][config[block].name].dtype = "bfloat16"
    config.segmenter.efficient_unet.weights = ""  # those of ImageNet may not be installed
    spec = factory.Spec(2, (16, 16), 3, ("encoder", "decoder"))
    method = build_pairs.resolve_method(config, "end2end")
    parts = build_parts.create_parts(config, spec, method, "train", axis_name=None)
    step = stages.create_inner_step(parts, stages.moving_players(parts, method))
    players = jax.eval_shape(
        lambda: {**stages.init_family(parts, 0), "segmenter": stages.init_segmenter(parts, 0)}
    )
    batch = tiny.make_batch(np.random.default_rng(0), (2,), 16, np.float32)
    images, masks = jnp.repeat(batch["image"], 3, -1), batch["mask"]
    for kind in ("", "synthetic_", "donor_"):
        batch[f"{kind}image"], batch[f"{kind}mask"] = images, masks
        batch[f"{kind}case"] = jnp.arange(2)
    program = jax.make_jaxpr(step)(players, parts.theta, batch, jax.random.key(0))
    return program.jaxpr


@pytest.mark.parametrize(
    "arg",
    [f"family={name}" for name in build_pairs.FAMILIES]
    + [f"segmenter={name}" for name in factory.SEGMENTERS if name != "unet"],
)
def test_no_network_leaves_bfloat16_between_its_layers(arg):
    used = [
        (
            equation.primitive.name,
            {v.aval.dtype.name for v in (*equation.invars, *equation.outvars)},
        )
        for jaxpr in _jaxprs(_traced_step(arg))
        for equation in jaxpr.eqns
        if equation.primitive.name in ("conv_general_dilated", "dot_general")
    ]
    assert sum(name == "conv_general_dilated" for name, _ in used) > 10
    assert {t for name, types in used if name == "conv_general_dilated" for t in types} == {
        "bfloat16"
    }
