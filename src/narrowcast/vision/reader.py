"""Reads raw output tensors as they were stored, dequantizes only what is asked for, and drops boxes that overlap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class OutputEncoding:
    """How an integer output is read: ``x = (q - zero_point) * scale``.

    Attributes:
        dtype: numpy name of the integer type.
        scale: one value, or one a channel.
        zero_point: integer that stands for 0.0.
        axis: channel axis of a per-channel scale.
    """

    dtype: str
    scale: float | NDArray[np.float64]
    zero_point: int = 0
    axis: int | None = None

    def real(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Integers as real numbers, in their shape."""
        scale = np.asarray(self.scale, np.float64)
        if self.axis is not None:
            scale = scale.reshape([-1 if axis == self.axis else 1 for axis in range(values.ndim)])
        return np.asarray((values.astype(np.float64) - self.zero_point) * scale)


class Reader:
    """Access to the outputs of one image by name, cell and channel.

    Args:
        outputs: by name, (1, C, H, W) or (1, H, W, C).
        encodings: how integer outputs are read.
        layout: ``"NCHW"`` or ``"NHWC"``.
    """

    def __init__(
        self, outputs: Mapping[str, NDArray[Any]], encodings: Mapping[str, OutputEncoding], layout: str
    ) -> None:
        if layout not in ("NCHW", "NHWC"):
            raise ValueError(f"the layout is {layout!r}; use NCHW or NHWC")
        self.outputs = outputs
        self.encodings = encodings
        self.channels_last = layout == "NHWC"

    def size(self, name: str) -> tuple[int, int]:
        """Height and width of a map."""
        shape = self._tensor(name).shape
        return (shape[1], shape[2]) if self.channels_last else (shape[2], shape[3])

    def take(self, name: str, channels: int, cells: NDArray[np.int64]) -> NDArray[np.float32]:
        """(channels, n) float32 at the given cells."""
        stored = self._flat(name, channels)
        values = stored[cells].T if self.channels_last else stored.take(cells, axis=1)
        return self._real(name, values, None)

    def pick(self, name: str, channels: NDArray[np.int64], cells: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n,) float32: one channel at each of the given cells."""
        tensor = self._tensor(name)
        stored = self._flat(name, tensor.shape[3 if self.channels_last else 1])
        values = stored[cells, channels] if self.channels_last else stored[channels, cells]
        return self._real(name, values, channels)

    def whole(self, name: str, channels: int) -> NDArray[np.float32]:
        """(channels, H, W) float32; a view where nothing has to be converted."""
        stored = self._flat(name, channels)
        height, width = self.size(name)
        planes = (stored.T if self.channels_last else stored).reshape(channels, height, width)
        return self._real(name, planes, None)

    def at_least(self, name: str, channels: int, threshold: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Channel and cell of every value that is ``threshold`` or more; compared as stored, without dequantizing."""
        stored = self._flat(name, channels)
        hits = np.flatnonzero(stored >= self._limit(name, threshold, stored.dtype))
        if self.channels_last:
            cells, found = np.divmod(hits, channels)
            return found, cells
        found, cells = np.divmod(hits, stored.shape[1])
        return found, cells

    def _tensor(self, name: str) -> NDArray[Any]:
        if name not in self.outputs:
            raise ValueError(f"the output {name!r} is missing; there are {', '.join(self.outputs) or 'none'}")
        tensor = self.outputs[name]
        if tensor.ndim != 4 or tensor.shape[0] != 1:
            raise ValueError(f"the output {name!r} has the shape {tensor.shape}; decode one image of 4 dimensions")
        return tensor

    def _flat(self, name: str, channels: int) -> NDArray[Any]:
        """As stored: (channels, cells), or (cells, channels) where channels come last."""
        tensor = self._tensor(name)[0]
        there = tensor.shape[2 if self.channels_last else 0]
        if there != channels:
            raise ValueError(f"the output {name!r} has {there} channels, the head says {channels}")
        if not np.issubdtype(tensor.dtype, np.floating) and name not in self.encodings:
            raise ValueError(f"the output {name!r} holds {tensor.dtype} but has no encoding")
        return np.reshape(tensor, (-1, channels) if self.channels_last else (channels, -1))

    def _real(self, name: str, values: NDArray[Any], channels: NDArray[np.int64] | None) -> NDArray[np.float32]:
        """Stored values to float32; ``channels`` says each value's channel where that is not the first axis."""
        encoding = self.encodings.get(name)
        if encoding is None:
            return values.astype(np.float32, copy=False)
        scale = np.asarray(encoding.scale, np.float32)
        if scale.ndim:
            scale = scale[channels] if channels is not None else scale.reshape(-1, *[1] * (values.ndim - 1))
        if encoding.zero_point:
            values = values.astype(np.int64) - encoding.zero_point
        real = values.astype(np.float32)
        real *= scale
        return real

    def _limit(self, name: str, threshold: float, dtype: np.dtype[Any]) -> Any:
        """What a stored value is compared with so that the test equals ``real value >= threshold``."""
        encoding = self.encodings.get(name)
        if encoding is None:
            return np.float32(threshold)
        scale = np.atleast_1d(np.asarray(encoding.scale, np.float32))
        steps = np.ceil(np.float64(threshold) / scale).astype(np.int64) - 1
        for _ in range(2):  # float32 rounding may move the limit by one step
            steps = np.where(steps.astype(np.float32) * scale >= np.float32(threshold), steps, steps + 1)
        limits = steps + encoding.zero_point
        if len(limits) == 1:
            return int(limits[0])
        known = np.iinfo(dtype)
        if known.min <= limits.min() and limits.max() <= known.max:
            limits = limits.astype(dtype)  # the comparison stays in the narrow type
        return limits if self.channels_last else limits[:, None]


