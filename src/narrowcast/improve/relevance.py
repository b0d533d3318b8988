"""Which values of an output matter to what decode makes of it, and how much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.vision.heads import HeadSpec, distances, sigmoid

__all__ = ["relevant"]

#: Least class probability of a cell whose box, keypoints or mask coefficients matter.
LEAST_PROBABILITY = 0.02
#: Values of a channel of one image that are looked at, at most.
MOST = 4096

Rows = NDArray[np.float64]


def relevant(name: str, outputs: Mapping[str, NDArray[Any]], head: HeadSpec | None) -> tuple[Rows, Rows]:
    """Values of an output in one image, and the weight of a squared error of each.

    Box bins: the squared slope of the distance that the softmax over the bins gives. Keypoints: 1 over the area of the
    box, as in object keypoint similarity, and the squared slope of the visibility. Class logits: the squared slope of
    the probability. Everything else: 1.

    Args:
        name: of the output, as the head names it.
        outputs: float outputs of one image (1, C, H, W) by name.
        head: their layout; ``None`` for outputs of which nothing is known.

    Returns:
        Values and weights, (C, P) both.
    """
    values = np.asarray(outputs[name][0], np.float64).reshape(outputs[name].shape[1], -1)
    stem, _, stride = name.partition("_s")
    if head is None or not stride.isdecimal() or f"cls_s{stride}" not in outputs:
        values = values[:, :: _step(values.shape[1])]
        return values, np.ones_like(values)
    logits = np.asarray(outputs[f"cls_s{stride}"][0], np.float32).reshape(head.num_classes, -1)
    if stem == "cls":
        values = values[:, :: _step(values.shape[1])]
        probability = sigmoid(values.astype(np.float32)).astype(np.float64)
        return values, np.square(probability * (1 - probability)) + 1e-8
    probability = sigmoid(logits.max(axis=0)).astype(np.float64)
    cells = np.flatnonzero(probability >= LEAST_PROBABILITY)
    values, probability = values[:, cells], probability[cells]
    if stem == "box":
        return values, _box_weights(values, head) * probability
    if stem == "kpt":
        boxes = np.asarray(outputs[f"box_s{stride}"][0], np.float32).reshape(4 * head.reg_max, -1)[:, cells]
        return values, _keypoint_weights(values, boxes, head) * probability
    return values, np.ones_like(values) * probability


def _step(count: int) -> int:
    return max(1, -(-count // MOST))


def _box_weights(values: Rows, head: HeadSpec) -> Rows:
    if head.reg_max == 1:
        return np.ones_like(values)
    bins = values.reshape(4, head.reg_max, -1)
    shares = np.exp(bins - bins.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    place = np.arange(head.reg_max, dtype=np.float64)[:, None]
    slope = shares * (place - (shares * place).sum(axis=1, keepdims=True))
    return np.asarray((np.square(slope) + 1e-6).reshape(values.shape))


def _keypoint_weights(values: Rows, boxes: NDArray[np.float32], head: HeadSpec) -> Rows:
    assert head.keypoint_shape is not None
    left, top, right, bottom = distances(boxes, head.reg_max)
    area = np.maximum((left + right) * (top + bottom), 0.25).astype(np.float64)
    count, dims = head.keypoint_shape
    weights = np.ones((count, dims, values.shape[1]))
    if dims == 3:
        sure = sigmoid(values.reshape(count, dims, -1)[:, 2].astype(np.float32)).astype(np.float64)
        weights[:, :2] = sure[:, None]
        weights[:, 2] = np.square(sure * (1 - sure)) + 1e-6
    weights[:, :2] /= area
    return np.asarray(weights.reshape(values.shape))
