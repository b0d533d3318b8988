"""The embedded sample models and their images, and quick scores on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.tasks.objects import overlaps
from narrowcast.tasks.pose import COCO_SIGMAS
from narrowcast.vision.types import Detections, Result

__all__ = ["Sample", "pose_recall", "sample", "sample_names", "top1"]

_FOLDER = Path(__file__).parent / "samples"
_FOLDERS = {"pose": "people", "classify": "things"}
Predict = Callable[[Path], Result]


@dataclass(frozen=True)
class Sample:
    """A model and its images.

    Attributes:
        name: ``"pose"`` or ``"classify"``.
        model: float ONNX file.
        calibration: folder of images to calibrate on.
        validation: folder of labelled images that no training step has seen.
        annotations: COCO keypoint annotations of the validation images, for pose.
        labels: file name and class index a line, for classify.
    """

    name: str
    model: Path
    calibration: Path
    validation: Path
    annotations: Path | None
    labels: Path | None


def sample_names() -> tuple[str, ...]:
    """Names that :func:`sample` takes."""
    return tuple(_FOLDERS)


def sample(name: str) -> Sample:
    """An embedded sample.

    Raises:
        UserError: unknown name.
    """
    if name not in _FOLDERS:
        raise UserError(f"there is no sample named {name!r}", f"known are {', '.join(_FOLDERS)}")
    folder = _FOLDER / _FOLDERS[name]
    annotations, labels = folder / "keypoints.json", folder / "labels.txt"
    return Sample(
        name,
        _FOLDER / f"{name}.onnx",
        folder / "calibration",
        folder / "validation",
        annotations if annotations.exists() else None,
        labels if labels.exists() else None,
    )


def top1(predict: Predict, found: Sample) -> float:
    """Share of the validation images whose most likely class is the true one."""
    if found.labels is None:
        raise ValueError(f"the sample {found.name} has no labels")
    lines = [line.rsplit(" ", 1) for line in found.labels.read_text().splitlines()]
    results = [predict(found.validation / name) for name, _ in lines]
    right = [r.to_dict()[0]["class_id"] == int(label) for r, (_, label) in zip(results, lines, strict=True)]
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
            x, y, width, height = annotation["bbox"]
            common = overlaps(np.asarray([[x, y, x + width, y + height]], np.float32), result.boxes)
            if common.size and common.max() >= 0.5:
                met += 1
                good += _similarity(annotation, result.keypoints[int(common.argmax())]) >= 0.5
    return met / max(1, people), good / max(1, met)


def _similarity(annotation: dict[str, Any], points: NDArray[np.float32]) -> float:
    """Object keypoint similarity (COCO): mean over labelled keypoints of exp(-d^2 / (2 area (2 sigma)^2))."""
    truth = np.asarray(annotation["keypoints"], np.float64).reshape(-1, 3)
    labelled = truth[:, 2] > 0
    if not labelled.any():
        return 1.0
    squared = np.square(points[:, :2] - truth[:, :2]).sum(axis=1)
    similarity = np.exp(-squared / (2 * annotation["area"] * np.square(2 * np.asarray(COCO_SIGMAS)) + 1e-9))
    return float(similarity[labelled].mean())
