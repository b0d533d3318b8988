"""One half of the images chooses, the other reports."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from narrowcast.base.errors import UserError
from narrowcast.calibrate import ImageSet
from narrowcast.evaluate import CocoData, ImageNetData

__all__ = ["Labelled", "halves", "halves_of_labels"]

Labelled = CocoData | ImageNetData


def halves(images: ImageSet, labelled: tuple[Labelled, Labelled] | None) -> tuple[ImageSet, ImageSet]:
    """Images that choose and images that report; labelled ones stay on their side."""
    if len(images) < 2:
        raise UserError("one image is left beside those of the calibration", "give at least two others")
    sides = [{file.name: side for file in half.files} for side, half in enumerate(labelled or ())]
    known = {name: side for entry in sides for name, side in entry.items()}
    names = [source.name if isinstance(source, Path) else "" for source in images.sources]
    split: tuple[list[int], list[int]] = ([], [])
    for index, name in enumerate(names):
        split[known.get(name, index % 2)].append(index)
    if not split[0] or not split[1]:
        raise UserError("the images cannot be halved", "give more images that calibration has not seen")
    return images.subset(split[0]), images.subset(split[1])


def halves_of_labels(data: Labelled, used: set[str]) -> tuple[Labelled, Labelled]:
    """Every other labelled image that calibration has not seen."""
    left = [i for i, file in enumerate(data.files) if hashlib.sha256(file.read_bytes()).hexdigest() not in used]
    if len(left) < 2:
        raise UserError(
            f"{len(left)} labelled images of {data.source} are left beside those of the calibration",
            "tune needs at least two",
        )
    return _part(data, left[::2]), _part(data, left[1::2])


def _part(data: Labelled, indices: Sequence[int]) -> Labelled:
    files = tuple(data.files[index] for index in indices)
    if isinstance(data, ImageNetData):
        return replace(data, files=files, labels=tuple(data.labels[index] for index in indices))
    images = [data.document["images"][index] for index in indices]
    kept = {entry["id"] for entry in images}
    annotations = [entry for entry in data.document["annotations"] if entry["image_id"] in kept]
    return replace(data, files=files, document={**data.document, "images": images, "annotations": annotations})
