"""Deterministic synthetic scenes with exact labels: people with keypoints, and objects of ten classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from samples_training.backdrops import add_clutter, backdrop, finish
from samples_training.canvas import Canvas, color
from samples_training.figures import KEYPOINT_NAMES, SKELETON, Figure, draw_figure, random_figure
from samples_training.objects import OBJECT_NAMES, draw_object

__all__ = [
    "OBJECT_NAMES",
    "ObjectScene",
    "Person",
    "PoseScene",
    "coco_annotations",
    "label_lines",
    "object_scene",
    "pose_scene",
]

_SIZES = ((320, 320), (320, 256), (256, 320), (384, 288), (320, 240), (288, 288))
#: Owner of things in front of people; people count from 1.
_FOREGROUND = 255


@dataclass(frozen=True)
class Person:
    """Labels of one person.

    Attributes:
        keypoints: float64 (17, 3): x, y in pixels, visibility 0 (not labelled; x and y are 0), 1 (hidden), 2 (seen).
        box: x, y, width, height of the visible part, pixels.
        area: visible pixels.
        segmentation: outlines of the visible part, each x0, y0, x1, y1, ... in pixels.
    """

    keypoints: NDArray[np.float64]
    box: tuple[float, float, float, float]
    area: float
    segmentation: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class PoseScene:
    """An image, uint8 (height, width, 3) BGR, and the people in it."""

    image: NDArray[np.uint8]
    people: tuple[Person, ...]


@dataclass(frozen=True)
class ObjectScene:
    """An image, uint8 (height, width, 3) BGR, and the index of its class in :data:`OBJECT_NAMES`."""

    image: NDArray[np.uint8]
    label: int


def pose_scene(seed: int, size: tuple[int, int] | None = None) -> PoseScene:
    """Draw a scene with zero to four people.

    Args:
        seed: the same seed gives the same bytes.
        size: width and height in pixels; ``None`` draws one.

    Returns:
        The image and the exact labels; people of whom less than a quarter is visible are not drawn.
    """
    random = np.random.default_rng([7, seed])
    width, height = size or _SIZES[int(random.integers(len(_SIZES)))]
    canvas = backdrop(random, height, width)
    add_clutter(random, canvas, int(random.integers(1, 6)))
    figures = _place(random, width, height)
    for index, figure in enumerate(figures):
        draw_figure(canvas, figure, index + 1, random)
        if random.random() < 0.15:
            add_clutter(random, canvas, 1, _FOREGROUND)
    people = [_label(canvas.owner, figure, index + 1) for index, figure in enumerate(figures)]
    return PoseScene(finish(random, canvas.image), tuple(person for person in people if person is not None))


def _place(random: np.random.Generator, width: int, height: int) -> list[Figure]:
    """People from far (small, drawn first) to near, with little overlap."""
    wanted = int(random.choice(5, p=[0.03, 0.37, 0.33, 0.18, 0.09]))
    figures: list[Figure] = []
    boxes: list[NDArray[np.float64]] = []
    for _ in range(4 * wanted):
        if len(figures) == wanted:
            break
        tall = height * random.uniform(0.28, 0.95 if wanted < 3 else 0.6)
        center = (random.uniform(0.1, 0.9) * width, random.uniform(0.35, 0.75) * height)
        figure = random_figure(random, center, tall)
        box = np.concatenate([figure.keypoints.min(0) - 0.06 * tall, figure.keypoints.max(0) + 0.05 * tall])
        inside = np.minimum(box[2:], (width, height)) - np.maximum(box[:2], 0)
        whole = box[2:] - box[:2]
        if np.prod(np.maximum(inside, 0)) < 0.7 * np.prod(whole) or any(_overlap(box, other) > 0.25 for other in boxes):
            continue
        figures.append(figure)
        boxes.append(box)
    return sorted(figures, key=lambda figure: figure.height)


def _overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Share of the smaller box (xyxy) that the other covers."""
    common = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
    return float(common / min(np.prod(a[2:] - a[:2]), np.prod(b[2:] - b[:2])))


