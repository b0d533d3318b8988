"""Quick scores on the embedded samples, for the demo and for judging their float accuracy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.vision.types import Classification, Detections
from narrowcast.zoo.embedded import Sample

__all__ = ["SIGMAS", "pose_recall", "top1"]

#: Per-keypoint standard deviations of COCO's object keypoint similarity (cocoeval).
SIGMAS = np.array(
    [26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89], np.float64
) / 1000  # fmt: skip
Predict = Callable[[Path], Detections | Classification]


def top1(predict: Predict, found: Sample) -> float:
    """Share of the validation images whose most likely class is the true one."""
    if found.labels is None:
        raise ValueError(f"the sample {found.name} has no labels")
    lines = [line.rsplit(" ", 1) for line in found.labels.read_text().splitlines()]
    results = [predict(found.validation / name) for name, _ in lines]
    right = [int(r.class_ids[0]) == int(label) for r, (_, label) in zip(results, lines, strict=True)]
    return float(np.mean(right))


def pose_recall(predict: Predict, found: Sample) -> tuple[float, float]:
    """Share of the true people met by a box at IoU 0.5, and share of those whose keypoints reach OKS 0.5."""
    if found.annotations is None:
        raise ValueError(f"the sample {found.name} has no annotations")
    document = json.loads(found.annotations.read_text())
    by_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in document["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    people, met, good = 0, 0, 0
    for image in document["images"]:
        result = predict(found.validation / image["file_name"])
        if not isinstance(result, Detections) or result.keypoints is None:
            raise ValueError("the model finds no keypoints")
        for annotation in by_image.get(image["id"], []):
            people += 1
            overlaps = _overlaps(annotation["bbox"], result.boxes)
            if overlaps.size and overlaps.max() >= 0.5:
                met += 1
                good += _similarity(annotation, result.keypoints[int(overlaps.argmax())]) >= 0.5
    return met / max(1, people), good / max(1, met)


def _overlaps(box: list[float], boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    """IoU of one x, y, width, height box with (N, 4) xyxy boxes."""
    left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    width = np.minimum(boxes[:, 2], right) - np.maximum(boxes[:, 0], left)
    height = np.minimum(boxes[:, 3], bottom) - np.maximum(boxes[:, 1], top)
    common = np.clip(width, 0, None) * np.clip(height, 0, None)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) + box[2] * box[3]
    return np.asarray(common / (areas - common), np.float64)


def _similarity(annotation: dict[str, Any], points: NDArray[np.float32]) -> float:
    """Object keypoint similarity (COCO): mean over labelled keypoints of exp(-d^2 / (2 area (2 sigma)^2))."""
    truth = np.asarray(annotation["keypoints"], np.float64).reshape(-1, 3)
    labelled = truth[:, 2] > 0
    if not labelled.any():
        return 1.0
    squared = np.square(points[:, :2] - truth[:, :2]).sum(axis=1)
    similarity = np.exp(-squared / (2 * annotation["area"] * np.square(2 * SIGMAS) + 1e-9))
    return float(similarity[labelled].mean())
