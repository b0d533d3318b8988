"""Operators that compute each number of the result from one place of their operands.

With one scale for everything and zero points of 0, Add and Sub are saturating integer additions. Otherwise the chips
multiply floats and round, and every step below is one float32 operation, in the order given:

    Add, Sub   round((a - za) * (sa / s') +- (b - zb) * (sb / s')) + z'
    Mul        round(((a - za) * (b - zb)) * (sa * sb / s')) + z'; of 16 bits exact where the target says so
    Div        round(((a - za) * (sa / (sb * s'))) / (b - zb)) + z'; 0 / b is 0, a / 0 saturates
    Max, Min   of both operands in the output's encoding

Relu and Clip, alone or inside a fused unit, are saturation to tighter bounds. LayerNormalization and the like are
computed in real numbers between integers: operands become real numbers in float64, the node computes in float64, and
what it gives is rounded to float32 and quantized. The first rounding takes off what implementations of float64 differ
by, so that all of them agree.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from narrowcast.base.errors import UserError
from narrowcast.engine.integer.context import Context
from narrowcast.engine.integer.fixed import activation_step, fixed_point, scaled, shifted_operand
from narrowcast.engine.integer.moving import copy_node
from narrowcast.engine.integer.tables import lower_function
from narrowcast.engine.integer.values import (
    Integers,
    Pending,
    Reals,
    dequantize,
    ratio,
    remove_zero_point,
    requantize,
    round_and_saturate,
    saturating_integer,
)
from narrowcast.ops.facts import Kind, facts
from narrowcast.ops.functions import clip_bounds
from narrowcast.ops.net import Op, constant_of, dims
from narrowcast.plan.types import Encoding


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
        if self.context.target.requantize.is_fixed_point:
            self._fixed(encoding, (low, high), output)
            return Integers(output, encoding, self.shape, low, high)
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

    def _fixed(self, encoding: Encoding, bounds: tuple[int, int], output: str) -> None:
        """The finer operand times a multiplier, the coarser one shifted as far; see :mod:`.fixed`."""
        builder, sides = self.context.builder, (self.left, self.right)
        steps = [activation_step(side.encoding) for side in sides]
        coarse = 0 if steps[0] >= steps[1] else 1
        scale, shift = shifted_operand(steps[1 - coarse] / steps[coarse])
        # of 8 bits the sum stays within 2^24 unless the scales are far apart
        double = shift > 15 or any(side.encoding.dtype != "int8" for side in sides)
        terms = []
        for index in (coarse, 1 - coarse):  # of a difference the finer operand is taken off, whichever stands first
            side, factor = sides[index], 2.0**shift if index == coarse else float(scale)
            name = builder.cast(side.name, "double", output) if double else side.name
            terms.append(builder.arithmetic(Op.MUL, name, factor, output, np.float64 if double else np.float32))
        total = builder.add(self.op_type, terms, output)
        fixed = fixed_point(steps[coarse] * 2.0**-shift / activation_step(encoding), encoding.qmax, elementwise=True)
        if coarse == 1:
            fixed = replace(fixed, scale=fixed.scale * {Op.ADD: 1, Op.SUB: -1}[self.op_type])
        scaled(builder, total, fixed, bounds, output, half=True, is_double=double)

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
    if context.target.requantize.is_fixed_point:
        double = any(side.encoding.dtype != "int8" for side in (left, right))
        sides = [builder.cast(side, "double", output) if double else side for side in sides]
        product = builder.add(Op.MUL, sides, output)
        steps = activation_step(left.encoding) * activation_step(right.encoding) / activation_step(encoding)
        bounds = (encoding.qmin, encoding.qmax)
        fixed = fixed_point(steps, encoding.qmax, elementwise=True)
        scaled(builder, product, fixed, bounds, output, half=True, is_double=double)
        context.store(node.outputs[0], Integers(output, encoding, dims(node.outputs[0]), *bounds))
        return
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


def integer_bounds(node: ir.Node, encoding: Encoding, rounding: str) -> tuple[int, int]:
    """The bounds as integers of the output: saturating to them is the same as clipping before rounding."""
    low, high = (saturating_integer(bound, encoding, rounding) for bound in clip_bounds(node))
    return low, high


def lower_clip(context: Context, node: ir.Node) -> None:
    """Relu and Clip: ``clip(round(x / s'), round(low / s'), round(high / s'))``, after the shift of a fused sum."""
    encoding, value = context.wanted(node), node.inputs[0]
    bounds = integer_bounds(node, encoding, context.target.requantize.rounding)
    output = context.name(node.outputs[0])
    current = context.values.get(str(value.name)) if value is not None else None
    if isinstance(current, Pending):
        result: Integers = current.quantized(encoding, *bounds, output)
    else:
        result = requantize(context.builder, context.integers(node, 0), encoding, context.target, bounds, output)
    context.store(node.outputs[0], result)


def lower_fixed_clip(context: Context, node: ir.Node) -> None:
    """Relu and Clip that are not part of a sum and change the scale: a table."""
    value = node.inputs[0]
    current = context.values.get(str(value.name)) if value is not None else None
    if not isinstance(current, Integers) or current.encoding == context.wanted(node):
        lower_clip(context, node)
        return
    low, high = clip_bounds(node)
    lower_function(context, node, lambda x: np.clip(x, low, high))


def lower_real(context: Context, node: ir.Node) -> None:
    """A node of one result in float64; constants without an encoding are taken as they are."""
    output, builder = str(node.outputs[0].name), context.builder
    operands = []
    for index, value in enumerate(node.inputs):
        constant = constant_of(value)
        if value is None:
            operands.append("")
        elif constant is not None and str(value.name) not in context.plan.tensors:
            wide = constant.astype(np.float64) if constant.dtype.kind == "f" else constant
            operands.append(builder.constant(wide, wide.dtype))
        else:
            x = context.integers(node, index)
            steps = builder.cast(remove_zero_point(builder, x), "double", output)
            operands.append(builder.arithmetic(Op.MUL, steps, float(x.encoding.scales), output, np.float64))
    real = builder.fresh(f"{output}.real")
    copy_node(context, node, operands, [real])
    context.store(node.outputs[0], Reals(builder.cast(real, "float", output), dims(node.outputs[0])))
