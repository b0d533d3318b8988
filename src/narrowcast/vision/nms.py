"""Greedy non-maximum suppression, vectorised."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["non_maximum_suppression"]

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
