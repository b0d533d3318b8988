"""Results for other libraries."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest

from narrowcast.vision import Classification, Detections


def detections() -> Detections:
    boxes = np.array([[1, 2, 30, 40], [5, 5, 9, 9]], np.float32)
    keypoints = np.zeros((2, 3, 3), np.float32)
    masks = np.zeros((2, 50, 60), np.bool_)
    return Detections(boxes, np.array([0.9, 0.4], np.float32), np.array([0, 2]), keypoints, masks)  # type: ignore[arg-type]


def test_supervision_gets_every_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is large and optional: a double with the constructor's documented keywords stands for it."""
    double: Any = types.ModuleType("supervision")
    double.Detections = lambda xyxy, mask, confidence, class_id, data: (xyxy, mask, confidence, class_id, data)
    double.Classifications = lambda class_id, confidence: (class_id, confidence)
    monkeypatch.setitem(sys.modules, "supervision", double)
    found = detections()
    xyxy, mask, confidence, class_id, data = found.to_supervision()
    assert np.array_equal(xyxy, found.boxes) and mask.shape == (2, 50, 60) and mask.dtype == np.bool_
    assert np.array_equal(confidence, found.scores) and class_id.tolist() == [0, 2]
    assert data["keypoints"].shape == (2, 3, 3)
    classes = Classification(np.array([3, 1]), np.array([0.8, 0.1], np.float32))
    assert classes.to_supervision()[0].tolist() == [3, 1]


def test_the_real_supervision_takes_them() -> None:
    supervision = pytest.importorskip("supervision")
    converted = detections().to_supervision()
    assert isinstance(converted, supervision.Detections) and len(converted) == 2
    assert len(detections()[[]].to_supervision()) == 0
