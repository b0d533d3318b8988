"""Float beside quantized on an image, with what differs marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from narrowcast.analyze.detections import overlaps
from narrowcast.vision.draw import LEAST_KEYPOINT_CONFIDENCE, draw
from narrowcast.vision.types import Classification, Detections

__all__ = ["Pair", "match", "pair"]

#: BGR of what only the float model found, of what only the quantized one found, and of keypoints that moved.
MISSED, INVENTED, MOVED = (60, 60, 230), (0, 140, 255), (220, 60, 220)
#: Longer side of a picture in the report, pixels.
_SIDE = 720
_QUALITY = 82


@dataclass(frozen=True)
class Pair:
    """Two pictures of one image.

    Attributes:
        name: of the image.
        left, right: JPEG of the float and the quantized model's result.
        words: what differs.
        difference: how much; 0 is nothing.
    """

    name: str
    left: bytes
    right: bytes
    words: str
    difference: float


def pair(
    name: str,
    image: NDArray[np.uint8],
    expected: Detections | Classification,
    actual: Detections | Classification,
    classes: Sequence[str] = (),
    skeleton: Sequence[tuple[int, int]] = (),
) -> Pair:
    """Draw both results.

    Args:
        name: of the image.
        image: uint8 (H, W, 3) BGR.
        expected, actual: results of the float and of the quantized model.
        classes: names by index.
        skeleton: limbs as pairs of keypoint indices.
    """
    left, right = draw(image, expected, classes, skeleton), draw(image, actual, classes, skeleton)
    if isinstance(expected, Classification) or isinstance(actual, Classification):
        words, difference = _classes(expected, actual)
    else:
        words, difference = _mark(right, expected, actual)
    return Pair(name, _jpeg(left), _jpeg(right), words, difference)


def match(expected: Detections, actual: Detections) -> list[tuple[int, int]]:
    """Pairs of detections of a class that overlap by half or more, best float detections first."""
    free = list(range(len(actual)))
    found = []
    for one in range(len(expected)):
        same = [other for other in free if actual.class_ids[other] == expected.class_ids[one]]
        if not same:
            continue
        shared = overlaps(np.repeat(expected.boxes[one : one + 1], len(same), axis=0), actual.boxes[same])
        best = int(shared.argmax())
        if shared[best] >= 0.5:
            found.append((one, same[best]))
            free.remove(same[best])
    return found


def _classes(expected: object, actual: object) -> tuple[str, float]:
    assert isinstance(expected, Classification) and isinstance(actual, Classification)
    change = abs(float(expected.scores[0]) - float(actual.scores[0]))
    if expected.class_ids[0] != actual.class_ids[0]:
        return "another class is first", 1.0 + change
    return f"same class, probability differs by {change:.3f}", change


def _mark(canvas: NDArray[np.uint8], expected: Detections, actual: Detections) -> tuple[str, float]:
    pairs = match(expected, actual)
    missed = sorted(set(range(len(expected))) - {one for one, _ in pairs})
    invented = sorted(set(range(len(actual))) - {other for _, other in pairs})
    thick = max(2, max(canvas.shape[:2]) // 240)
    for boxes, indices, color in ((expected.boxes, missed, MISSED), (actual.boxes, invented, INVENTED)):
        for index in indices:
            left, top, right, bottom = (int(v) for v in np.rint(boxes[index]))
            cv2.rectangle(canvas, (left, top), (right, bottom), color, thick)
            cv2.line(canvas, (left, top), (right, bottom), color, thick, cv2.LINE_AA)
    moved = _moved(canvas, expected, actual, pairs, thick)
    words = [f"{len(pairs)} object{'' if len(pairs) == 1 else 's'} in both"]
    words += [f"{len(missed)} missed"] if missed else []
    words += [f"{len(invented)} only quantized"] if invented else []
    sides = [float(np.abs(expected.boxes[a] - actual.boxes[b]).mean()) for a, b in pairs]
    words += [f"box sides differ by {np.mean(sides):.1f} px"] if sides else []
    words += [f"keypoints by {np.mean(moved):.1f} px"] if moved else []
    difference = 5.0 * (len(missed) + len(invented)) + (float(np.mean(moved)) if moved else 0.0)
    return ", ".join(words), difference + (float(np.mean(sides)) if sides else 0.0)


def _moved(
    canvas: NDArray[np.uint8],
    expected: Detections,
    actual: Detections,
    pairs: Sequence[tuple[int, int]],
    thick: int,
) -> list[float]:
    """Distances of sure keypoints in pixels; the long ones are drawn as lines from where float puts them."""
    if expected.keypoints is None or actual.keypoints is None:
        return []
    distances = []
    for one, other in pairs:
        sure = expected.keypoints[one][:, 2] >= LEAST_KEYPOINT_CONFIDENCE
        for a, b in zip(expected.keypoints[one][sure], actual.keypoints[other][sure], strict=True):
            distance = float(np.hypot(*(a[:2] - b[:2])))
            distances.append(distance)
            if distance >= 2 * thick:
                start, end = (tuple(int(v) for v in np.rint(point[:2])) for point in (a, b))
                cv2.line(canvas, start, end, MOVED, thick, cv2.LINE_AA)
                cv2.circle(canvas, start, thick + 1, MOVED, thick, cv2.LINE_AA)
    return distances


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    scale = _SIDE / max(image.shape[:2])
    if scale < 1:
        image = np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not done:
        raise ValueError("the picture cannot be written as JPEG")
    return bytes(data.tobytes())
