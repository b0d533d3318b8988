"""What the operators of the reference compute: exact sums of products and windows, what moves numbers, and functions.

Functions are those of ONNX's own reference implementation, in float64, and the tables that chips make of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from narrowcast.chips.schema import Target
from narrowcast.engine.reference.arithmetic import Array
from narrowcast.engine.reference.fixed import activation_step
from narrowcast.graph.files import NEWEST_OPSET
from narrowcast.graph.run import open_session
from narrowcast.ops.net import constant_at
from narrowcast.ops.units import DOMAIN, inline_units
from narrowcast.plan.types import Encoding


def exact_matmul(left: Array, right: Array) -> Array:
    """Integer matrix product through float64: exact, because no sum can pass 2^53.

    Raises:
        AssertionError: when one could.
    """
    if left.size == 0 or right.size == 0:
        return np.zeros((*np.broadcast_shapes(left.shape[:-2], right.shape[:-2]), left.shape[-2], right.shape[-1]))
    reach = left.shape[-1] * float(np.abs(left).max()) * float(np.abs(right).max())
    if reach >= 2.0**53:
        raise AssertionError(f"a sum of {left.shape[-1]} products may reach {reach}")
    product: Array = np.matmul(left.astype(np.float64), right.astype(np.float64)).astype(np.int64)
    return product


def spatial(node: ir.Node, sizes: tuple[int, ...], kernel: tuple[int, ...]) -> dict[str, list[int]]:
    """Strides, dilations and both pads of a convolution or pool, ``auto_pad`` worked out."""
    count = len(sizes)
    strides = list(node.attributes.get_ints("strides", []) or [1] * count)
    dilations = list(node.attributes.get_ints("dilations", []) or [1] * count)
    pads = list(node.attributes.get_ints("pads", []) or [0] * (2 * count))
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto.startswith("SAME"):
        for axis in range(count):
            outputs = -(-sizes[axis] // strides[axis])
            total = max((outputs - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1 - sizes[axis], 0)
            less, more = total // 2, total - total // 2
            pads[axis], pads[axis + count] = (less, more) if auto == "SAME_UPPER" else (more, less)
    return {"strides": strides, "dilations": dilations, "begin": pads[:count], "end": pads[count:]}


def _last(*index: int | slice) -> tuple[Any, ...]:
    """An index of the last axes."""
    return (..., *index)


def _taps(x: Array, kernel: tuple[int, ...], geometry: dict[str, list[int]], outputs: tuple[int, ...]) -> Any:
    """For each kernel position, its index and the inputs under it for all outputs."""
    for position in itertools.product(*(range(size) for size in kernel)):
        window = tuple(
            slice(p * d, p * d + (o - 1) * s + 1, s)
            for p, d, s, o in zip(position, geometry["dilations"], geometry["strides"], outputs, strict=True)
        )
        yield position, x[_last(*window)]


def _padded(
    x: Array, geometry: dict[str, list[int]], kernel: tuple[int, ...], outputs: tuple[int, ...], value: int
) -> Array:
    widths = [(0, 0), (0, 0)]
    for axis, size in enumerate(x.shape[2:]):
        reach = (outputs[axis] - 1) * geometry["strides"][axis] + (kernel[axis] - 1) * geometry["dilations"][axis] + 1
        begin = geometry["begin"][axis]
        widths.append((begin, max(reach - size - begin, 0)))
    return np.pad(x, widths, constant_values=value)


def convolve(x: Array, weight: Array, node: ir.Node, outputs: tuple[int, ...]) -> Array:
    """Conv of integers, any number of spatial axes and groups; no bias.

    Args:
        x: (1, C, spatial...).
        weight: (O, C / groups, kernel...).
        node: for strides, pads, dilations and groups.
        outputs: spatial sizes of the output.
    """
    kernel, groups = weight.shape[2:], node.attributes.get_int("group", 1)
    geometry = spatial(node, x.shape[2:], kernel)
    x = _padded(x, geometry, kernel, outputs, 0)
    each = weight.shape[0] // groups
    total = np.zeros((groups, each, int(np.prod(outputs))), np.int64)
    for position, part in _taps(x, kernel, geometry, outputs):
        columns = part.reshape(groups, weight.shape[1], -1)
        rows = weight[_last(*position)].reshape(groups, each, weight.shape[1])
        total += exact_matmul(rows, columns)
    return total.reshape(1, weight.shape[0], *outputs)


def convolve_transposed(x: Array, weight: Array, node: ir.Node, outputs: tuple[int, ...]) -> Array:
    """ConvTranspose of integers, no bias; weight (C, O / groups, kernel...)."""
    kernel, groups = weight.shape[2:], node.attributes.get_int("group", 1)
    geometry = spatial(node, x.shape[2:], kernel)
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    sizes = x.shape[2:]
    steps, spread = geometry["strides"], geometry["dilations"]
    full = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(sizes, steps, kernel, spread, strict=True)]
    begin = geometry["begin"]
    if auto.startswith("SAME"):
        extra = [max(f - o, 0) for f, o in zip(full, outputs, strict=True)]
        begin = [e // 2 if auto == "SAME_UPPER" else e - e // 2 for e in extra]
    room = [max(f, b + o) for f, b, o in zip(full, begin, outputs, strict=True)]
    canvas = np.zeros((groups, weight.shape[1], *room), np.int64)
    columns = x.reshape(groups, x.shape[1] // groups, -1)
    for position in itertools.product(*(range(size) for size in kernel)):
        tap: Array = weight[_last(*position)]
        rows = tap.reshape(groups, -1, weight.shape[1]).swapaxes(1, 2)
        spot: tuple[slice, ...] = tuple(
            slice(p * d, p * d + (n - 1) * s + 1, s) for p, d, n, s in zip(position, spread, sizes, steps, strict=True)
        )
        canvas[_last(*spot)] += exact_matmul(rows, columns).reshape(groups, -1, *sizes)
    canvas = canvas.reshape(1, -1, *room)
    return np.asarray(canvas[_last(*(slice(b, b + o) for b, o in zip(begin, outputs, strict=True)))])


def max_pool(x: Array, node: ir.Node, outputs: tuple[int, ...]) -> Array:
    """MaxPool of integers; padding never wins."""
    kernel = tuple(node.attributes.get_ints("kernel_shape", []) or [])
    geometry = spatial(node, x.shape[2:], kernel)
    padded = _padded(x, geometry, kernel, outputs, np.iinfo(np.int64).min)
    return np.asarray(np.max([part for _, part in _taps(padded, kernel, geometry, outputs)], axis=0))


def window_totals(x: Array, node: ir.Node, outputs: tuple[int, ...]) -> tuple[Array, Array]:
    """Sums over the windows of an AveragePool, and how many positions count in each (spatial shape)."""
    kernel = tuple(node.attributes.get_ints("kernel_shape", []) or [])
    geometry = spatial(node, x.shape[2:], kernel)
    inside = np.ones((1, 1, *x.shape[2:]), np.int64)
    if node.attributes.get_int("count_include_pad", 0):
        pads = [(0, 0), (0, 0), *zip(geometry["begin"], geometry["end"], strict=True)]
        x, inside = np.pad(x, pads), np.ones((1, 1, *np.pad(inside, pads).shape[2:]), np.int64)
        geometry = {**geometry, "begin": [0] * len(kernel)}
    total = sum(part for _, part in _taps(_padded(x, geometry, kernel, outputs, 0), kernel, geometry, outputs))
    counts = sum(part for _, part in _taps(_padded(inside, geometry, kernel, outputs, 0), kernel, geometry, outputs))
    return np.asarray(total), np.asarray(counts)[0, 0]


def _single_node(node: ir.Node, opset: int, functions: list[onnx.FunctionProto]) -> onnx.ModelProto:
    proto = ir.serde.serialize_node(node)
    names = [name for name in proto.input if name]
    graph = helper.make_graph(
        [proto],
        "node",
        [helper.make_value_info(name, onnx.TypeProto()) for name in dict.fromkeys(names)],
        [helper.make_value_info(name, onnx.TypeProto()) for name in proto.output],
    )
    opsets = [helper.make_opsetid("", opset)]
    if functions:
        opsets.append(helper.make_opsetid(DOMAIN, 1))
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)


def evaluate_moving(node: ir.Node, inputs: dict[str, Array], opset: int) -> list[Array]:
    """One node by ONNX's own reference implementation, on integers."""
    results = ReferenceEvaluator(_single_node(node, opset, [])).run(None, inputs)
    return [np.asarray(result) for result in results]