#: Boxes that are compared with each other at once; bounds the memory when very many overlap.
_CHUNK = 1024


def non_maximum_suppression(
    boxes: NDArray[np.float32], classes: NDArray[np.int64] | None, iou: float, max_detections: int
) -> NDArray[np.int64]:
    """Keep the best of every group of boxes that overlap by more than ``iou``.

    Args:
        boxes: (N, 4) left, top, right, bottom, best first.
        classes: (N,) only boxes of a class suppress each other; ``None`` for all.
        iou: intersection over union, 0..1.
        max_detections: kept at most.

    Returns:
        Indices of the boxes kept, best first: what the sequential definition gives, a box being dropped when a
        better one that is kept overlaps it by more than ``iou``.
    """
    if not 0 <= iou <= 1:
        raise ValueError(f"an overlap of {iou} is outside 0..1")
    sides = boxes.astype(np.float64)
    if classes is not None and len(boxes):  # boxes of different classes lie side by side, so they never meet
        sides[:, ::2] += (classes * (np.ptp(sides[:, ::2]) + 1))[:, None]
    kept = np.zeros(0, np.int64)
    for first in range(0, len(boxes), _CHUNK):
        pool = np.concatenate([kept, np.arange(first, min(first + _CHUNK, len(boxes)))])
        kept = pool[_greedy(sides[pool], iou)]
        if len(kept) >= max_detections:
            break
    return kept[:max_detections]


def _greedy(boxes: NDArray[np.float64], iou: float) -> NDArray[np.bool_]:
    """(n,) whether a box is kept."""
    better, worse = _overlapping(boxes, iou)
    kept = np.ones(len(boxes), np.bool_)
    while len(better):
        # the first box is right from the start, and each round settles at least the next one (Zheng et al., 2020)
        settled = np.ones(len(boxes), np.bool_)
        settled[worse[kept[better]]] = False
        if np.array_equal(settled, kept):
            break
        kept = settled
    return kept


def _overlapping(boxes: NDArray[np.float64], iou: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of indices, the better box (the smaller index) first, that overlap by more than ``iou``."""
    order = np.argsort(boxes[:, 0], kind="stable")
    left, top, right, bottom = np.ascontiguousarray(boxes[order].T)
    width, height = np.maximum(right - left, 0), np.maximum(bottom - top, 0)
    # intersection > iou * own area, so a partner that begins further right than this is too far away
    reach = np.searchsorted(left, left + width * (1 - iou) * (1 + 1e-9), side="right")
    partners = np.maximum(reach - np.arange(len(boxes)) - 1, 0)
    one = np.repeat(np.arange(len(boxes)), partners)
    other = np.arange(len(one)) - np.repeat(np.cumsum(partners) - partners, partners) + one + 1
    common_height = np.minimum(bottom[one], bottom[other]) - np.maximum(top[one], top[other])
    near = common_height > 0
    one, other = one[near], other[near]
    common = np.maximum(np.minimum(right[one], right[other]) - left[other], 0) * common_height[near]
    area = width * height
    pairs = common > iou * (area[one] + area[other] - common)
    first, second = order[one[pairs]], order[other[pairs]]
    return np.minimum(first, second), np.maximum(first, second)
