"""Raw head outputs to detections: threshold first, then decode only what survives.

Integer outputs are compared with an integer threshold; only the survivors are dequantized.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.vision.heads import HeadSpec, OutputEncoding, distances, sigmoid
from narrowcast.vision.masks import prototype_masks
from narrowcast.vision.nms import non_maximum_suppression
from narrowcast.vision.preprocess import Geometry
from narrowcast.vision.reader import Reader
from narrowcast.vision.types import Classification, Detections

__all__ = ["decode", "decode_classification"]

#: Candidates that enter non-maximum suppression, at most (as Ultralytics' validation).
MOST_CANDIDATES = 30000


@dataclass(frozen=True)
class _Candidates:
    """Anchors that passed the threshold, one row for each class they may be.

    Attributes:
        levels: (n,) number of the stride in the head.
        cells: (n,) row-major index in the map of that stride.
        x, y: (n,) float32 column and row of the cell.
        strides: (n,) float32.
        classes: (n,) int64.
        scores: (n,) float32 probability.
    """

    levels: NDArray[np.int64]
    cells: NDArray[np.int64]
    x: NDArray[np.float32]
    y: NDArray[np.float32]
    strides: NDArray[np.float32]
    classes: NDArray[np.int64]
    scores: NDArray[np.float32]

    def __getitem__(self, index: NDArray[Any]) -> _Candidates:
        return _Candidates(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


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
    masks: bool = True,
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
        masks: give the masks of a segmentation model. They are computed when they are used, so this only saves
            keeping the prototypes.
        encodings: how integer outputs are read.
        layout: ``"NCHW"`` or ``"NHWC"``.

    Returns:
        Detections in pixels of the original image, clipped to it.

    Raises:
        ValueError: an output is missing or has another shape than the head says, an integer output has no encoding,
            or an option is out of range.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence of {confidence} is outside 0..1")
    reader = Reader(outputs, encodings or {}, layout)
    threshold = -math.log(1 / confidence - 1)
    found = _candidates(reader, head, threshold, multi_label)
    order = np.argsort(-found.scores, kind="stable")[:MOST_CANDIDATES]
    if len(found.scores) > MOST_CANDIDATES:
        order.sort()
        found = found[order]
        order = np.argsort(-found.scores, kind="stable")
    boxes = _boxes(reader, head, found)
    kept = non_maximum_suppression(boxes[order], None if class_agnostic else found.classes[order], iou, max_detections)
    chosen = order[kept]
    boxes, found = boxes[chosen], found[chosen]
    detections = Detections(geometry.undo_boxes(boxes), found.scores, found.classes)
    if not head.extra or (head.extra == "mask" and not masks):
        return detections
    extra = _gather(reader, head, head.extra, head.extra_channels, found)
    if head.extra == "kpt":
        return replace(detections, keypoints=geometry.undo_points(_keypoints(extra, found, head)))
    prototypes = reader.whole("proto", head.num_masks)
    stride = head.strides[0] * reader.size(f"box_s{head.strides[0]}")[1] / prototypes.shape[2]
    return replace(detections, masks=prototype_masks(detections.boxes, extra.T, prototypes, geometry, stride))


def _candidates(reader: Reader, head: HeadSpec, threshold: float, multi_label: bool) -> _Candidates:
    """Anchors whose best class logit, or every class logit, reaches the threshold; by stride, then by cell."""
    rows = []
    for level, stride in enumerate(head.strides):
        name = f"cls_s{stride}"
        classes, cells = reader.at_least(name, head.num_classes, threshold)
        height, width = reader.size(name)
        if multi_label or head.num_classes == 1:
            logits = reader.pick(name, classes, cells)
        else:
            lit = np.zeros(height * width, np.bool_)
            lit[cells] = True
            cells = np.flatnonzero(lit)
            every = reader.take(name, head.num_classes, cells)
            classes = every.argmax(axis=0)
            logits = every[classes, np.arange(len(cells))]
        y, x = np.divmod(cells, width)
        rows.append((np.full(len(cells), level), cells, x, y, np.full(len(cells), stride), classes, logits))
    levels, cells, x, y, strides, classes, logits = (np.concatenate(column) for column in zip(*rows, strict=True))
    x, y, strides = x.astype(np.float32), y.astype(np.float32), strides.astype(np.float32)
    return _Candidates(levels, cells, x, y, strides, classes, sigmoid(logits))


def _gather(reader: Reader, head: HeadSpec, stem: str, channels: int, found: _Candidates) -> NDArray[np.float32]:
    """(channels, n) float32 values of an output family at the candidates."""
    parts = [
        reader.take(f"{stem}_s{stride}", channels, found.cells[found.levels == level])
        for level, stride in enumerate(head.strides)
    ]
    joined = np.concatenate(parts, axis=1)
    if (found.levels[1:] >= found.levels[:-1]).all():
        return joined
    result = np.empty_like(joined)
    result[:, np.argsort(found.levels, kind="stable")] = joined
    return result


def _boxes(reader: Reader, head: HeadSpec, found: _Candidates) -> NDArray[np.float32]:
    """(n, 4) xyxy in input pixels."""
    left, top, right, bottom = distances(_gather(reader, head, "box", 4 * head.reg_max, found), head.reg_max)
    x, y = found.x + np.float32(0.5), found.y + np.float32(0.5)
    sides = np.stack([x - left, y - top, x + right, y + bottom], axis=1)
    return np.asarray(sides * found.strides[:, None], np.float32)


def _keypoints(extra: NDArray[np.float32], found: _Candidates, head: HeadSpec) -> NDArray[np.float32]:
    """(n, K, 3): x = (2 * raw + cell) * stride in input pixels, probability (1 where the head gives none)."""
    assert head.keypoint_shape is not None
    count, dims = head.keypoint_shape
    raw = extra.reshape(count, dims, -1)
    points = np.ones((len(found.cells), count, 3), np.float32)
    points[..., 0] = ((raw[:, 0] * 2 + found.x) * found.strides).T
    points[..., 1] = ((raw[:, 1] * 2 + found.y) * found.strides).T
    if dims == 3:
        points[..., 2] = sigmoid(raw[:, 2]).T
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