def evaluate_wide(node: ir.Node, operands: list[Array], own: Sequence[type[OpRun]] = ()) -> list[Array]:
    """One node by ONNX's own reference implementation in the newest opset, on float64; some operators by ours."""
    proto = ir.serde.serialize_node(node)
    proto.domain = ""
    names = [f"x{index}" for index in range(len(operands))]
    proto.input[:] = names
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, None) for name in (*names, *proto.output)]
    graph = helper.make_graph([proto], "node", values[: len(names)], values[len(names) :])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", NEWEST_OPSET)])
    feed = dict(zip(names, operands, strict=True))
    with np.errstate(all="ignore"):
        return [np.asarray(result) for result in ReferenceEvaluator(model, new_ops=list(own)).run(None, feed)]


def evaluate_float(
    node: ir.Node, inputs: dict[str, Array], opset: int, functions: list[onnx.FunctionProto]
) -> list[Array]:
    """One float node by onnxruntime: no chip defines its last bits."""
    needed = functions if node.domain == DOMAIN else []
    model = _single_node(node, opset, needed)
    for value in model.graph.input:
        array = inputs[value.name]
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, array.shape))
    for value, known in zip(model.graph.output, node.outputs, strict=True):
        value.CopyFrom(helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, None))
        if known.dtype is not None:
            value.type.tensor_type.elem_type = int(known.dtype)
    session = open_session(inline_units(model) if needed else model, 0, "all")
    return [np.asarray(result) for result in session.run(None, inputs)]


