"""Linear Resize: the float arithmetic of ESP-DL's kernel, one float32 operation after the other.

Along the width, then along the height: ``x[i] * (1 - f) + x[i + 1] * f`` of real values, i and f from the position of
the output in float32. Then ``round(y / s')``. With factors of two the fractions are quarters and nothing is rounded
on the way. Nearest Resize moves bytes and is no concern of this module.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.errors import UserError
from narrowcast.graph.units import constant_of
from narrowcast.lower.integer.context import Context, dims
from narrowcast.lower.integer.rounding import ratio, remove_zero_point, round_and_saturate
from narrowcast.lower.integer.values import Integers

__all__ = ["linear_positions", "lower_linear_resize", "resize_scales"]


def resize_scales(node: ir.Node, source: tuple[int, ...], wanted: tuple[int, ...]) -> list[float]:
    """Output size divided by input size of every axis, as the node says it (its ``scales`` or its sizes)."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    scales = constant_of(value)
    if scales is not None and scales.size == len(source):
        return [float(scale) for scale in scales]
    return [w / s for s, w in zip(source, wanted, strict=True)]


def linear_positions(
    size: int, outputs: int, scale: float, transformation: str
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Lower neighbour and fraction of every output along one axis.

    Args:
        size: of the input.
        outputs: of the output.
        scale: output size / input size.
        transformation: ONNX's ``coordinate_transformation_mode``.

    Returns:
        Indices in 0..size - 2 (0 when size is 1), and fractions in 0..1; computed in float32.
    """
    position = np.arange(outputs, dtype=np.float32)
    inverse = np.float32(1 / scale)
    if transformation == "align_corners":
        inverse = np.float32((size - 1) / (outputs - 1)) if outputs > 1 else np.float32(0)
        position = position * inverse
    elif transformation == "asymmetric":
        position = position * inverse
    elif transformation == "half_pixel" or (transformation == "pytorch_half_pixel" and outputs > 1):
        position = (position + np.float32(0.5)) * inverse - np.float32(0.5)
    elif transformation == "pytorch_half_pixel":
        position = np.zeros_like(position)
    else:
        raise ValueError(transformation)
    lower = np.floor(position).astype(np.int64)
    fraction = (position - lower.astype(np.float32)).astype(np.float32)
    fraction[lower < 0] = 0
    lower[lower < 0] = 0
    beyond = lower >= size - 1
    fraction[beyond] = 1 if size > 1 else 0
    lower[beyond] = max(size - 2, 0)
    return lower, fraction


def lower_linear_resize(context: Context, node: ir.Node) -> None:
    """Resize with mode linear over the last one or two axes."""
    x, encoding = context.integers(node, 0), context.wanted(node)
    mode = node.attributes.get_string("mode", "nearest")
    transformation = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    known = ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
    if mode != "linear" or transformation not in known or node.attributes.get_int("antialias", 0):
        raise UserError(f"{node.name}: no integer rule for Resize {mode}, {transformation}", "use nearest or linear")
    shape = dims(node.outputs[0])
    scales = resize_scales(node, x.shape, shape)
    builder, output = context.builder, context.name(node.outputs[0])
    name = remove_zero_point(builder, x)
    factor = ratio(float(x.encoding.scales), float(encoding.scales))
    if factor != 1:
        name = builder.arithmetic("Mul", name, factor, output)
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
                "Mul", builder.add("Gather", [name, builder.shape(list(i))], output, axis=axis), w, output
            )
            for i, w in ((lower, np.float32(1) - column), (upper, column))
        ]
        name = builder.add("Add", parts, output)
    bounds, rounding = (encoding.qmin, encoding.qmax), context.target.requantize.rounding
    round_and_saturate(builder, name, rounding, bounds, encoding.zero_point, output=output, stem=output)
    context.store(node.outputs[0], Integers(output, encoding, shape, *bounds))
