"""Sums of products: Conv, ConvTranspose, Gemm, MatMul, and the pools that are convolutions with ones.

Of averages and reductions the integers are added exactly; then, in float32 and in this order,

    AveragePool, GlobalAveragePool   round(sum * ((1 / count) * (s / s')))
    ReduceMean                       round((sum * s) / count * (1 / s'))
    ReduceSum                        round(sum * (s / s'))

as the kernels of ESP-DL do; zero points are taken off the sum's terms and added at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.engine.integer.context import EXACT, Context
from narrowcast.engine.integer.fixed import accumulator_step, activation_step, fixed_point, scaled
from narrowcast.engine.integer.sums import Array, Emit, ProductSum
from narrowcast.engine.integer.values import (
    Integers,
    bias_integers,
    ratio,
    remove_zero_point,
    requantize,
    round_and_saturate,
)
from narrowcast.graph.windows import window_counts, windows
from narrowcast.ops.facts import Kind, facts
from narrowcast.ops.net import Op, constant_of, dims, input_at, integers_at
from narrowcast.plan.types import Encoding


def constant_product(context: Context, node: ir.Node) -> ProductSum:
    """Conv, ConvTranspose, Gemm or MatMul with constant weights."""
    values = constant_of(node.inputs[1])
    if values is None or node.inputs[1] is None:
        raise UserError(f"{node.name}: the weights of {node.op_type} are computed", "pin it to float32")
    name = str(node.inputs[1].name)
    encoding = context.plan.tensors.get(name)
    if encoding is None:
        raise UserError(f"the plan has no encoding for {name}, the weight of {node.name}", "make the plan again")
    x, weight = context.integers(node, 0), encoding.quantize(values, context.target.quantize_rounding).astype(np.int32)
    weight -= encoding.zero_point
    entry, shape = facts(node), dims(node.outputs[0])
    emit = _EMITS[entry.kind](context, node)
    if entry.weight_axis is None:
        raise AssertionError(f"{node.op_type} has no weights")
    axis, output_axis = entry.weight_axis(node) % weight.ndim, entry.output_axis % len(shape)
    is_fixed = context.target.requantize.is_fixed_point
    scale = accumulator_step(x.encoding, encoding) if is_fixed else x.encoding.scales * encoding.scales
    if encoding.axis is not None and encoding.axis % weight.ndim != axis:
        raise UserError(f"{node.name}: its weight is scaled along axis {encoding.axis}", "make the plan again")
    if scale.ndim and len(scale) != shape[output_axis]:
        raise UserError(f"{node.name}: a grouped {node.op_type} has one scale per tensor", "make the plan again")
    bias = _bias(context, node, scale if is_fixed else None)
    return ProductSum(context, str(node.name), emit, x, weight, axis, bias, scale, shape, output_axis)


def _bias(context: Context, node: ir.Node, step: NDArray[np.float64] | None) -> Array | None:
    """Integers of the bias; in units of ``step`` where the chip's own float32 step is known."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return None
    values, encoding = constant_of(node.inputs[2]), context.plan.tensors.get(str(node.inputs[2].name))
    if values is None or encoding is None:
        raise UserError(f"{node.name}: its bias has no encoding", "make the plan again")
    channels = dims(node.outputs[0])[facts(node).output_axis]
    if step is not None:
        encoding = replace(encoding, scale=tuple(step.tolist()) if step.ndim else float(step))
    return bias_integers(
        np.broadcast_to(values.reshape(-1), (channels,)), encoding, context.target, context.node_type(node)
    )


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {attribute.name: attribute.value for attribute in node.attributes.values()}


def _convolution(context: Context, node: ir.Node) -> Emit:
    attributes = _attributes(node)

    def emit(x: str, w: str, bias: str | None) -> str:
        inputs = [x, w] if bias is None else [x, w, bias]
        return context.builder.add(node.op_type, inputs, str(node.name), **attributes)

    return emit


def _linear(context: Context, node: ir.Node) -> Emit:
    attributes = node.attributes
    if attributes.get_float("alpha", 1.0) != 1.0 or attributes.get_float("beta", 1.0) != 1.0:
        raise UserError(
            f"{node.name}: Gemm with alpha or beta is no fully connected layer", "fold them into the weights"
        )
    transposed = {"transA": attributes.get_int("transA", 0), "transB": attributes.get_int("transB", 0)}

    def emit(x: str, w: str, bias: str | None) -> str:
        inputs = [x, w] if bias is None else [x, w, bias]
        return context.builder.add(Op.GEMM, inputs, str(node.name), **transposed)

    return emit


