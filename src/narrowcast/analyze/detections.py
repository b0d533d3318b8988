"""What decode keeps of a float model's raw outputs, with the cells it came from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.vision.heads import HeadSpec, distances, sigmoid
from narrowcast.vision.nms import non_maximum_suppression

__all__ = ["Found", "boxes_at", "find", "overlaps", "values_at"]

#: Overlap above which two boxes of a class are one object, as decode's default.
_OVERLAP = 0.7


@dataclass
class Found:
    """Detections of one image, best first, n in number.

    Attributes:
        levels, cells: (n,) index of the stride, row-major index in its map.
        classes: (n,) winning class.
        strides: (n,) float32 input pixels a cell.
        x, y: (n,) float32 column and row of the cell.
        scores: (n,) float32 probability.
        boxes: (n, 4) float32 xyxy in input pixels, clipped to the input.
        raw_keypoints: (K, dims, n) as the model gives them, or ``None``.
        logits: flattened ``cls_s*`` of every stride.
        likely: indices into them that reach the candidate threshold.
        candidate_logit: that threshold.
    """

    levels: NDArray[np.int64]
    cells: NDArray[np.int64]
    classes: NDArray[np.int64]
    strides: NDArray[np.float32]
    x: NDArray[np.float32]
    y: NDArray[np.float32]
    scores: NDArray[np.float32]
    boxes: NDArray[np.float32]
    raw_keypoints: NDArray[np.float32] | None
    logits: list[NDArray[np.float32]]
    likely: list[NDArray[np.int64]]
    candidate_logit: float

    @property
    def candidates(self) -> NDArray[np.int64]:
        """Indices of all candidates, by stride."""
        return np.concatenate(self.likely)


def find(
    outputs: Mapping[str, NDArray[Any]],
    head: HeadSpec,
    input_size: tuple[int, int],
    confidence: float,
    candidate: float,
    most: int,
    overlap: float = _OVERLAP,
) -> Found:
    """Decode float outputs of one image and remember where every detection came from.

    Args:
        outputs: raw head tensors by name, (1, C, H, W).
        head: their layout.
        input_size: height and width of the input.
        confidence: least probability of a detection.
        candidate: least probability of a candidate.
        most: detections at most.
        overlap: above which two boxes of a class are one object; 1 keeps every cell.
    """
    maps = [np.asarray(outputs[f"cls_s{stride}"][0], np.float32) for stride in head.strides]
    rows = []
    for level, (stride, logits) in enumerate(zip(head.strides, maps, strict=True)):
        flat = logits.reshape(len(logits), -1)
        best = flat.argmax(axis=0)
        top = flat[best, np.arange(flat.shape[1])]
        cells = np.flatnonzero(top >= _logit(confidence))
        y, x = np.divmod(cells, logits.shape[2])
        rows.append((np.full(len(cells), level), cells, best[cells], np.full(len(cells), stride), x, y, top[cells]))
    levels, cells, classes, strides, x, y, top = (np.concatenate(part) for part in zip(*rows, strict=True))
    limit = _logit(candidate)
    flats = [logits.reshape(-1) for logits in maps]
    likely = [np.flatnonzero(flat >= limit) for flat in flats]
    every = Found(
        levels, cells, classes, strides.astype(np.float32), x.astype(np.float32), y.astype(np.float32),
        sigmoid(top.astype(np.float32)), np.zeros((len(cells), 4), np.float32), None, flats, likely, limit,
    )  # fmt: skip
    every.boxes = boxes_at(outputs, head, every, input_size)
    order = np.argsort(-every.scores, kind="stable")
    kept = order[non_maximum_suppression(every.boxes[order], every.classes[order], overlap, most)]
    names = ("levels", "cells", "classes", "strides", "x", "y", "scores", "boxes")
    found = replace(every, **{name: getattr(every, name)[kept] for name in names})
    if head.keypoint_shape is not None:
        count, dims = head.keypoint_shape
        found.raw_keypoints = values_at(outputs, head, "kpt", found).reshape(count, dims, -1)
    return found


def _logit(probability: float) -> float:
    return -math.log(1 / probability - 1)


def values_at(outputs: Mapping[str, NDArray[Any]], head: HeadSpec, stem: str, found: Found) -> NDArray[np.float32]:
    """(channels, n) float32 values of an output family at the cells of the detections."""
    first = outputs[f"{stem}_s{head.strides[0]}"]
    result = np.empty((first.shape[1], len(found.cells)), np.float32)
    for level, stride in enumerate(head.strides):
        here = np.flatnonzero(found.levels == level)
        tensor = outputs[f"{stem}_s{stride}"]
        result[:, here] = tensor.reshape(tensor.shape[1], -1)[:, found.cells[here]]
    return result


def boxes_at(
    outputs: Mapping[str, NDArray[Any]], head: HeadSpec, found: Found, input_size: tuple[int, int]
) -> NDArray[np.float32]:
    """(n, 4) xyxy in input pixels, clipped to the input."""
    left, top, right, bottom = distances(values_at(outputs, head, "box", found), head.reg_max)
    x, y = found.x + np.float32(0.5), found.y + np.float32(0.5)
    sides = np.stack([x - left, y - top, x + right, y + bottom], axis=1) * found.strides[:, None]
    height, width = input_size
    return np.asarray(np.clip(sides, 0, [width, height, width, height]), np.float32)


def overlaps(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n,) intersection over union of (n, 4) boxes, pair by pair; 1 where both are empty."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    common = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0).prod(axis=1)
    areas = [np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1) for boxes in (a, b)]
    union = areas[0] + areas[1] - common
    return np.asarray(np.where(union > 0, common / np.maximum(union, 1e-12), 1.0), np.float64)
