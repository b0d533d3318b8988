"""Relu and Clip, alone or inside a fused unit: saturation to tighter bounds."""

from __future__ import annotations

import math

import onnx_ir as ir

from narrowcast.base.errors import UserError
from narrowcast.lower.integer.context import Context
from narrowcast.lower.integer.parameters import saturating_integer
from narrowcast.lower.integer.rounding import requantize
from narrowcast.lower.integer.values import Integers, Pending
from narrowcast.ops.net import constant_of, input_at
from narrowcast.plan.types import Encoding

__all__ = ["clip_bounds", "integer_bounds", "lower_clip"]


def clip_bounds(node: ir.Node) -> tuple[float, float]:
    """Real bounds of a Relu or Clip.

    Raises:
        UserError: bounds that are computed.
    """
    if node.op_type == "Relu":
        return 0.0, math.inf
    bounds = [-math.inf, math.inf]
    for index in (1, 2):
        value = input_at(node, index)
        if value is None:
            continue
        constant = constant_of(value)
        if constant is None:
            raise UserError(f"{node.name}: the bounds of Clip are computed", "make them constant")
        bounds[index - 1] = float(constant.reshape(-1)[0])
    return bounds[0], bounds[1]


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