def _matrix(context: Context, node: ir.Node) -> Emit:
    def emit(x: str, w: str, bias: str | None) -> str:
        name = context.builder.add(Op.MATMUL, [x, w], str(node.name))
        return name if bias is None else context.builder.add(Op.ADD, [name, bias], str(node.name))

    return emit


_EMITS: dict[Kind, Callable[[Context, ir.Node], Emit]] = {
    Kind.CONVOLUTION: _convolution,
    Kind.TRANSPOSED: _convolution,
    Kind.LINEAR: _linear,
    Kind.MATRIX: _matrix,
}


def dynamic_product(context: Context, node: ir.Node) -> ProductSum:
    """MatMul of two activations."""
    x, y = context.integers(node, 0), context.integers(node, 1)

    def emit(left: str, right: str, bias: str | None) -> str:
        return context.builder.add(Op.MATMUL, [left, right], str(node.name))

    scale = np.asarray(x.encoding.scales * y.encoding.scales)
    if context.target.requantize.is_fixed_point:
        scale = np.asarray(activation_step(x.encoding) * activation_step(y.encoding))
    shape = dims(node.outputs[0])
    return ProductSum(context, str(node.name), emit, x, y, None, None, scale, shape, len(shape) - 1, x.shape[-1])


def window_sum(context: Context, node: ir.Node, x: Integers, kernel: Sequence[int], **geometry: Any) -> ProductSum:
    """Sums over windows of a pool: a depthwise convolution with ones.

    Args:
        context: of the lowering.
        node: the pool.
        x: its input, (N, C, spatial...).
        kernel: sides of the window.
        geometry: strides, pads, dilations as Conv takes them.
    """
    channels = x.shape[1]

    def emit(left: str, weight: str, bias: str | None) -> str:
        return context.builder.add(Op.CONV, [left, weight], str(node.name), group=channels, **geometry)

    ones = np.ones((channels, 1, *kernel), np.int64)
    return ProductSum(context, str(node.name), emit, x, ones, 0, None, x.encoding.scales, dims(node.outputs[0]), 1)


def lower_average_pool(context: Context, node: ir.Node) -> None:
    """AveragePool: a depthwise convolution with ones, then one factor per position."""
    x, encoding = context.integers(node, 0), context.wanted(node)
    shape = dims(node.outputs[0])
    each = windows(node, x.shape[2:], shape[2:])
    total = window_sum(
        context,
        node,
        x,
        [w.kernel for w in each],
        pads=[w.begin for w in each] + [w.needed_end for w in each],
        strides=[w.stride for w in each],
        dilations=[w.dilation for w in each],
    )
    counts = window_counts(node, x.shape[2:], shape[2:])
    if np.all(counts == counts.flat[0]):
        counts = counts.reshape(-1)[0]
    if context.target.requantize.is_fixed_point:
        _fixed_average(context, node, total.accumulator(), int(np.prod([w.kernel for w in each])), x.encoding)
        return
    _finish(context, node, total.accumulator(), _reciprocal_factor(counts, x.encoding, encoding), encoding)


