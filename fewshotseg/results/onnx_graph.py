"""An ONNX graph that grows node by node, and the arrays of a JAX function in it.

Arrays `[B, H, W, C]` lie in the graph as ONNX has them, `[B, C, H, W]`, so that there are no
transpositions around convolutions. Numbers are float32, also where the function computes in bfloat16.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

OPSET = 17
TO_ONNX, FROM_ONNX = (0, 3, 1, 2), (0, 2, 3, 1)  # [B, H, W, C] to [B, C, H, W], and back


class Graph:
    """Nodes and constants of an ONNX graph, as they are added."""

    def __init__(self):
        from onnx import helper, numpy_helper

        self._node, self._tensor = helper.make_node, numpy_helper.from_array
        self.nodes, self.constants, self._known = [], [], {}

    def add(self, kind: str, *inputs, **attributes) -> str:
        """Adds one node; inputs are names, or arrays that become constants. The name of its output."""
        names = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        output = f"{kind}_{len(self.nodes)}"
        self.nodes.append(self._node(kind, names, [output], **attributes))
        return output

    def constant(self, array) -> str:
        """The name of a constant; equal ones are kept once."""
        array = np.asarray(array, order="C")
        array = array.astype(onnx_dtype(array.dtype), copy=False)
        key = array.shape, array.dtype.str, array.tobytes()
        if key not in self._known:
            self._known[key] = f"constant_{len(self.constants)}"
            self.constants.append(self._tensor(array, self._known[key]))
        return self._known[key]


def onnx_dtype(dtype) -> np.dtype:
    if jax.numpy.issubdtype(dtype, np.floating):
        return np.dtype(np.float32)
    return np.dtype(dtype)


@dataclasses.dataclass(frozen=True)
class Value:
    """An array of the function.

    Attributes:
      shape: of the array.
      name: in the graph, or None for a constant.
      array: of a constant, or None. Neither need be spread: sizes may be 1 that are more in `shape`.
      spread: whether they are not.
    """

    shape: tuple[int, ...]
    name: str | None = None
    array: np.ndarray | None = None
    spread: bool = True


def constant(array) -> Value:
    array = np.asarray(array)
    return Value(array.shape, array=array)


def spread(value: Value) -> np.ndarray:
    return np.broadcast_to(value.array, value.shape)


def as_onnx(array: np.ndarray) -> np.ndarray:
    return array.transpose(TO_ONNX) if array.ndim == 4 else array


def onnx_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(sizes[i] for i in TO_ONNX) if len(sizes) == 4 else tuple(sizes)


def onnx_axis(axis: int, rank: int) -> int:
    """Where an axis of the function is in the graph."""
    return TO_ONNX.index(axis) if rank == 4 else axis
