"""Linear Resize: the float arithmetic of ESP-DL's kernel, one float32 operation after the other.

Along the width, then along the height: ``x[i] * (1 - f) + x[i + 1] * f`` of real values, i and f from the position of
the output in float32. Then ``round(y / s')``. With factors of two the fractions are quarters and nothing is rounded
on the way. Nearest Resize moves bytes and is no concern of this module.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from narrowcast.base.errors import UserError
from narrowcast.graph.grids import linear_positions, resize_scales
from narrowcast.lower.integer.context import Context
from narrowcast.lower.integer.rounding import ratio, remove_zero_point, round_and_saturate
from narrowcast.lower.integer.values import Integers
from narrowcast.ops.builder import Op
from narrowcast.ops.facts import GRIDS
from narrowcast.ops.net import dims

__all__ = ["lower_linear_resize"]


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
