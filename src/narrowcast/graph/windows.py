"""The windows of convolutions and pools along each axis, with ``auto_pad`` and ``ceil_mode`` worked out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["Window", "window_counts", "windows"]


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
