"""Functions of JAX as ONNX graphs: ONNX Runtime finds what JAX finds."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from fewshotseg.errors import InputError
from fewshotseg.models import (
    deeplab,
    depthwise,
    efficient_unet,
    efficientnet_lite,
    factory,
    layers,
    swin_unet,
    unet,
)
from fewshotseg.results import onnx_graph, onnx_translate

KERNEL = np.random.default_rng(3).normal(size=(3, 3, 4, 6)).astype(np.float32)
FUNCTIONS = {
    "conv": lambda x: layers.conv(x, KERNEL),
    "conv of stride 2": lambda x: layers.conv(x, KERNEL, 2),
    "grouped conv": lambda x: layers.conv(x, KERNEL[:, :, :2], groups=2),
    "transposed conv": lambda x: layers.conv_transpose_2x(x, KERNEL[:2, :2]),
    "depthwise conv": lambda x: depthwise.by_taps(x, KERNEL[:, :, :1, :4], 2),
    "group norm": lambda x: layers.group_norm(x, jnp.arange(4.0), jnp.ones(4), 2),
    "pools": lambda x: layers.max_pool_2x(x) - layers.avg_pool_2x(x),
    "upsampling": lambda x: layers.upsample_2x(x, (9, 13)),
    "padding": lambda x: layers.pad_to(x, (7, 8)) + jnp.pad(x, ((0, 0), (2, 0), (0, 1), (0, 0))),
    "flips": lambda x: x[:, ::-1] + 2 * x[:, :, ::-1] + 3 * x[:, ::-1, ::-1],
    "softmax": lambda x: jax.nn.softmax(x) * jax.nn.sigmoid(x),
    "activations": lambda x: jax.nn.relu6(4 * x) + jax.nn.silu(x) + jnp.tanh(x) + jax.nn.gelu(x),
    "the exact gelu": lambda x: jax.nn.gelu(3 * x, approximate=False),
    "bfloat16": lambda x: (x.astype(jnp.bfloat16) + 1).astype(jnp.float32) ** 2,
    "other ranks": lambda x: jnp.broadcast_to(x.mean((1, 2))[:, None, None], x.shape) + x.max((0, 3))[0, 1],
    "product with weights": lambda x: x @ KERNEL[0, 0],
    "weights of two axes": lambda x: jax.image.resize(x, (1, 9, 11, 4), "linear"),
    "products of images": lambda x: jnp.einsum("bhwc,bhvc->bvhw", x, x[..., ::-1]),
    "products that are summed": lambda x: jnp.einsum("bhwc,bhwd->dc", x, x[:, ::-1]),
    "attention": lambda x: jnp.einsum("bwnhd,bwmhd->bwhnm", *2 * [x.reshape(1, 5, 7, 2, 2)]),
    "tokens": lambda x: jax.lax.slice_in_dim(x.reshape(1, 5, 28).transpose(0, 2, 1), 1, 28, 3, 1)[:, :, 2:],
}  # fmt: skip


def _run(function, x):
    graph = onnx_graph.Graph()
    lie = (0, 3, 1, 2)
    (name,) = onnx_translate.translate(graph, function, {"x": x.shape})
    wanted = np.asarray(function(x))
    shape = [wanted.shape[i] for i in lie] if wanted.ndim == 4 else wanted.shape
    made = helper.make_graph(
        graph.nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [x.shape[i] for i in lie])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        graph.constants,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", onnx_graph.OPSET)])
    model.ir_version = 8
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, {"x": np.ascontiguousarray(x.transpose(lie))})
    return (found.transpose(0, 2, 3, 1) if wanted.ndim == 4 else found), wanted


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations(name):
    x = np.random.default_rng(0).normal(size=(1, 5, 7, 4)).astype(np.float32)
    found, wanted = _run(FUNCTIONS[name], x)
    tolerance = 0.05 if name == "bfloat16" else 1e-5
    np.testing.assert_allclose(found, wanted, atol=tolerance, rtol=tolerance)


BLOCKS = (efficientnet_lite.Block(3, 1, 1, 4, 8), efficientnet_lite.Block(5, 2, 2, 8, 8))
MODULES = {
    "unet": unet.UNet(width=4, num_levels=2, num_outputs=3),
    "efficient_unet": efficient_unet.EfficientUNet(weights="", widths=(8, 8), blocks=BLOCKS),
    # Dilations within the image and beyond it; odd windows, shifted, that reach beyond the image.
    "deeplab": deeplab.DeepLab(3, width=4, depths=(1, 2, 1, 1), head_width=6, atrous=(1, 93, 420)),
    "swin_unet": swin_unet.SwinUnet(3, width=8, depths=(2, 2), window=3),
}


def test_every_segmenter_is_translated():
    assert MODULES.keys() == factory.SEGMENTERS.keys()


@pytest.mark.parametrize("name", MODULES)
def test_segmenters(name):
    x = np.random.default_rng(0).uniform(-1, 1, (1, 11, 14, 3)).astype(np.float32)
    network = factory.network(MODULES[name], jax.ShapeDtypeStruct(x.shape, x.dtype), None)
    params = network.init(jax.random.key(0))
    found, wanted = _run(lambda images: network.apply(params, images, None), x)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_equal_constants_are_kept_once():
    graph = onnx_graph.Graph()
    onnx_translate.translate(graph, lambda x: (x * 2.0 + 2.0) * 3.0, {"x": (2,)})
    assert len(graph.constants) == 2


@pytest.mark.parametrize(
    "function, words",
    [
        (jnp.sort, "'sort'.*use model.stablehlo"),
        (lambda x: jnp.take(x, x[0].astype(int)), "not transl"),
        (
            lambda x: jax.lax.scan(lambda a, b: (a + b, None), 0.0, x)[0],
            "scan over what.*model.stablehlo",
        ),
    ],
)
def test_what_is_not_translated_is_named(function, words):
    with pytest.raises(InputError, match=words):
        onnx_translate.translate(onnx_graph.Graph(), function, {"x": (3,)})
