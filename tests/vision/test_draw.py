"""Pictures: something is drawn where it belongs, nothing outside is touched, nothing crashes at the edges."""

from __future__ import annotations

import numpy as np
import pytest

from narrowcast.vision import Classification, Detections
from narrowcast.vision.draw import draw


@pytest.mark.parametrize("size", [(1, 1), (40, 60), (1080, 1920)])
def test_every_size(size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    points = np.ones((1, 17, 3), np.float32)
    found = Detections(
        np.array([[0, 0, size[1], size[0]]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64), points,
        np.ones((1, *size), bool),
    )  # fmt: skip
    drawn = draw(image, found, ["person"], [(0, 1)])
    assert drawn.shape == image.shape and drawn.any() and not image.any()


def test_a_box_is_drawn_at_its_place() -> None:
    found = Detections(np.array([[40, 50, 80, 90]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    drawn = draw(np.zeros((200, 200, 3), np.uint8), found)
    assert drawn[90, 60].any() and drawn[70, 40].any()
    assert not drawn[120:, :].any() and not drawn[60:80, 50:70].any()


def test_classification_panel() -> None:
    found = Classification(np.array([1]), np.array([0.5], np.float32))
    assert draw(np.zeros((90, 120, 3), np.uint8), found, ["a", "b"]).any()
