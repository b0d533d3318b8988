"""Pictures of results: boxes with labels, masks, skeletons; line widths and text follow the image size."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from narrowcast.vision.types import Detections, Result, class_name

__all__ = ["draw"]

#: BGR colours of classes, distinct and readable on photographs.
PALETTE = (
    (255, 128, 32), (48, 160, 255), (80, 200, 64), (80, 80, 240), (220, 96, 200), (200, 200, 40), (32, 208, 224),
    (160, 96, 255), (96, 168, 128), (240, 160, 120),
)  # fmt: skip
#: Limbs and joints of the left side, right side and the middle, when the skeleton is COCO's.
LEFT, RIGHT, MIDDLE = (96, 208, 64), (64, 128, 255), (240, 192, 48)
#: A keypoint below this confidence is not drawn.
LEAST_KEYPOINT_CONFIDENCE = 0.5


def draw(
    image: NDArray[np.uint8],
    result: Result,
    classes: Sequence[str] = (),
    skeleton: Sequence[tuple[int, int]] = (),
) -> NDArray[np.uint8]:
    """Draw a result on a copy of the image.

    Args:
        image: uint8 (H, W, 3) BGR.
        result: what was found in it.
        classes: names by index.
        skeleton: limbs as pairs of keypoint indices.

    Returns:
        uint8 (H, W, 3) BGR.
    """
    canvas = image.copy()
    size = max(image.shape[:2])
    if not isinstance(result, Detections):
        _panel(canvas, result.lines(classes), size)
        return canvas
    for index in reversed(range(len(result))):  # the best on top
        color = PALETTE[int(result.class_ids[index]) % len(PALETTE)]
        if result.masks is not None:
            mask = result.masks[index]
            canvas[mask] = (canvas[mask] * 0.55 + np.array(color) * 0.45).astype(np.uint8)
        _box(canvas, result.boxes[index], color, size)
    if result.keypoints is not None:
        for points in result.keypoints[::-1]:
            _skeleton(canvas, points, skeleton, size)
    for index in reversed(range(len(result))):
        color = PALETTE[int(result.class_ids[index]) % len(PALETTE)]
        text = f"{class_name(classes, int(result.class_ids[index]))} {result.scores[index]:.2f}"
        _label(canvas, text, result.boxes[index], color, size)
    return canvas


def _thickness(size: int) -> int:
    return max(1, round(size / 320))


def _font(size: int) -> tuple[float, int]:
    """Scale and stroke of the text."""
    return max(0.32, size / 1500), max(1, round(size / 900))


def _box(canvas: NDArray[np.uint8], box: NDArray[np.float32], color: tuple[int, int, int], size: int) -> None:
    left, top, right, bottom = (int(v) for v in np.rint(box))
    cv2.rectangle(canvas, (left, top), (right, bottom), color, _thickness(size), cv2.LINE_AA)


def _ink(color: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever reads better on the colour (Rec. 601 luma)."""
    luma = 0.114 * color[0] + 0.587 * color[1] + 0.299 * color[2]
    return (0, 0, 0) if luma > 130 else (255, 255, 255)


def _label(
    canvas: NDArray[np.uint8], text: str, box: NDArray[np.float32], color: tuple[int, int, int], size: int
) -> None:
    """Above the box, or inside it where there is no room; never beyond the picture."""
    scale, stroke = _font(size)
    (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, stroke)
    pad = max(2, height // 4)
    tall, wide = height + base + pad, width + 2 * pad
    left = int(np.clip(box[0] - _thickness(size) / 2, 0, max(0, canvas.shape[1] - wide)))
    top = int(box[1]) - tall if box[1] >= tall else int(box[1])
    cv2.rectangle(canvas, (left, top), (left + wide, top + tall), color, -1)
    at = (left + pad, top + height + pad // 2 + 1)
    cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, _ink(color), stroke, cv2.LINE_AA)


def _side(index: int) -> tuple[int, int, int]:
    return MIDDLE if index == 0 else LEFT if index % 2 else RIGHT


def _skeleton(
    canvas: NDArray[np.uint8], points: NDArray[np.float32], skeleton: Sequence[tuple[int, int]], size: int
) -> None:
    seen = points[:, 2] >= LEAST_KEYPOINT_CONFIDENCE
    places = [(int(x), int(y)) for x, y in np.rint(points[:, :2])]
    extent = float(np.ptp(points[seen, 1])) if seen.any() else 0.0
    thick = max(1, min(_thickness(size), round(extent / 40)))
    for first, second in skeleton:
        if seen[first] and seen[second]:
            color = _side(first) if first % 2 == second % 2 else MIDDLE
            cv2.line(canvas, places[first], places[second], color, thick, cv2.LINE_AA)
    for index in np.flatnonzero(seen):
        cv2.circle(canvas, places[index], thick + 1, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(canvas, places[index], thick, _side(int(index)), -1, cv2.LINE_AA)


def _panel(canvas: NDArray[np.uint8], lines: Sequence[str], size: int) -> None:
    """Lines on a dark panel in the corner, the best first."""
    scale, stroke = _font(size)
    sizes = [cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, scale, stroke)[0] for line in lines]
    height = max((h for _, h in sizes), default=0)
    step, pad = round(height * 1.7), max(3, height // 2)
    right, bottom = pad * 2 + max((w for w, _ in sizes), default=0), pad + step * len(lines)
    corner = canvas[:bottom, :right]
    corner[:] = (corner * 0.35).astype(np.uint8)
    for index, line in enumerate(lines):
        at = (pad, pad + step * index + height)
        cv2.putText(canvas, line, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), stroke, cv2.LINE_AA)
