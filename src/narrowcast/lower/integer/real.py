"""Operators that are computed in real numbers between integers: LayerNormalization and the like.

Operands become real numbers in float64, the node computes in float64, and what it gives is rounded to float32 and
quantized. The first rounding takes off what implementations of float64 differ by, so that all of them agree.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from narrowcast.lower.integer.context import Context
from narrowcast.lower.integer.moving import copy_node
from narrowcast.lower.integer.rounding import remove_zero_point
from narrowcast.lower.integer.values import Reals
from narrowcast.ops.builder import Op
from narrowcast.ops.net import constant_of, dims

__all__ = ["lower_real"]


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
