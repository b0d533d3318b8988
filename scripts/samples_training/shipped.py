"""The images that ship with the samples, and their labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np

from samples_training.scenes import OBJECT_NAMES, coco_annotations, label_lines, object_scene, pose_scene

#: First seed and number of images; training seeds start at 1,000,000.
PEOPLE = {"calibration": (1000, 40), "validation": (2000, 48)}
THINGS = {"calibration": (3000, 40), "validation": (4000, 120)}


def write_images(samples: Path) -> None:
    """Draw all shipped images anew under ``samples``, with COCO annotations and labels for the validation part."""
    for part, (seed, count) in PEOPLE.items():
        people = [(f"{index + 1:04}.jpg", pose_scene(seed + index)) for index in range(count)]
        _write(samples / "people" / part, [(name, scene.image) for name, scene in people], 85)
        if part == "validation":
            document = coco_annotations(people, "narrowcast drawn scenes")
            (samples / "people" / "keypoints.json").write_text(json.dumps(document, separators=(",", ":")) + "\n")
    for part, (seed, count) in THINGS.items():
        numbered = range(count)
        things = [(f"{index + 1:04}.jpg", object_scene(seed + index, index % len(OBJECT_NAMES))) for index in numbered]
        _write(samples / "things" / part, [(name, scene.image) for name, scene in things], 88)
        if part == "validation":
            (samples / "things" / "labels.txt").write_text("\n".join(label_lines(things)) + "\n")


def _write(folder: Path, images: list[tuple[str, np.ndarray]], quality: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, image in images:
        if not cv2.imwrite(str(folder / name), image, [cv2.IMWRITE_JPEG_QUALITY, quality]):
            raise OSError(f"{folder / name} could not be written")
