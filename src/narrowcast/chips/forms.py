"""Forms of operators that no integer rule computes, whatever the chip: they run in float, or not at all."""

from __future__ import annotations

import math

import onnx_ir as ir

from narrowcast.ops.net import dims, input_at

__all__ = ["no_integers"]

#: Inputs that must be constant for a node to run as integers, by operator.
_CONSTANT_INPUTS = {
    **dict.fromkeys(("Conv", "ConvTranspose"), (1, 2)),
    **dict.fromkeys(("Clip", "Resize"), (1, 2, 3)),
    **dict.fromkeys(("Slice", "Pad"), (1, 2, 3, 4)),
    **dict.fromkeys(("Pow", "PRelu", "Gather", "Reshape", "Expand", "Tile", "Split", "Squeeze", "Unsqueeze"), (1,)),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"), (1,)),
    "Gemm": (1, 2),
}
_TRANSFORMATIONS = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")


def no_integers(node: ir.Node) -> tuple[str, str]:
    """Why a node of a prepared graph has no integer form, as a clause, and what to do; empty where it has one.

    Args:
        node: of an operator that some target lists, or another.
    """
    for index in _CONSTANT_INPUTS.get(node.op_type, ()):
        value = input_at(node, index)
        if value is not None and value.const_value is None:
            return f"its input {index} ({value.name}) is computed", "make it a constant, or cut the model before it"
    if node.op_type == "Gather" and node.inputs[0] is not None and node.inputs[0].const_value is not None:
        return "it looks values of a constant up", "cut the model behind it"
    if node.op_type == "MaxPool" and len(node.outputs) > 1:
        return "its indices are asked for", "use Resize in place of MaxUnpool"
    if node.op_type == "Pow" and _size(node.inputs[1]) != 1:
        return f"it has {_size(node.inputs[1])} exponents", "use one exponent"
    if node.op_type == "PRelu":
        return _slopes(node)
    return _resize(node) if node.op_type == "Resize" else ("", "")


def _size(value: ir.Value | None) -> int:
    return math.prod(dims(value))


def _slopes(node: ir.Node) -> tuple[str, str]:
    """One slope, or one a channel."""
    whole, slopes = dims(node.inputs[0]), dims(node.inputs[1])
    full = [1] * (len(whole) - len(slopes)) + list(slopes)
    if math.prod(slopes) == 1 or (len(whole) > 1 and full == [1, whole[1], *[1] * (len(whole) - 2)]):
        return "", ""
    return f"it has {math.prod(slopes)} slopes", "use one slope, or one a channel"


def _resize(node: ir.Node) -> tuple[str, str]:
    text = node.attributes.get_string
    mode, transformation = text("mode", "nearest"), text("coordinate_transformation_mode", "half_pixel")
    remedy = "use nearest or linear, with half_pixel, asymmetric or align_corners"
    if mode not in ("nearest", "linear"):
        return f"mode {mode}", remedy
    if transformation not in _TRANSFORMATIONS:
        return f"coordinate transformation {transformation}", remedy
    if node.attributes.get_int("antialias", 0):
        return "it is antialiased", "export the model with antialias=False"
    if "axes" in node.attributes or text("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "its sizes are rounded to an aspect ratio", "give the sizes of every axis"
    return "", ""
