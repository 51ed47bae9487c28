"""The merged mixed operation equals the weighted sum of its candidates."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fewshotseg.genseg import outer_variables
from fewshotseg.genseg.outer_variables import OUTER_VARIABLES
from fewshotseg.models import search_space


@pytest.fixture(autouse=True, scope="module")
def _float64():
    with tiny.float64():
        yield


def _candidates(x, params, transposed):
    """Every candidate as the paper has it, by lax: kernel 4, 6, 8, stride 2, padding 1, 2, 3."""
    rank = x.ndim - 2
    spatial = "DHW"[-rank:]
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    stride, outputs = (2,) * rank, []
    for size, padding in ((4, 1), (6, 2), (8, 3)):
        kernel = params[f"kernel_{size}"]
        if transposed:
            pads = [(size - 1 - padding,) * 2] * rank  # of the dilated input
            y = jax.lax.conv_transpose(x, kernel, stride, pads, dimension_numbers=numbers)
        else:
            pads = [(padding, padding)] * rank
            y = jax.lax.conv_general_dilated(x, kernel, stride, pads, dimension_numbers=numbers)
        outputs.append(y)
    return outputs


def _problem(rank, transposed):
    numbers = np.random.default_rng(rank)
    x = jnp.asarray(numbers.standard_normal((2, *(6, 4, 4)[:rank], 2)))
    cell = search_space.Cell(3, transposed=transposed)
    shapes = nn.meta.unbox(jax.eval_shape(cell.init, jax.random.key(0), x, jnp.ones(3))["params"])
    return x, cell, tiny.draw_like(shapes, numbers)


@pytest.mark.parametrize("transposed", [False, True], ids=["down", "up"])
@pytest.mark.parametrize("rank", [2, 3], ids=["2-D", "3-D"])
def test_cell_is_the_weighted_sum_of_its_candidates(rank, transposed):
    x, cell, params = _problem(rank, transposed)
    weights = jnp.array([0.5, 0.2, 0.3])
    y = cell.apply({"params": params}, x, weights)
    factor = 2 if transposed else 0.5
    assert y.shape == (2, *(int(factor * n) for n in x.shape[1:-1]), 3)
    outputs = _candidates(x, params, transposed)
    expected = sum(w * o for w, o in zip(weights, outputs, strict=True)) + params["bias"]
    np.testing.assert_allclose(y, expected, atol=1e-12)
    for i, output in enumerate(outputs):  # no two candidates are the same
        assert np.abs(output - outputs[i - 1]).max() > 0.1


@pytest.mark.parametrize("transposed", [False, True], ids=["down", "up"])
def test_cell_without_a_search_is_the_first_candidate(transposed):
    x, cell, params = _problem(2, transposed)
    assert jax.eval_shape(cell.init, jax.random.key(0), x, None)["params"].keys() == {
        "kernel_4", "bias"
    }  # fmt: skip
    params = {name: params[name] for name in ("kernel_4", "bias")}
    y = cell.apply({"params": params}, x, None)
    every = {**params, "kernel_6": jnp.zeros((6, 6, 2, 3)), "kernel_8": jnp.zeros((8, 8, 2, 3))}
    expected = _candidates(x, every, transposed)[0] + params["bias"]
    np.testing.assert_allclose(y, expected, atol=1e-12)


@pytest.mark.parametrize("best", [0, 1, 2])
def test_discretized_cell_is_exactly_the_strongest_candidate(best):
    x, cell, params = _problem(2, False)
    alpha = jnp.array([[0.1, 0.1, 0.1], [-3.0, -2.0, -4.0]]).at[0, best].set(0.2)
    hard = outer_variables.discretize({"architecture": {"encoder": alpha}})["architecture"]
    weights = OUTER_VARIABLES["architecture"].use(hard, {})["encoder"]
    np.testing.assert_array_equal(weights[0], np.eye(3)[best])
    np.testing.assert_array_equal(weights[1], [0, 1, 0])
    size = search_space.KERNEL_SIZES[best]
    kernels = [params[f"kernel_{k}"] for k in search_space.KERNEL_SIZES]
    merged = search_space.merge_kernels(kernels, weights[0])
    margin = (8 - size) // 2
    inside = merged[margin : 8 - margin, margin : 8 - margin]
    np.testing.assert_array_equal(inside, params[f"kernel_{size}"])
    assert np.abs(merged).sum() == pytest.approx(float(np.abs(inside).sum()))
    np.testing.assert_allclose(
        cell.apply({"params": params}, x, weights[0]),
        _candidates(x, params, False)[best] + params["bias"],
        atol=1e-12,
    )


def test_derivative_with_respect_to_the_weights_is_the_candidate():
    x, cell, params = _problem(2, True)
    w = jnp.asarray(np.random.default_rng(1).standard_normal((2, 12, 8, 3)))
    grad = jax.grad(lambda m: (w * cell.apply({"params": params}, x, m)).sum())(jnp.ones(3) / 3)
    expected = [(w * output).sum() for output in _candidates(x, params, True)]
    np.testing.assert_allclose(grad, expected, rtol=1e-10)