def _label(owner: NDArray[np.uint8], figure: Figure, index: int) -> Person | None:
    """What is to be seen of a person, from the pixels that it owns."""
    mask = owner == index
    area = int(mask.sum())
    if area < 60:
        return None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] - columns[0] + 1), float(rows[-1] - rows[0] + 1))
    height, width = owner.shape
    keypoints = np.zeros((17, 3))
    for number, ((x, y), known) in enumerate(zip(figure.keypoints, figure.labelled, strict=True)):
        if known and 0 <= x < width and 0 <= y < height:
            seen = owner[int(y), int(x)] == index
            keypoints[number] = (round(float(x), 2), round(float(y), 2), 2 if seen else 1)
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    simple = [cv2.approxPolyDP(outline, 1.0, True).reshape(-1) for outline in outlines]
    polygons = tuple(tuple(float(v) for v in polygon) for polygon in simple if len(polygon) >= 6)
    return Person(keypoints, box, float(area), polygons)


def object_scene(seed: int, label: int | None = None) -> ObjectScene:
    """Draw a small image with one object of ten classes among clutter.

    Args:
        seed: the same seed (and label) gives the same bytes.
        label: index of the class; ``None`` draws one.
    """
    random = np.random.default_rng([11, seed])
    drawn = int(random.integers(len(OBJECT_NAMES)))
    label = drawn if label is None else label
    width, height = ((144, 128), (128, 128), (128, 144), (160, 128))[int(random.integers(4))]
    canvas = backdrop(random, height, width)
    add_clutter(random, canvas, int(random.integers(0, 5)))
    size = random.uniform(0.3, 0.46) * 128
    center = (width / 2 + random.normal(0, 7), height / 2 + random.normal(0, 7))
    draw_object(canvas, OBJECT_NAMES[label], center, size, random)
    if random.random() < 0.45:
        _cover(random, canvas, center, size)
    return ObjectScene(finish(random, canvas.image, random.uniform(0.6, 2.0)), label)


def _cover(random: np.random.Generator, canvas: Canvas, center: tuple[float, float], size: float) -> None:
    """A bar across the object."""
    angle, offset = random.uniform(0, np.pi), random.uniform(-0.6, 0.6) * size
    along = np.array([np.cos(angle), np.sin(angle)])
    middle = np.asarray(center) + np.array([-along[1], along[0]]) * offset
    radius = random.uniform(0.04, 0.16) * size
    canvas.limb(middle - along * 2 * size, middle + along * 2 * size, (radius, radius), color(random))


def coco_annotations(scenes: Iterable[tuple[str, PoseScene]], description: str = "") -> dict[str, Any]:
    """Labels in the format of COCO's ``person_keypoints_*.json``.

    Args:
        scenes: file name and scene.
        description: text for ``info``.

    Returns:
        JSON-ready; image and annotation ids count from 1.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, scene) in enumerate(scenes, start=1):
        height, width = scene.image.shape[:2]
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for person in scene.people:
            annotations.append(_annotation(len(annotations) + 1, number, person))
    category = {
        "id": 1,
        "name": "person",
        "supercategory": "person",
        "keypoints": list(KEYPOINT_NAMES),
        "skeleton": [list(limb) for limb in SKELETON],
    }
    return {
        "info": {"description": description},
        "images": images,
        "annotations": annotations,
        "categories": [category],
    }


def _annotation(number: int, image: int, person: Person) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "iscrowd": 0,
        "bbox": list(person.box),
        "area": person.area,
        "num_keypoints": int((person.keypoints[:, 2] > 0).sum()),
        "keypoints": [int(v) if v == int(v) else v for v in person.keypoints.ravel().tolist()],
        "segmentation": [list(polygon) for polygon in person.segmentation],
    }


def label_lines(scenes: Iterable[tuple[str, ObjectScene]]) -> list[str]:
    """Lines ``file-name class-index``, as ``labels.txt`` holds them."""
    return [f"{name} {scene.label}" for name, scene in scenes]
