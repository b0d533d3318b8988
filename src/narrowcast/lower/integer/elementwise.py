"""Add, Sub, Mul, Div, Max and Min of two operands.

With one scale for everything and zero points of 0, Add and Sub are saturating integer additions. Otherwise the chips
multiply floats and round, and every step below is one float32 operation, in the order given:

    Add, Sub   round((a - za) * (sa / s') +- (b - zb) * (sb / s')) + z'
    Mul        round(((a - za) * (b - zb)) * (sa * sb / s')) + z'; of 16 bits exact where the target says so
    Div        round(((a - za) * (sa / (sb * s'))) / (b - zb)) + z'; 0 / b is 0, a / 0 saturates
    Max, Min   of both operands in the output's encoding
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from narrowcast.base.errors import UserError
from narrowcast.lower.integer.context import Context
from narrowcast.lower.integer.rounding import (
    dequantize,
    ratio,
    remove_zero_point,
    requantize,
    round_and_saturate,
)
from narrowcast.lower.integer.values import Integers, Pending, Reals
from narrowcast.ops.builder import Op
from narrowcast.ops.facts import Kind, facts
from narrowcast.ops.net import dims
from narrowcast.plan.types import Encoding

__all__ = ["lower_add", "lower_divide", "lower_extreme", "lower_multiply"]


@dataclass(frozen=True)
class _Addition(Pending):
    """A sum or difference that is not rounded yet."""

    context: Context
    op_type: str
    left: Integers
    right: Integers
    shape: tuple[int, ...]

    def quantized(self, encoding: Encoding, low: int, high: int, output: str) -> Integers:
        builder, rounding = self.context.builder, self.context.target.requantize.rounding
        codes = (self.left.encoding, self.right.encoding, encoding)
        if len({float(code.scales) for code in codes}) == 1 and not any(code.zero_point for code in codes):
            name = builder.add(self.op_type, [self.left.name, self.right.name], output)
            round_and_saturate(builder, name, None, (low, high), output=output, stem=output)
            return Integers(output, encoding, self.shape, low, high)
        terms = [
            builder.arithmetic(
                Op.MUL,
                remove_zero_point(builder, side),
                ratio(float(side.encoding.scales), float(encoding.scales)),
                output,
            )
            for side in (self.left, self.right)
        ]
        name = builder.add(self.op_type, terms, output)
        round_and_saturate(builder, name, rounding, (low, high), encoding.zero_point, output=output, stem=output)
        return Integers(output, encoding, self.shape, low, high)

    def real(self) -> Reals:
        builder = self.context.builder
        terms = [dequantize(builder, side).name for side in (self.left, self.right)]
        return Reals(builder.add(self.op_type, terms, self.left.name), self.shape)


def lower_add(context: Context, node: ir.Node) -> None:
    """Add and Sub."""
    left, right = context.integers(node, 0), context.integers(node, 1)
    context.store(node.outputs[0], _Addition(context, node.op_type, left, right, dims(node.outputs[0])))


def lower_multiply(context: Context, node: ir.Node) -> None:
    """Mul."""
    left, right, encoding = context.integers(node, 0), context.integers(node, 1), context.wanted(node)
    builder, output = context.builder, context.name(node.outputs[0])
    sides = [remove_zero_point(builder, side) for side in (left, right)]
    wide = all(code.dtype == "int16" for code in (left.encoding, right.encoding, encoding))
    if wide and context.target.int16_products == "exact":
        product = builder.add(Op.MUL, [builder.cast(side, "double", output) for side in sides], output)
        scale = float(left.encoding.scales * right.encoding.scales) / float(encoding.scales)
        _finish(context, node, builder.arithmetic(Op.MUL, product, scale, output, np.float64), encoding, output, True)
        return
    product = builder.add(Op.MUL, sides, output)
    factor = ratio(float(left.encoding.scales * right.encoding.scales), float(encoding.scales))
    _finish(context, node, builder.arithmetic(Op.MUL, product, factor, output), encoding, output)


def lower_divide(context: Context, node: ir.Node) -> None:
    """Div."""
    left, right, encoding = context.integers(node, 0), context.integers(node, 1), context.wanted(node)
    builder, output = context.builder, context.name(node.outputs[0])
    a, b = remove_zero_point(builder, left), remove_zero_point(builder, right)
    factor = ratio(float(left.encoding.scales), float(right.encoding.scales) * float(encoding.scales))
    quotient = builder.add(Op.DIV, [builder.arithmetic(Op.MUL, a, factor, output), b], output)
    if right.low <= right.encoding.zero_point <= right.high:
        # the sign of a, times more than any integer: saturates, and is 0 for 0
        beyond = builder.arithmetic(Op.MUL, a, 2.0**40, output)
        zero = builder.add(Op.EQUAL, [b, builder.constant(0.0)], output)
        quotient = builder.add(Op.WHERE, [zero, beyond, quotient], output)
    _finish(context, node, quotient, encoding, output)


def _finish(context: Context, node: ir.Node, x: str, encoding: Encoding, output: str, double: bool = False) -> None:
    rounding, bounds = context.target.requantize.rounding, (encoding.qmin, encoding.qmax)
    builder, zero_point = context.builder, encoding.zero_point
    round_and_saturate(builder, x, rounding, bounds, zero_point, double=double, output=output, stem=output)
    context.store(node.outputs[0], Integers(output, encoding, dims(node.outputs[0]), *bounds))


def lower_extreme(context: Context, node: ir.Node) -> None:
    """Max and Min."""
    encoding, output = context.wanted(node), context.name(node.outputs[0])
    if len(node.inputs) != 2:
        raise UserError(f"{node.name}: {node.op_type} has {len(node.inputs)} operands", "split it into pairs")
    sides = [context.integers(node, index) for index in range(2)]
    sides = [s if s.encoding == encoding else requantize(context.builder, s, encoding, context.target) for s in sides]
    context.builder.add(node.op_type, [side.name for side in sides], output=output)
    pick = max if facts(node).kind is Kind.LARGER else min
    low, high = pick(side.low for side in sides), pick(side.high for side in sides)
    context.store(node.outputs[0], Integers(output, encoding, dims(node.outputs[0]), low, high))
