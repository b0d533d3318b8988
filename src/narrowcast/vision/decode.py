"""Raw head outputs to detections: threshold first, then decode only what survives.

Integer outputs are compared with an integer threshold; only the survivors are dequantized.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.vision.heads import HeadSpec, OutputEncoding, distances, sigmoid
from narrowcast.vision.nms import non_maximum_suppression
from narrowcast.vision.preprocess import Geometry
from narrowcast.vision.types import Classification, Detections

__all__ = ["decode", "decode_classification"]

#: Candidates that enter non-maximum suppression, at most (as Ultralytics' validation).
MOST_CANDIDATES = 30000


@dataclass(frozen=True)
class _Survivors:
    """Candidates of one stride: cell index, class and score, (n,) each."""

    stride: int
    width: int
    cells: NDArray[np.int64]
    classes: NDArray[np.int64]
    scores: NDArray[np.float32]


def decode(
    outputs: Mapping[str, NDArray[Any]],
    head: HeadSpec,
    geometry: Geometry,
    *,
    confidence: float = 0.25,
    iou: float = 0.7,
    max_detections: int = 300,
    class_agnostic: bool = False,
    multi_label: bool = False,
    encodings: Mapping[str, OutputEncoding] | None = None,
    layout: str = "NCHW",
) -> Detections:
    """Decode raw head outputs of one image.

    Args:
        outputs: by name, (1, C, H, W) or (1, H, W, C); float logits, or integers with ``encodings``.
        head: their layout.
        geometry: where the image lies in the input.
        confidence: least class probability, 0..1 exclusive.
        iou: boxes of a class that overlap more than this are one object.
        max_detections: kept at most, best first.
        class_agnostic: suppress across classes too.
        multi_label: an anchor may be several classes (validation protocol) instead of its best one.
        encodings: how integer outputs are read.
        layout: ``"NCHW"`` or ``"NHWC"``.

    Returns:
        Detections in pixels of the original image, clipped to it.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence of {confidence} is outside 0..1")
    reader = _Reader(outputs, encodings or {}, layout)
    threshold = -math.log(1 / confidence - 1)
    found = [_survivors(reader, stride, threshold, multi_label) for stride in head.strides]
    scores = np.concatenate([level.scores for level in found])
    classes = np.concatenate([level.classes for level in found])
    boxes = np.concatenate([_boxes(reader, level, head) for level in found])
    order = np.argsort(-scores, kind="stable")[:MOST_CANDIDATES]
    kept = non_maximum_suppression(boxes[order], None if class_agnostic else classes[order], iou, max_detections)
    chosen = order[kept]
    extra = _gather_extra(reader, found, head, chosen)
    keypoints = geometry.undo_points(_keypoints(extra, found, head, chosen)) if head.extra == "kpt" else None
    detections = Detections(geometry.undo_boxes(boxes[chosen]), scores[chosen], classes[chosen], keypoints)
    if head.extra == "mask":
        from narrowcast.vision.masks import with_masks

        return with_masks(detections, extra, reader.all("proto"), boxes[chosen], geometry, head)
    return detections


