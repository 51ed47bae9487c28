"""Operations of JAX as nodes of ONNX: a row in one of two tables each."""

import math
import string
from collections.abc import Callable, Mapping

import numpy as np

from fewshotseg.errors import InputError
from fewshotseg.results.onnx_graph import Value, constant, onnx_axis, onnx_dtype, onnx_sizes, spread

ELEMENTWISE = {
    "add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min",
    "pow": "Pow", "neg": "Neg", "abs": "Abs", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "tanh": "Tanh",
    "logistic": "Sigmoid", "erf": "Erf", "floor": "Floor", "sin": "Sin", "cos": "Cos",
}  # fmt: skip
_REDUCE = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}


def _conv(t, inputs, params, output):
    x, kernel = inputs
    numbers, rank = params["dimension_numbers"], len(x.shape)
    last = (0, rank - 1, *range(1, rank - 1))
    plain = numbers.lhs_spec == numbers.out_spec == last and set(params["lhs_dilation"]) == {1}
    if not plain or kernel.array is None or rank != 4 or params["batch_group_count"] != 1:
        raise InputError(
            "a convolution of another form than [B, H, W, C] is not translated to ONNX."
        )
    low, high = zip(*params["padding"], strict=True)
    return t.graph.add(
        "Conv",
        t.name_of(x),
        spread(kernel).transpose(numbers.rhs_spec),
        strides=params["window_strides"],
        pads=(*low, *high),
        dilations=params["rhs_dilation"],
        group=params["feature_group_count"],
    )


def _dot_general(t, inputs, params, output):
    """`x @ weights` as a matrix product, whatever else `einsum` can say as that."""
    x, y = inputs
    (contracted, with_), (batch, with_batch) = params["dimension_numbers"]
    rank, ranks = len(x.shape), len(y.shape)
    if (contracted, with_, batch, ranks) == ((rank - 1,), (0,), (), 2):
        found = t.graph.add("MatMul", t.natural(x), t.name_of(y))
        return t.stored(found, output.shape)
    first = string.ascii_letters[:rank]
    second = list(string.ascii_letters[rank : rank + ranks])
    for ours, theirs in (
        *zip(batch, with_batch, strict=True),
        *zip(contracted, with_, strict=True),
    ):
        second[theirs] = first[ours]
    summed = {first[i] for i in contracted}
    shared = [first[i] for i in batch]
    of_one = [a for a in (*first, *second) if a not in summed and a not in shared]
    parts = [onnx_sizes(letters) for letters in (first, second, shared + of_one)]
    left, right, result = ("".join(letters) for letters in parts)
    return t.graph.add("Einsum", t.name_of(x), t.name_of(y), equation=f"{left},{right}->{result}")


def _reduce(kind):
    def translate(t, inputs, params, output):
        (x,) = inputs
        rank = len(x.shape)
        axes = sorted(onnx_axis(a, rank) for a in params["axes"])
        more = [np.array(axes, np.int64)] if kind == "ReduceSum" else []
        attributes = {} if more else {"axes": axes}
        kept = t.graph.add(kind, t.name_of(x), *more, keepdims=0, **attributes)
        return t.stored(kept, output.shape) if len(output.shape) == 4 else kept

    return translate


def _reshape(t, inputs, params, output):
    (x,) = inputs
    if math.prod(x.shape) == max(x.shape, default=1) and len(x.shape) != 4 != len(output.shape):
        return t.graph.add("Reshape", t.name_of(x), np.array(output.shape, np.int64))
    name = t.graph.add("Reshape", t.natural(x), np.array(output.shape, np.int64))
    return t.stored(name, output.shape)


def _transpose(t, inputs, params, output):
    name = t.graph.add("Transpose", t.natural(inputs[0]), perm=params["permutation"])
    return t.stored(name, output.shape)


def _concatenate(t, inputs, params, output):
    axis = onnx_axis(params["dimension"], len(output.shape))
    return t.graph.add("Concat", *[t.name_of(x) for x in inputs], axis=axis)


def _cut(t, x, starts, ends, steps):
    """The part `starts:ends:steps` of every axis."""
    rank = len(x.shape)
    axes = [i for i in range(rank) if (starts[i], ends[i], steps[i]) != (0, x.shape[i], 1)]
    if not axes:
        return t.name_of(x)
    numbers = [np.array([n[i] for i in axes], np.int64) for n in (starts, ends, steps)]
    places = np.array([onnx_axis(i, rank) for i in axes], np.int64)
    return t.graph.add("Slice", t.name_of(x), numbers[0], numbers[1], places, numbers[2])


def _slice(t, inputs, params, output):
    steps = params["strides"] or (1,) * len(output.shape)
    return _cut(t, inputs[0], params["start_indices"], params["limit_indices"], steps)


def _rev(t, inputs, params, output):
    axes = [onnx_axis(i, len(output.shape)) for i in params["dimensions"]]
    starts, ends, steps = (
        np.full(len(axes), n, np.int64) for n in (-1, np.iinfo(np.int64).min, -1)
    )
    return t.graph.add("Slice", t.name_of(inputs[0]), starts, ends, np.array(axes, np.int64), steps)


def _dynamic_slice(t, inputs, params, output):
    x, *where = inputs
    if any(start.array is None for start in where):
        raise InputError("a slice whose place depends on the image is not translated to ONNX.")
    sizes = params["slice_sizes"]
    starts = [
        int(np.clip(start.array, 0, n - size))
        for start, n, size in zip(where, x.shape, sizes, strict=True)
    ]
    ends = [start + size for start, size in zip(starts, sizes, strict=True)]
    return _cut(t, x, starts, ends, (1,) * len(sizes))


def _pad(t, inputs, params, output):
    x, filling = inputs
    low, high, inside = zip(*params["padding_config"], strict=True)
    if any(inside) or min(*low, *high) < 0 or filling.array is None:
        raise InputError("padding between pixels, or less than none, is not translated to ONNX.")
    pads = np.array([*onnx_sizes(low), *onnx_sizes(high)], np.int64)
    return t.graph.add("Pad", t.name_of(x), pads, np.float32(filling.array))


def _cast(t, inputs, params, output):
    from onnx import helper

    (x,) = inputs
    if not x.spread or x.array is not None:
        x = Value(x.shape, t.name_of(x))
    kind = helper.np_dtype_to_tensor_dtype(onnx_dtype(output.dtype))
    return t.graph.add("Cast", x.name, to=kind)


def _rsqrt(t, inputs, params, output):
    root = t.elementwise("Sqrt", inputs, output.shape)
    return t.elementwise("Reciprocal", [root], output.shape)


def _erfc(t, inputs, params, output):
    erf = t.elementwise("Erf", inputs, output.shape)
    return t.elementwise("Sub", [constant(np.float32(1.0)), erf], output.shape)


def _integer_pow(t, inputs, params, output):
    return t.elementwise("Pow", [inputs[0], constant(np.float32(params["y"]))], output.shape)


def _square(t, inputs, params, output):
    return t.elementwise("Mul", [inputs[0], inputs[0]], output.shape)


OPERATIONS: Mapping[str, Callable] = {
    "conv_general_dilated": _conv,
    "dot_general": _dot_general,
    **{name: _reduce(kind) for name, kind in _REDUCE.items()},
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape),
    "transpose": _transpose,
    "concatenate": _concatenate,
    "slice": _slice,
    "rev": _rev,
    "dynamic_slice": _dynamic_slice,
    "pad": _pad,
    "convert_element_type": _cast,
    "rsqrt": _rsqrt,
    "erfc": _erfc,
    "integer_pow": _integer_pow,
    "square": _square,
}
