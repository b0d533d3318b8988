"""Relu and Clip, alone or inside a fused unit: saturation to tighter bounds."""

from __future__ import annotations

import onnx_ir as ir

from narrowcast.lower.integer.context import Context
from narrowcast.lower.integer.parameters import saturating_integer
from narrowcast.lower.integer.rounding import requantize
from narrowcast.lower.integer.values import Integers, Pending
from narrowcast.ops.functions import clip_bounds
from narrowcast.plan.types import Encoding

__all__ = ["integer_bounds", "lower_clip"]


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
