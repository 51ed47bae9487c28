"""A trained model as an ONNX file: uint8 `[H, W, 3]` of any size to float32 `[H, W, K]`.

ONNX's own resize knows no antialiasing, so the way to the size of the network and back is two matrix
products each, with the weights of `export.resize_weights` computed in the graph from the sizes.
"""

import numpy as np

from fewshotseg.data import canvas
from fewshotseg.results.onnx_graph import OPSET, Graph
from fewshotseg.results.onnx_translate import translate
from fewshotseg.results.predictor import Predictor

IR_VERSION = 8  # what ONNX Runtime of 2022 reads


def onnx_file(predictor: Predictor) -> bytes:
    """The file, with the weights in it, of a predictor with a `network`.

    Raises:
      InputError: the network has an operation that is not translated.
    """
    import onnx
    from onnx import TensorProto, helper

    graph = Graph()
    height, width = canvas.as_size(predictor.image_size, 2)
    old_height, old_width = (_size(graph, axis) for axis in (0, 1))
    pixels = graph.add("Cast", "image", to=TensorProto.FLOAT)
    if predictor.channels == 1:
        pixels = graph.add("MatMul", pixels, canvas.LUMA[:, None])
    pixels = graph.add("Transpose", pixels, perm=(2, 0, 1))
    pixels = _resize(graph, pixels, (old_height, old_width), (_whole(height), _whole(width)))
    pixels = graph.add("Sub", graph.add("Div", pixels, np.float32(127.5)), np.float32(1.0))
    pixels = _unsqueeze(graph, graph.add("Clip", pixels, np.float32(-1.0), np.float32(1.0)), 0)
    shape = {pixels: (1, height, width, predictor.channels)}
    (found,) = translate(graph, predictor.network, shape)
    found = graph.add("Squeeze", found, np.array([0], np.int64))
    found = _resize(graph, found, (_whole(height), _whole(width)), (old_height, old_width))
    found = graph.add("Clip", found, np.float32(0.0), np.float32(1.0))
    graph.nodes.append(helper.make_node("Transpose", [found], ["probabilities"], perm=(1, 2, 0)))
    num_outputs = len(predictor.class_names) + (len(predictor.class_names) > 1)
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["height", "width", 3])
    output = helper.make_tensor_value_info(
        "probabilities", TensorProto.FLOAT, ["height", "width", num_outputs]
    )
    made = helper.make_graph(graph.nodes, "fewshotseg", [image], [output], graph.constants)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(made, opset_imports=opsets, producer_name="fewshotseg")
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _whole(number) -> np.ndarray:
    return np.array(number, np.int64)


def _size(graph, axis):
    return graph.add("Gather", graph.add("Shape", "image"), _whole(axis), axis=0)


def _unsqueeze(graph, name, axis):
    return graph.add("Unsqueeze", name, np.array([axis], np.int64))


def _resize(graph, pixels, old, new):
    """`[C, H, W]` from the size `old` to `new`, pairs of numbers or names of scalars."""
    across = graph.add("Transpose", _weights(graph, old[1], new[1]), perm=(1, 0))
    pixels = graph.add("MatMul", pixels, across)
    return graph.add("MatMul", _weights(graph, old[0], new[0]), pixels)


def _weights(graph, old, new):
    """`export.resize_weights`."""

    def centres(number):
        counted = graph.add("Range", _whole(0), number, _whole(1))
        return graph.add("Add", graph.add("Mul", counted, _whole(2)), _whole(1))

    from onnx import TensorProto

    pixels = graph.add("Mul", _unsqueeze(graph, centres(old), 0), new)
    targets = graph.add("Mul", _unsqueeze(graph, centres(new), 1), old)
    distance = graph.add("Abs", graph.add("Sub", pixels, targets))
    reach = graph.add("Mul", graph.add("Max", old, new), _whole(2))
    parts = [graph.add("Cast", name, to=TensorProto.FLOAT) for name in (distance, reach)]
    weights = graph.add("Relu", graph.add("Sub", np.float32(1.0), graph.add("Div", *parts)))
    total = graph.add("ReduceSum", weights, np.array([1], np.int64), keepdims=1)
    return graph.add("Div", weights, total)
