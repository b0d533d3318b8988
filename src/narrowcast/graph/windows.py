"""Which places of its input an operator reads along each axis.

The windows of convolutions and pools, with ``auto_pad`` and ``ceil_mode`` worked out; of Resize the indices of mode
nearest, neighbours and fractions of mode linear, in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.ops.net import constant_at


@dataclass(frozen=True)
class Window:
    """One spatial axis of a convolution or pool.

    Attributes:
        size: of the input.
        outputs: size of the output.
        kernel, stride, dilation: of the window.
        begin, end: padding, as the node says it.
    """

    size: int
    outputs: int
    kernel: int
    stride: int
    dilation: int
    begin: int
    end: int

    @property
    def needed_end(self) -> int:
        """Padding at the end without which there would be fewer outputs (ceil_mode asks for more than ``end``)."""
        return max(self._reach - self.size - self.begin, 0)

    @property
    def _reach(self) -> int:
        return (self.outputs - 1) * self.stride + (self.kernel - 1) * self.dilation + 1

    def counts(self, with_pads: bool) -> NDArray[np.int64]:
        """(outputs,) how many positions of each window lie in the input, or in input and padding."""
        starts = np.arange(self.outputs)[:, None] * self.stride - self.begin
        positions = starts + np.arange(self.kernel) * self.dilation
        low, high = (-self.begin, self.size + self.end) if with_pads else (0, self.size)
        return np.asarray(((positions >= low) & (positions < high)).sum(axis=1))


def windows(
    node: ir.Node, sizes: Sequence[int], outputs: Sequence[int], kernel: Sequence[int] | None = None
) -> list[Window]:
    """The window of each spatial axis.

    Args:
        node: a Conv or pool.
        sizes: of the input's spatial axes.
        outputs: of the output's.
        kernel: for a node without the attribute ``kernel_shape``.
    """
    count = len(sizes)
    kernel = list(kernel or node.attributes.get_ints("kernel_shape", []) or [])
    strides = list(node.attributes.get_ints("strides", []) or [1] * count)
    dilations = list(node.attributes.get_ints("dilations", []) or [1] * count)
    pads = list(node.attributes.get_ints("pads", []) or [0] * (2 * count))
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    found = []
    for axis in range(count):
        begin, end = pads[axis], pads[axis + count]
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            reach = (outputs[axis] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1
            total = max(reach - sizes[axis], 0)
            begin = total // 2 if auto == "SAME_UPPER" else total - total // 2
            end = total - begin
        found.append(Window(sizes[axis], outputs[axis], kernel[axis], strides[axis], dilations[axis], begin, end))
    return found


def window_counts(node: ir.Node, sizes: Sequence[int], outputs: Sequence[int]) -> NDArray[np.int64]:
    """By how many numbers an AveragePool divides each sum, shape ``outputs``.

    Args:
        node: the pool.
        sizes: of the input's spatial axes.
        outputs: of the output's.
    """
    with_pads = bool(node.attributes.get_int("count_include_pad", 0))
    counts = np.ones((), np.int64)
    for window in windows(node, sizes, outputs):
        counts = counts[..., None] * window.counts(with_pads)
    return counts


#: A position so near to the middle of two pixels is the middle, as in onnxruntime: float32 decides no tie.
_TIE = 1e-6


def resize_scales(node: ir.Node, source: tuple[int, ...], wanted: tuple[int, ...]) -> list[float]:
    """Output size divided by input size of every axis, float32 as the node says it (its ``scales`` or its sizes)."""
    scales = constant_at(node, 2)
    if scales is not None and scales.size == len(source):
        return [float(scale) for scale in scales]
    return [float(np.float32(w / s)) for s, w in zip(source, wanted, strict=True)]


def linear_positions(
    size: int, outputs: int, scale: float, transformation: str
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Lower neighbour and fraction of every output along one axis.

    Args:
        size: of the input.
        outputs: of the output.
        scale: output size / input size.
        transformation: one of :data:`narrowcast.ops.facts.GRIDS`.

    Returns:
        Indices in 0..size - 2 (0 when size is 1), and fractions in 0..1; computed in float32.
    """
    position = np.arange(outputs, dtype=np.float32)
    inverse = np.float32(1 / scale)
    if transformation == "align_corners":
        spread = np.float32((outputs - 1) / (size - 1)) if size > 1 and outputs > 1 else np.float32(0)
        position = position * (1 / spread if spread else spread)
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


def floor_positions(size: int, outputs: int, scale: float) -> NDArray[np.int64]:
    """``floor(i / scale)`` for every output, the quotient as a float32 product with ``1 / scale``."""
    position = np.arange(outputs, dtype=np.float32) * (np.float32(1) / np.float32(scale))
    return np.asarray(np.minimum(position.astype(np.int64), size - 1))


def nearest_positions(node: ir.Node, size: int, outputs: int, scale: float) -> NDArray[np.int64]:
    """The pixel that mode nearest reads for every output along one axis, positions in float32.

    Args:
        node: a Resize with mode nearest.
        size: of the input.
        outputs: of the output.
        scale: output size / input size.

    Raises:
        ValueError: a transformation or rule that is not known.
    """
    transformation = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    place, half, factor = np.arange(outputs, dtype=np.float32), np.float32(0.5), np.float32(scale)
    if transformation == "align_corners":
        place = place * np.float32(size - 1) / np.float32(max(outputs - 1, 1))
    elif transformation == "asymmetric":
        place = place / factor
    elif transformation == "pytorch_half_pixel" and outputs == 1:
        place = np.zeros(1, np.float32)
    elif transformation in ("half_pixel", "pytorch_half_pixel"):
        place = (place + half) / factor - half
    else:
        raise ValueError(transformation)
    rule = node.attributes.get_string("nearest_mode", "round_prefer_floor")
    exact = place.astype(np.float64)
    index = {
        "round_prefer_floor": np.ceil(exact - 0.5 - _TIE),
        "round_prefer_ceil": np.floor(exact + 0.5 + _TIE),
        "floor": np.floor(place),
        "ceil": np.ceil(place),
    }[rule]
    return np.asarray(np.clip(index, 0, size - 1).astype(np.int64))
