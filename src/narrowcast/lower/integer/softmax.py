"""Softmax: integers in, float32 inside, quantized at the end.

ESP-DL, int8: ``e = exp(s * q)`` from a float32 table of 256 entries, without the largest value taken off first;
sums in float32 one after the other along the axis; ``e / sum``; then QuantizeLinear. Its int16 kernel takes the
largest value off, and so do targets that do not say how they compute. Here exp is the float64 function rounded to
float32, and CumSum adds in the kernel's order.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from narrowcast.base.errors import UserError
from narrowcast.lower.integer.context import Context
from narrowcast.lower.integer.rounding import quantize
from narrowcast.lower.integer.tables import look_up
from narrowcast.lower.integer.values import Integers, Reals
from narrowcast.ops.builder import Op
from narrowcast.ops.net import dims

__all__ = ["lower_softmax"]


def lower_softmax(context: Context, node: ir.Node) -> None:
    """Softmax along one axis."""
    x, encoding = context.integers(node, 0), context.wanted(node)
    builder, output = context.builder, context.name(node.outputs[0])
    axis = node.attributes.get_int("axis", -1) % len(x.shape)
    direct = context.target.softmax.output == "float32" and x.encoding.dtype == "int8"
    exponentials = _direct(context, node, x, output) if direct else _relative(context, x, axis, output)
    sums = builder.add(Op.CUM_SUM, [exponentials, builder.constant(axis, np.int64)], output)
    last = [builder.shape([number]) for number in (x.shape[axis] - 1, x.shape[axis], axis)]
    total = builder.add(Op.SLICE, [sums, *last], output)
    share = Reals(builder.add(Op.DIV, [exponentials, total], output), dims(node.outputs[0]))
    context.store(node.outputs[0], quantize(builder, share, encoding, context.target, output))


def _direct(context: Context, node: ir.Node, x: Integers, stem: str) -> str:
    """``exp(s * q)``."""
    integers = np.arange(x.encoding.qmin, x.encoding.qmax + 1)
    with np.errstate(over="ignore"):
        table = np.exp(integers * float(x.encoding.scales)).astype(np.float32)
        overflows = not np.isfinite(table.sum(dtype=np.float64) * x.shape[-1])
    if overflows:
        raise UserError(
            f"{node.name}: exp of its largest input overflows float32 in the chip's Softmax table",
            f"pin {node.name} to int16, whose kernel takes the largest value off first",
        )
    return look_up(context, x.name, np.roll(table, x.encoding.qmin), x.shape, context.builder.fresh(f"{stem}.exp"))


def _relative(context: Context, x: Integers, axis: int, stem: str) -> str:
    """``exp(s * (q - max))``: an index from -(2^bits - 1) to 0."""
    builder = context.builder
    largest = builder.reduced(Op.REDUCE_MAX, x.name, [axis], stem)
    below = builder.add(Op.SUB, [largest, x.name], stem)
    count = x.encoding.qmax - x.encoding.qmin + 1
    table = np.exp(-np.arange(count) * float(x.encoding.scales)).astype(np.float32)
    return look_up(context, below, table, x.shape, builder.fresh(f"{stem}.exp"))
