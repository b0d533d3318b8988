"""Detections as entries of a COCO result file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from narrowcast.base.writing import check_file, write_file
from narrowcast.vision.types import Detections, Result

__all__ = ["Entry", "converter", "prediction_files", "write_predictions"]

Entry = dict[str, Any]
_OPTION = "--save-predictions"


def converter(
    image_ids: Sequence[int], categories: Mapping[int, int]
) -> Callable[[int, Result], list[Entry]]:
    """A function that turns the detections of the image of an index into result entries.

    Coordinates are rounded to a thousandth of a pixel. Detections of classes without a category are left out.

    Args:
        image_ids: by index.
        categories: class index to category id.
    """

    def convert(index: int, found: Result) -> list[Entry]:
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


def prediction_files(file: str | Path | None, names: Iterable[str], force: bool) -> dict[str, Path]:
    """The COCO result file of each graph; nothing without ``file``.

    Args:
        file: as the person named it; with several graphs ``-name`` is added to its stem.
        names: of the graphs.
        force: existing files may be replaced.

    Raises:
        UserError: one exists.
    """
    if file is None:
        return {}
    whole, graphs = Path(file), list(names)
    several = len(graphs) > 1
    found = {name: whole.with_name(f"{whole.stem}-{name}{whole.suffix}") if several else whole for name in graphs}
    for path in found.values():
        check_file(path, force, _OPTION)
    return found


def write_predictions(entries: Mapping[str, Sequence[Entry]], files: Mapping[str, Path], force: bool) -> None:
    """Write result files, each whole or not at all; after the last pass, so that an interrupted run can be repeated.

    Args:
        entries: by graph.
        files: of :func:`prediction_files`.
        force: replace existing files.

    Raises:
        UserError: one exists, or the file system refuses.
    """
    for name, found in entries.items():
        text = json.dumps(list(found), separators=(",", ":")) + "\n"
        write_file(files[name], text, force=force, option=_OPTION)
