"""Detections as entries of a COCO result file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from narrowcast.vision.types import Classification, Detections
from narrowcast.writing import write_file

__all__ = ["converter", "write_predictions"]

Entry = dict[str, Any]


def converter(
    image_ids: Sequence[int], categories: Mapping[int, int]
) -> Callable[[int, Detections | Classification], list[Entry]]:
    """A function that turns the detections of the image of an index into result entries.

    Coordinates are rounded to a thousandth of a pixel. Detections of classes without a category are left out.

    Args:
        image_ids: by index.
        categories: class index to category id.
    """

    def convert(index: int, found: Detections | Classification) -> list[Entry]:
        assert isinstance(found, Detections)
        known = np.isin(found.class_ids, list(categories))
        if not known.all():
            found = found[np.flatnonzero(known)]
        boxes = np.round(np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], 1), 3)
        entries: list[Entry] = [
            {
                "image_id": image_ids[index],
                "category_id": categories[int(label)],
                "bbox": [round(float(value), 3) for value in box],
                "score": round(float(score), 7),
            }
            for label, box, score in zip(found.class_ids, boxes, found.scores, strict=True)
        ]
        if found.keypoints is not None:
            for entry, points in zip(entries, found.keypoints, strict=True):
                entry["keypoints"] = [round(float(value), 3) for value in points.reshape(-1)]
        if found.masks is not None:
            for entry, mask in zip(entries, found.masks.rle(), strict=True):
                entry["segmentation"] = mask
        return entries

    return convert


def write_predictions(entries: Sequence[Entry], file: Path, name: str) -> Path:
    """Write a COCO result file whole or not at all; ``name`` is added to the stem.

    Raises:
        UserError: the file system refuses.
    """
    path = file.with_name(f"{file.stem}-{name}{file.suffix}") if name else file
    text = json.dumps(list(entries), separators=(",", ":")) + "\n"
    return write_file(path, text, force=True, option="--save-predictions")
