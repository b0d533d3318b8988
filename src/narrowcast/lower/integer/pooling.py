"""Averages and sums: AveragePool, GlobalAveragePool, ReduceMean, ReduceSum, ReduceMax, ReduceMin.

The integers are added exactly; then, in float32 and in this order,

    AveragePool, GlobalAveragePool   round(sum * ((1 / count) * (s / s')))
    ReduceMean                       round((sum * s) / count * (1 / s'))
    ReduceSum                        round(sum * (s / s'))

as the kernels of ESP-DL do; zero points are taken off the sum's terms and added at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.graph.windows import window_counts, windows
from narrowcast.lower.integer.context import Context
from narrowcast.lower.integer.products import window_sum
from narrowcast.lower.integer.proof import EXACT
from narrowcast.lower.integer.rounding import ratio, remove_zero_point, requantize, round_and_saturate
from narrowcast.lower.integer.values import Integers
from narrowcast.ops.builder import Op
from narrowcast.ops.facts import Kind, facts
from narrowcast.ops.net import dims, input_at, integers_at
from narrowcast.plan.types import Encoding

__all__ = ["lower_average_pool", "lower_global_average", "lower_reduce"]


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
    _finish(context, node, total.accumulator(), _reciprocal_factor(counts, x.encoding, encoding), encoding)


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
    builder = context.builder
    count = int(np.prod([x.shape[axis] for axis in axes]))
    double = count * x.magnitude > EXACT
    name = remove_zero_point(builder, x)
    name = builder.cast(name, "double", stem) if double else name
    name = builder.reduced(Op.REDUCE_SUM, name, axes, stem, keep)
    return builder.cast(name, "float", stem) if double else name


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