def _fixed_average(context: Context, node: ir.Node, total: str, window: int, encoding: Encoding) -> None:
    """``floor(sum floor(512 / window) / 512)`` in the input's scale, whatever part of the window is padding."""
    if window > 512:
        raise UserError(f"{node.name}: no integer rule for a window of {window} numbers", "pin it to float32")
    builder, output = context.builder, context.builder.fresh(f"{node.outputs[0].name}_mean")
    bounds = [builder.constant(float(bound)) for bound in (-(2**53), 2**53)]  # keeps the factor out of the weights
    total = builder.add(Op.CLIP, [total, *bounds], output)
    name = builder.add(Op.FLOOR, [builder.arithmetic(Op.MUL, total, (512 // window) / 512, output)], output=output)
    result = Integers(name, encoding, dims(node.outputs[0]), encoding.qmin, encoding.qmax)
    context.store(node.outputs[0], result)


def lower_fixed_mean(context: Context, node: ir.Node) -> None:
    """GlobalAveragePool, ReduceMean and ReduceSum by a multiplier and two shifts."""
    x, wanted, kind = context.integers(node, 0), context.wanted(node), facts(node).kind
    if kind in (Kind.LARGEST, Kind.LEAST):
        lower_reduce(context, node)
        return
    is_pool = kind is Kind.GLOBAL_AVERAGE
    axes = list(range(2, len(x.shape))) if is_pool else _axes(node, len(x.shape))
    count = 1 if kind is Kind.TOTAL else int(np.prod([x.shape[axis] for axis in axes]))
    encoding = x.encoding if is_pool else wanted
    factor = activation_step(x.encoding) / count / activation_step(encoding)
    keep = is_pool or bool(node.attributes.get_int("keepdims", 1))
    total, double = _sum(context, x, axes, keep, str(node.name))
    output = context.builder.fresh(f"{node.outputs[0].name}_mean") if is_pool else context.name(node.outputs[0])
    bounds = (encoding.qmin, encoding.qmax)
    fixed = fixed_point(factor, encoding.qmax)
    scaled(context.builder, total, fixed, bounds, output, half=True, is_double=double)
    context.store(node.outputs[0], Integers(output, encoding, dims(node.outputs[0]), *bounds))


def _reciprocal_factor(counts: NDArray[np.int64], source: Encoding, wanted: Encoding) -> NDArray[np.float32]:
    reciprocal = np.float32(1) / np.asarray(counts, np.float32)
    return np.asarray(reciprocal * ratio(float(source.scales), float(wanted.scales)), np.float32)


def lower_global_average(context: Context, node: ir.Node) -> None:
    """GlobalAveragePool."""
    x, encoding = context.integers(node, 0), context.wanted(node)
    axes = list(range(2, len(x.shape)))
    count = np.asarray(int(np.prod([x.shape[axis] for axis in axes])))
    total = _exact_sum(context, x, axes, True, str(node.name))
    _finish(context, node, total, _reciprocal_factor(count, x.encoding, encoding), encoding)


def _exact_sum(context: Context, x: Integers, axes: Sequence[int], keep: bool, stem: str) -> str:
    """Sum over axes, exact; rounded to float32 where it is larger than 2^24."""
    name, double = _sum(context, x, axes, keep, stem)
    return context.builder.cast(name, "float", stem) if double else name


def _sum(context: Context, x: Integers, axes: Sequence[int], keep: bool, stem: str) -> tuple[str, bool]:
    """Sum over axes, exact; and whether it is float64."""
    builder = context.builder
    count = int(np.prod([x.shape[axis] for axis in axes]))
    double = count * x.magnitude > EXACT
    name = remove_zero_point(builder, x)
    name = builder.cast(name, "double", stem) if double else name
    return builder.reduced(Op.REDUCE_SUM, name, axes, stem, keep), double


def _finish(context: Context, node: ir.Node, total: str, factor: NDArray[np.float32], encoding: Encoding) -> None:
    builder, output = context.builder, context.name(node.outputs[0])
    limit = float(2**53)  # keeps onnxruntime from folding the factor into the ones of a pool's convolution
    total = builder.add(Op.CLIP, [total, builder.constant(-limit), builder.constant(limit)], output)
    scaled = builder.arithmetic(Op.MUL, total, factor, output)
    bounds, rounding = (encoding.qmin, encoding.qmax), context.target.requantize.rounding
    round_and_saturate(builder, scaled, rounding, bounds, encoding.zero_point, output=output, stem=output)
    context.store(node.outputs[0], Integers(output, encoding, dims(node.outputs[0]), *bounds))


def lower_reduce(context: Context, node: ir.Node) -> None:
    """ReduceMean, ReduceSum, ReduceMax and ReduceMin over constant axes."""
    x, encoding = context.integers(node, 0), context.wanted(node)
    axes, keep = _axes(node, len(x.shape)), bool(node.attributes.get_int("keepdims", 1))
    builder, stem = context.builder, str(node.name)
    kind = facts(node).kind
    if kind in (Kind.LARGEST, Kind.LEAST):
        name = builder.reduced(node.op_type, x.name, axes, stem, keep)
        reduced = Integers(name, x.encoding, dims(node.outputs[0]), x.low, x.high)
        output = context.name(node.outputs[0])
        context.store(node.outputs[0], requantize(builder, reduced, encoding, context.target, output=output))
        return
    total = _exact_sum(context, x, axes, keep, stem)
    if kind is Kind.TOTAL:
        factor = np.asarray(ratio(float(x.encoding.scales), float(encoding.scales)))
        _finish(context, node, total, factor, encoding)
        return
    count = int(np.prod([x.shape[axis] for axis in axes]))
    scaled = builder.arithmetic(Op.MUL, total, np.float32(x.encoding.scales), stem)
    mean = builder.arithmetic(Op.DIV, scaled, float(count), stem)
    _finish(context, node, mean, np.asarray(np.float32(1) / np.float32(encoding.scales)), encoding)


def _axes(node: ir.Node, rank: int) -> list[int]:
    given = integers_at(node, "axes", 1)
    if given is None and input_at(node, 1) is not None:
        raise UserError(f"{node.name}: the axes of {node.op_type} are computed", "make them constant")
    return sorted(axis % rank for axis in given) if given is not None else list(range(rank))
