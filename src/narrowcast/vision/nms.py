"""Greedy non-maximum suppression."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["non_maximum_suppression"]


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
        Indices of the boxes kept, best first.
    """
    if not len(boxes):
        return np.zeros(0, np.int64)
    shifted = boxes.astype(np.float64)
    if classes is not None:  # boxes of different classes must not meet
        shifted = shifted + (classes * (np.abs(boxes).max() * 2 + 1))[:, None]
    sizes = np.concatenate([shifted[:, :2], shifted[:, 2:] - shifted[:, :2]], axis=1)  # OpenCV takes x, y, w, h
    order = np.arange(len(boxes), 0, -1, dtype=np.float32)  # only the order of the scores counts
    kept = cv2.dnn.NMSBoxes(sizes, order, 0.0, iou)  # type: ignore[arg-type]
    return np.sort(np.asarray(kept, np.int64).reshape(-1))[:max_detections]