class _Reader:
    """Reads output tensors as (channels, cells), dequantizing what is asked for."""

    def __init__(
        self, outputs: Mapping[str, NDArray[Any]], encodings: Mapping[str, OutputEncoding], layout: str
    ) -> None:
        self.outputs = outputs
        self.encodings = encodings
        self.channels_last = layout == "NHWC"

    def raw(self, name: str) -> tuple[NDArray[Any], int]:
        """(C, cells) view as stored, and the width of the map."""
        tensor = self.outputs[name][0]
        if self.channels_last:
            return tensor.reshape(-1, tensor.shape[2]).T, tensor.shape[1]
        return tensor.reshape(tensor.shape[0], -1), tensor.shape[2]

    def real(self, name: str, values: NDArray[Any], channels: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Stored values to float32; ``channels`` says each value's channel where it is not its row."""
        encoding = self.encodings.get(name)
        if encoding is None:
            return values.astype(np.float32, copy=False)
        scale = np.asarray(encoding.scale, np.float32)
        if scale.ndim:
            scale = scale[channels] if channels is not None else scale.reshape(-1, *[1] * (values.ndim - 1))
        return (values.astype(np.int64) - encoding.zero_point).astype(np.float32) * scale

    def take(self, name: str, cells: NDArray[np.int64]) -> NDArray[np.float32]:
        """(C, n) float32 at the given cells."""
        return self.real(name, self.raw(name)[0][:, cells])

    def all(self, name: str) -> NDArray[np.float32]:
        """(C, H, W) float32."""
        values, width = self.raw(name)
        return np.ascontiguousarray(self.real(name, values).reshape(values.shape[0], -1, width))

    def limit(self, name: str, threshold: float, channels: int) -> Any:
        """What a stored value is compared with so that the test equals ``real value >= threshold``."""
        encoding = self.encodings.get(name)
        if encoding is None:
            return np.float32(threshold)
        scale = np.broadcast_to(np.asarray(encoding.scale, np.float32), (channels,))
        steps = np.ceil(np.float64(threshold) / scale).astype(np.int64) - 1
        for _ in range(2):  # float32 rounding may move the limit by one step
            steps = np.where(steps.astype(np.float32) * scale >= np.float32(threshold), steps, steps + 1)
        limits = steps + encoding.zero_point
        return limits[0] if np.ndim(encoding.scale) == 0 else limits[:, None]


def _survivors(reader: _Reader, stride: int, threshold: float, multi_label: bool) -> _Survivors:
    name = f"cls_s{stride}"
    stored, width = reader.raw(name)
    limit = reader.limit(name, threshold, len(stored))
    if multi_label and len(stored) > 1:
        classes, cells = np.nonzero(stored >= limit)
        logits = reader.real(name, stored[classes, cells], classes)
        return _Survivors(stride, width, cells, classes, sigmoid(logits))
    if np.ndim(limit):
        cells = np.flatnonzero((stored >= limit).any(axis=0))
    else:
        cells = np.flatnonzero((stored[0] if len(stored) == 1 else stored.max(axis=0)) >= limit)
    logits = reader.real(name, stored[:, cells])
    classes = logits.argmax(axis=0)
    return _Survivors(stride, width, cells, classes, sigmoid(logits[classes, np.arange(len(cells))]))


def _positions(level: _Survivors) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    y, x = np.divmod(level.cells, level.width)
    return x.astype(np.float32), y.astype(np.float32)


def _boxes(reader: _Reader, level: _Survivors, head: HeadSpec) -> NDArray[np.float32]:
    """(n, 4) xyxy in input pixels."""
    if not len(level.cells):
        return np.zeros((0, 4), np.float32)
    x, y = _positions(level)
    left, top, right, bottom = distances(reader.take(f"box_s{level.stride}", level.cells), head.reg_max)
    centers = (x + 0.5, y + 0.5)
    sides = [centers[0] - left, centers[1] - top, centers[0] + right, centers[1] + bottom]
    return np.asarray(np.stack(sides, axis=1) * level.stride, np.float32)


def _gather_extra(
    reader: _Reader, found: list[_Survivors], head: HeadSpec, chosen: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(n, channels) raw third output of the chosen candidates, which are numbered through all strides."""
    if not head.extra:
        return np.zeros((len(chosen), 0), np.float32)
    channels = head.num_masks or math.prod(head.keypoint_shape or (0,))
    result = np.empty((len(chosen), channels), np.float32)
    start = 0
    for level in found:
        mine = np.flatnonzero((chosen >= start) & (chosen < start + len(level.cells)))
        result[mine] = reader.take(f"{head.extra}_s{level.stride}", level.cells[chosen[mine] - start]).T
        start += len(level.cells)
    return result


def _keypoints(
    extra: NDArray[np.float32], found: list[_Survivors], head: HeadSpec, chosen: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(n, K, 3): x = (2 * raw + cell) * stride in input pixels, probability (1 where the head gives none)."""
    assert head.keypoint_shape is not None
    count, dims = head.keypoint_shape
    raw = extra.reshape(-1, count, dims)
    points = np.ones((len(chosen), count, 3), np.float32)
    positions = [_positions(level) for level in found]
    strides = np.concatenate([np.full(len(level.cells), level.stride, np.float32) for level in found])[chosen, None]
    for axis in range(2):
        cell = np.concatenate([position[axis] for position in positions])[chosen, None]
        points[..., axis] = (raw[..., axis] * 2 + cell) * strides
    if dims == 3:
        points[..., 2] = sigmoid(raw[..., 2])
    return points


def decode_classification(scores: NDArray[Any], top_k: int = 5, softmax: bool = False) -> Classification:
    """The most likely classes.

    Args:
        scores: class scores of one image, any shape with one axis above 1; float.
        top_k: how many classes.
        softmax: whether ``scores`` are logits.
    """
    values = np.asarray(scores, np.float32).reshape(-1)
    if softmax:
        values = np.exp(values - values.max())
        values = values / values.sum()
    best = np.argsort(-values, kind="stable")[:top_k]
    return Classification(best.astype(np.int64), values[best])
