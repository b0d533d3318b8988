"""Operators that slide a window or move bytes, in torch."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch.nn import functional

from narrowcast.base.errors import UserError
from narrowcast.graph.windows import nearest_positions, resize_scales
from narrowcast.ops.net import dims, integers_at

__all__ = [
    "average_pool",
    "convolution",
    "gemm",
    "max_pool",
    "reduced",
    "reshaped",
    "resize",
    "transposed_convolution",
]

Tensor = Any
_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def _refuse(node: ir.Node, what: str) -> UserError:
    return UserError(f"finetune cannot run {node.op_type} {node.name} with {what}", "leave finetune out for this model")


def _ints(node: ir.Node, name: str, rank: int, default: int) -> list[int]:
    return list(node.attributes.get_ints(name, (default,) * rank) or (default,) * rank)


def _pads(node: ir.Node, rank: int) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial axis."""
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID", ""):
        raise _refuse(node, "auto_pad")
    both = _ints(node, "pads", 2 * rank, 0)
    return both[:rank], both[rank:]


def _padded(x: Tensor, before: list[int], after: list[int], value: float) -> Tensor:
    pairs = list(zip(before, after, strict=True))
    if not any(low or high for low, high in pairs):
        return x
    return functional.pad(x, [side for pair in reversed(pairs) for side in pair], value=value)


def convolution(node: ir.Node, x: list[Tensor]) -> Tensor:
    """ONNX Conv."""
    rank = x[0].dim() - 2
    before, after = _pads(node, rank)
    source, padding = (x[0], before) if before == after else (_padded(x[0], before, after, 0.0), [0] * rank)
    bias = x[2] if len(x) > 2 else None
    strides, dilations = _ints(node, "strides", rank, 1), _ints(node, "dilations", rank, 1)
    group = node.attributes.get_int("group", 1)
    return _CONVOLUTIONS[rank](source, x[1], bias, strides, padding, dilations, group)


def transposed_convolution(node: ir.Node, x: list[Tensor]) -> Tensor:
    """ONNX ConvTranspose with equal padding on both sides."""
    rank = x[0].dim() - 2
    before, after = _pads(node, rank)
    if before != after or node.attributes.get_ints("output_shape", ()):
        raise _refuse(node, "uneven padding")
    bias = x[2] if len(x) > 2 else None
    strides, dilations = _ints(node, "strides", rank, 1), _ints(node, "dilations", rank, 1)
    extra, group = _ints(node, "output_padding", rank, 0), node.attributes.get_int("group", 1)
    return _TRANSPOSED[rank](x[0], x[1], bias, strides, before, extra, group, dilations)


def gemm(node: ir.Node, x: list[Tensor]) -> Tensor:
    """ONNX Gemm: alpha * A @ B + beta * C."""
    get = node.attributes
    left = x[0].T if get.get_int("transA", 0) else x[0]
    right = x[1].T if get.get_int("transB", 0) else x[1]
    product = get.get_float("alpha", 1.0) * (left @ right)
    return product if len(x) < 3 or x[2] is None else product + get.get_float("beta", 1.0) * x[2]


def max_pool(node: ir.Node, x: list[Tensor]) -> Tensor:
    """ONNX MaxPool over two axes; the padding is never the largest."""
    kernel, strides, dilations = _window(node, x)
    before, after = _pads(node, 2)
    source = _padded(x[0], before, after, float("-inf"))
    return functional.max_pool2d(source, kernel, strides, 0, dilations, bool(node.attributes.get_int("ceil_mode", 0)))


def average_pool(node: ir.Node, x: list[Tensor]) -> Tensor:
    """ONNX AveragePool over two axes."""
    kernel, strides, dilations = _window(node, x)
    before, after = _pads(node, 2)
    ceiling = bool(node.attributes.get_int("ceil_mode", 0))
    counted = bool(node.attributes.get_int("count_include_pad", 0))
    if before != after or dilations != [1, 1] or (ceiling and any(before)):
        raise _refuse(node, "uneven padding or dilation")
    return functional.avg_pool2d(x[0], kernel, strides, before, ceiling, counted)


def _window(node: ir.Node, x: list[Tensor]) -> tuple[list[int], list[int], list[int]]:
    if x[0].dim() != 4 or len(node.outputs) != 1:
        raise _refuse(node, f"{x[0].dim()} axes or {len(node.outputs)} outputs")
    return _ints(node, "kernel_shape", 2, 1), _ints(node, "strides", 2, 1), _ints(node, "dilations", 2, 1)


def reduced(node: ir.Node, x: list[Tensor], how: str) -> Tensor:
    """ONNX ReduceMean, ReduceSum, ReduceMax and ReduceMin, by the tensor's own method of a name, e.g. ``"amax"``."""
    axes = integers_at(node, "axes", 1) or list(range(x[0].dim()))
    return getattr(x[0], how)(axes, keepdim=bool(node.attributes.get_int("keepdims", 1)))


def reshaped(node: ir.Node, x: list[Tensor]) -> Tensor:
    """Reshape, Flatten, Squeeze, Unsqueeze: the static shape of the output says all."""
    return x[0].reshape(list(dims(node.outputs[0])))


def resize(node: ir.Node, x: list[Tensor]) -> Tensor:
    """ONNX Resize, nearest along any axes or linear along the last two with half-pixel centres."""
    shape = list(dims(node.outputs[0]))
    mode = node.attributes.get_string("mode", "nearest")
    where = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest" and where != "tf_crop_and_resize":
        result = x[0]
        scales = resize_scales(node, tuple(result.shape), tuple(shape))
        for axis, (old, new, scale) in enumerate(zip(x[0].shape, shape, scales, strict=True)):
            if old != new:
                places = torch.from_numpy(nearest_positions(node, old, new, scale))
                result = result.index_select(axis, places.to(result.device))
        return result
    if len(shape) != 4 or shape[:2] != list(x[0].shape[:2]):
        raise _refuse(node, "other axes than the last two")
    if mode == "linear" and where in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return functional.interpolate(x[0], shape[2:], mode="bilinear", align_corners=where == "align_corners")
    raise _refuse(node, f"mode {mode}, {where}")
