"""Operators that move bytes: the node stays as it is, on integers. And Pad, whose padding is an integer too.

Linear Resize: the float arithmetic of ESP-DL's kernel, one float32 operation after the other.

Along the width, then along the height: ``x[i] * (1 - f) + x[i + 1] * f`` of real values, i and f from the position of
the output in float32. Then ``round(y / s')``. With factors of two the fractions are quarters and nothing is rounded
on the way. Nearest Resize moves bytes and is no concern of this module.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from narrowcast.base.errors import UserError
from narrowcast.engine.integer.context import Context
from narrowcast.engine.integer.values import (
    Integers,
    ratio,
    remove_zero_point,
    requantize,
    round_and_saturate,
    saturating_integer,
)
from narrowcast.graph.windows import linear_positions, resize_scales
from narrowcast.ops.facts import GRIDS
from narrowcast.ops.net import Op, constant_of, dims


def copy_node(context: Context, node: ir.Node, inputs: list[str], outputs: list[str]) -> None:
    """Append the node itself with other tensor names."""
    proto = ir.serde.serialize_node(node)
    del proto.input[:], proto.output[:]
    proto.input.extend(inputs)
    proto.output.extend(outputs)
    context.builder.append(proto)


def lower_moving(context: Context, node: ir.Node) -> None:
    """A node whose outputs hold some of its first input's integers."""
    x = context.integers(node, 0)
    inputs = [x.name]
    for value in node.inputs[1:]:
        constant = constant_of(value)
        if value is not None and constant is None:
            raise UserError(f"{node.name}: an operand of {node.op_type} is computed", "make it constant")
        inputs.append("" if constant is None else context.builder.constant(constant, constant.dtype))
    results = []
    for value in node.outputs:
        wanted = context.encoding(value)
        same = wanted is None or wanted == x.encoding
        name = context.name(value) if same else context.builder.fresh(f"{value.name}_moved")
        results.append(Integers(name, x.encoding, dims(value), x.low, x.high))
    copy_node(context, node, inputs, [result.name for result in results])
    for value, result in zip(node.outputs, results, strict=True):
        context.store(value, result)


def lower_concat(context: Context, node: ir.Node) -> None:
    """Concat: every operand in the output's encoding."""
    encoding, output = context.wanted(node), context.name(node.outputs[0])
    parts = [context.integers(node, index) for index in range(len(node.inputs))]
    parts = [p if p.encoding == encoding else requantize(context.builder, p, encoding, context.target) for p in parts]
    copy_node(context, node, [part.name for part in parts], [output])
    low, high = min(part.low for part in parts), max(part.high for part in parts)
    context.store(node.outputs[0], Integers(output, encoding, dims(node.outputs[0]), low, high))


def lower_pad(context: Context, node: ir.Node) -> None:
    """Pad, in the encoding of its result: the padding is the integer of the number, by default the zero point."""
    x, wanted, output = context.integers(node, 0), context.wanted(node), context.name(node.outputs[0])
    if x.encoding != wanted:  # first, because the operand's encoding may not hold the padded number
        x = requantize(context.builder, x, wanted, context.target)
    constants = [constant_of(value) for value in node.inputs[1:]]
    if any(c is None and v is not None for c, v in zip(constants, node.inputs[1:], strict=True)):
        raise UserError(f"{node.name}: an operand of Pad is computed", "make it constant")
    number = 0.0 if len(constants) < 2 or constants[1] is None else float(np.reshape(constants[1], -1)[0])
    filled = saturating_integer(number, x.encoding, context.target.quantize_rounding)
    names = ["" if c is None else context.builder.constant(c, c.dtype) for c in constants]
    names = [names[0], context.builder.constant(float(filled)), *names[2:]]
    copy_node(context, node, [x.name, *names], [output])
    result = Integers(output, x.encoding, dims(node.outputs[0]), min(x.low, filled), max(x.high, filled))
    context.store(node.outputs[0], result)


def lower_linear_resize(context: Context, node: ir.Node) -> None:
    """Resize with mode linear over the last one or two axes."""
    x, encoding = context.integers(node, 0), context.wanted(node)
    mode = node.attributes.get_string("mode", "nearest")
    transformation = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if mode != "linear" or transformation not in GRIDS or node.attributes.get_int("antialias", 0):
        raise UserError(f"{node.name}: no integer rule for Resize {mode}, {transformation}", "use nearest or linear")
    shape = dims(node.outputs[0])
    scales = resize_scales(node, x.shape, shape)
    builder, output = context.builder, context.name(node.outputs[0])
    name = remove_zero_point(builder, x)
    is_fixed = context.target.requantize.is_fixed_point
    if is_fixed:  # in the input's scale; what comes of it is requantized
        encoding, output = x.encoding, builder.fresh(f"{node.outputs[0].name}_resized")
    factor = ratio(float(x.encoding.scales), float(encoding.scales))
    if factor != 1:
        name = builder.arithmetic(Op.MUL, name, factor, output)
    for axis in reversed(range(len(shape))):
        if shape[axis] == x.shape[axis]:
            continue
        if axis < 2:
            raise UserError(f"{node.name}: linear Resize along axis {axis}", "resize height and width only")
        lower, fraction = linear_positions(x.shape[axis], shape[axis], scales[axis], transformation)
        column = fraction.reshape(-1, *[1] * (len(shape) - 1 - axis))
        upper = np.minimum(lower + 1, x.shape[axis] - 1)
        parts = [
            builder.arithmetic(
                Op.MUL, builder.add(Op.GATHER, [name, builder.shape(list(i))], output, axis=axis), w, output
            )
            for i, w in ((lower, np.float32(1) - column), (upper, column))
        ]
        name = builder.add(Op.ADD, parts, output)
    bounds, rounding = (encoding.qmin, encoding.qmax), context.target.requantize.rounding
    round_and_saturate(builder, name, rounding, bounds, encoding.zero_point, output=output, stem=output)
    context.store(node.outputs[0], Integers(output, encoding, shape, *bounds))