def nearest_resize(x: Array, node: ir.Node, scales: list[float], outputs: tuple[int, ...]) -> Array:
    """Resize with mode nearest; positions are float32, and half a pixel is what is that within a millionth.

    Raises:
        ValueError: a transformation that no integers follow.
    """
    transformation = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    nearest = node.attributes.get_string("nearest_mode", "round_prefer_floor")
    for axis, (size, count, scale) in enumerate(zip(x.shape, outputs, scales, strict=True)):
        place, half, factor = np.arange(count, dtype=np.float32), np.float32(0.5), np.float32(scale)
        if transformation == "align_corners":
            place = place * np.float32(size - 1) / np.float32(max(count - 1, 1))
        elif transformation == "asymmetric":
            place = place / factor
        elif transformation == "pytorch_half_pixel" and count == 1:
            place = np.zeros(1, np.float32)
        elif transformation in ("half_pixel", "pytorch_half_pixel"):
            place = (place + half) / factor - half
        else:
            raise ValueError(transformation)
        exact = place.astype(np.float64)
        index = {
            "round_prefer_floor": np.ceil(exact - 0.500001),
            "round_prefer_ceil": np.floor(exact + 0.500001),
            "floor": np.floor(place),
            "ceil": np.ceil(place),
        }[nearest]
        x = np.take(x, np.clip(index, 0, size - 1).astype(np.int64), axis=axis)
    return x


_erf = np.vectorize(math.erf, otypes=[np.float64])


# ONNX computes these in float32, or with constants of float32, or does not know them


class Erf(OpRun):  # type: ignore[misc]
    """The error function."""

    def _run(self, x: Array) -> tuple[Array]:
        return (_erf(x),)


class Gelu(OpRun):  # type: ignore[misc]
    """``x * Phi(x)``, or its approximation by tanh."""

    def _run(self, x: Array, approximate: str | None = None) -> tuple[Array]:
        if approximate == "tanh":
            return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
        return (0.5 * x * (1 + _erf(x / math.sqrt(2))),)


class HardSwish(OpRun):  # type: ignore[misc]
    """``x * clip(x / 6 + 1/2, 0, 1)``."""

    def _run(self, x: Array) -> tuple[Array]:
        return (x * np.minimum(np.maximum(x / 6 + 0.5, 0.0), 1.0),)


class Silu(OpRun):  # type: ignore[misc]
    """``x * sigmoid(x)``."""

    def _run(self, x: Array) -> tuple[Array]:
        return (x / (1 + np.exp(-x)),)


_OWN: list[type[OpRun]] = [Erf, Gelu, HardSwish, Silu]


def real_of(distance: Array, code: Encoding, target: Target) -> Array:
    """Integers without zero point as the real numbers (float64) that tables take; on some chips rounded to float32."""
    if target.requantize.is_fixed_point:
        return np.asarray(distance.astype(np.float32) * np.float32(activation_step(code)), np.float64)
    return np.asarray(distance.astype(np.float64) * float(code.scales))


def encoded(y: Array, wanted: Encoding, target: Target) -> Array:
    """Real numbers (float64) as integers of an encoding; what is undefined is real 0."""
    rounding = target.table_rounding or target.requantize.rounding
    if target.requantize.is_fixed_point:
        y = (y.astype(np.float32) / np.float32(activation_step(wanted))).astype(np.float64)
    else:
        y = y / float(wanted.scales)
    steps = np.nan_to_num(y, nan=0.0, posinf=1e12, neginf=-1e12)
    if rounding == "half-away":
        whole = np.where(steps < 0, np.ceil(steps - 0.5), np.floor(steps + 0.5))
    else:
        whole = np.rint(steps) if rounding == "half-even" else np.floor(steps + 0.5)
    integers: Array = np.clip(whole + wanted.zero_point, wanted.qmin, wanted.qmax).astype(np.int64)
    return integers


def tabulated(node: ir.Node, x: Array, source: Encoding, wanted: Encoding, target: Target) -> Array:
    """A unary node on integers, through 8-bit tables, 16-bit tables with steps, or entry by entry.

    Args:
        node: the function.
        x: int64 integers in ``source``.
        source: encoding of the input.
        wanted: encoding of the output.
        target: its rounding and its 16-bit table.
    """
    rule = target.table16 if (source.dtype, wanted.dtype) == ("int16", "int16") else None
    points = x
    if rule is not None:
        exact = (x + 32768) / rule.step
        index = np.rint(exact) if rule.rounding == "half-even" else np.floor(exact + 0.5)
        points = index.astype(np.int64) * rule.step - 32768
    parameter = constant_at(node, 1)
    found, inverse = points, None
    if parameter is None or parameter.size == 1:
        found, inverse = np.unique(points, return_inverse=True)
    operands = [real_of(found - source.zero_point, source, target)]
    if parameter is not None:
        operands.append(np.asarray(parameter, np.float64).reshape(() if inverse is not None else parameter.shape))
    entries = encoded(evaluate_wide(node, operands, _OWN)[0], wanted, target)
    return entries if inverse is None else entries[inverse].reshape(x.shape)
