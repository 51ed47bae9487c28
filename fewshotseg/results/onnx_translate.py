"""A traceable JAX function as part of an ONNX graph, operation by operation.

Only what segmenters are made of is translated, see `onnx_operations.py`. Weights are constants, and what
depends on constants alone is computed here.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from fewshotseg.errors import InputError
from fewshotseg.results.onnx_graph import (
    FROM_ONNX,
    TO_ONNX,
    Graph,
    Value,
    as_onnx,
    constant,
    onnx_sizes,
    spread,
)
from fewshotseg.results.onnx_operations import ELEMENTWISE, OPERATIONS

_CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "remat2",
    "checkpoint",
)
_UNCHANGED = ("stop_gradient", "copy", "copy_p", "optimization_barrier")


def translate(graph: Graph, function: Callable, inputs: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Adds a function to a graph.

    Args:
      graph: that has the inputs.
      function: of one float32 array for every input, traceable.
      inputs: name in the graph -> shape for the function; four axes lie as `[B, C, H, W]` in the graph.

    Returns:
      The names of its outputs; those of four axes lie likewise.

    Raises:
      InputError: an operation that is not translated.
    """
    examples = [jax.ShapeDtypeStruct(shape, np.float32) for shape in inputs.values()]
    closed = jax.make_jaxpr(function)(*examples)
    values = [Value(tuple(shape), name) for name, shape in inputs.items()]
    translation = _Translation(graph)
    outputs = translation.run(closed.jaxpr, closed.consts, values)
    return [translation.name_of(output) for output in outputs]


class _Translation:
    def __init__(self, graph: Graph):
        self.graph = graph

    def run(self, jaxpr, constants: Sequence[Any], inputs: Sequence[Value]) -> list[Value]:
        """The outputs of a program."""
        known: dict[Any, Value] = {}

        def read(atom):
            return constant(atom.val) if isinstance(atom, core.Literal) else known[atom]

        for variable, array in zip(jaxpr.constvars, constants, strict=True):
            known[variable] = array if isinstance(array, Value) else constant(array)
        known.update(zip(jaxpr.invars, inputs, strict=True))
        for equation in jaxpr.eqns:
            outputs = self.equation(equation, [read(atom) for atom in equation.invars])
            known.update(zip(equation.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, equation, inputs: list[Value]) -> list[Value]:
        name, params = equation.primitive.name, equation.params
        if name in _CALLS:
            inner = params.get("jaxpr") or params.get("call_jaxpr") or params.get("fun_jaxpr")
            constants = getattr(inner, "consts", ())
            return self.run(getattr(inner, "jaxpr", inner), constants, inputs)
        if name == "scan":
            return self.scan(params, inputs)
        if name in _UNCHANGED:
            return inputs
        outputs = [variable.aval for variable in equation.outvars]
        if all(0 in output.shape for output in outputs):  # padding by nothing
            return [constant(np.zeros(output.shape, output.dtype)) for output in outputs]
        if name == "broadcast_in_dim":
            return [self.broadcast(inputs[0], outputs[0].shape, params["broadcast_dimensions"])]
        if all(value.array is not None for value in inputs):
            found = equation.primitive.bind(*map(spread, inputs), **params)
            return [
                constant(a) for a in (found if equation.primitive.multiple_results else [found])
            ]
        (output,) = outputs
        if name in ELEMENTWISE:
            return [self.elementwise(ELEMENTWISE[name], inputs, output.shape)]
        if name not in OPERATIONS:
            raise InputError(
                f"the segmenter uses {name!r}, which is not translated to ONNX: add it to "
                "results/onnx_operations.py, or use model.stablehlo."
            )
        found = OPERATIONS[name](self, inputs, params, output)
        return [found if isinstance(found, Value) else Value(tuple(output.shape), found)]

    def scan(self, params, inputs):
        """Unrolled."""
        closed, given = params["jaxpr"], params["num_consts"]
        constants, rest = inputs[:given], inputs[given:]
        state, rows = rest[: params["num_carry"]], rest[params["num_carry"] :]
        if len(closed.out_avals) > len(state) or params["reverse"]:
            raise InputError("a scan with outputs for every step is not translated to ONNX.")
        if any(value.array is None for value in rows):
            raise InputError(
                "a scan over what is computed of the image is not translated to ONNX: use model.stablehlo."
            )
        for step in range(params["length"]):
            row = [constant(spread(value)[step]) for value in rows]
            state = self.run(closed.jaxpr, closed.consts, [*constants, *state, *row])
        return state

    def name_of(self, value: Value) -> str:
        """In the graph, spread, four axes as ONNX has them."""
        if value.array is not None:
            return self.graph.constant(as_onnx(spread(value)))
        if value.spread:
            return value.name
        return self.graph.add("Expand", value.name, np.array(onnx_sizes(value.shape), np.int64))

    def natural(self, value: Value) -> str:
        """In the graph, spread, with the axes as in the function."""
        name = self.name_of(value)
        return self.graph.add("Transpose", name, perm=FROM_ONNX) if len(value.shape) == 4 else name

    def stored(self, name: str, shape) -> Value:
        """The opposite of `natural`."""
        name = self.graph.add("Transpose", name, perm=TO_ONNX) if len(shape) == 4 else name
        return Value(tuple(shape), name)

    def elementwise(self, kind, inputs, shape, **attributes) -> Value:
        """ONNX spreads sizes of 1 by itself."""
        names, is_spread = [], math.prod(shape) == 1
        for value in inputs:
            is_constant = value.array is not None
            names.append(self.graph.constant(as_onnx(value.array)) if is_constant else value.name)
            is_spread = is_spread or (value.spread and value.shape == tuple(shape))
        return Value(tuple(shape), self.graph.add(kind, *names, **attributes), spread=is_spread)

    def broadcast(self, value: Value, shape, dimensions) -> Value:
        shape = tuple(shape)
        if value.array is not None:
            sizes = [1] * len(shape)
            for size, axis in zip(value.array.shape, dimensions, strict=True):
                sizes[axis] = size
            array = value.array.reshape(sizes)
            return Value(shape, array=array, spread=array.shape == shape)
        sizes = [1] * len(shape)
        for size, axis in zip(value.shape, dimensions, strict=True):
            sizes[axis] = size
        if value.spread and tuple(sizes) == value.shape:
            return Value(shape, value.name, spread=value.shape == shape)
        name = self.graph.add("Reshape", self.natural(value), np.array(sizes, np.int64))
        return dataclasses.replace(
            self.stored(name, sizes), shape=shape, spread=shape == tuple(sizes)
        )
