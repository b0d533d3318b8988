"""What the entries of a COCO annotation file must be, before a scorer written in C++ sees them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr, model_validator

__all__ = ["ENTRIES"]

#: Coordinates beyond any image; the scorer draws polygons into memory of that size.
_FARTHEST = 100_000
_Id = Annotated[StrictInt, Field(gt=-(2**53), lt=2**53)]
_Side = Annotated[StrictInt, Field(gt=0, le=_FARTHEST)]
_Place = Annotated[StrictFloat, Field(ge=-_FARTHEST, le=_FARTHEST)]
_Polygon = Annotated[list[_Place], Field(min_length=6)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="allow")

    id: _Id


class _Image(_Entry):
    file_name: Annotated[StrictStr, Field(min_length=1)]
    width: _Side
    height: _Side


class _Category(_Entry):
    name: StrictStr


class _RunLengths(BaseModel):
    counts: StrictStr | list[Annotated[StrictInt, Field(ge=0)]]
    size: tuple[_Side, _Side]

    @model_validator(mode="after")
    def _whole(self) -> _RunLengths:
        height, width = self.size
        runs = _decompressed(self.counts) if isinstance(self.counts, str) else self.counts
        if sum(runs) != height * width or (runs and min(runs) < 0):
            raise ValueError(f"the runs of a mask of {height}x{width} pixels hold {sum(runs)}")
        return self


class _Annotation(_Entry):
    image_id: _Id
    category_id: _Id
    bbox: tuple[_Place, _Place, _Place, _Place]
    area: StrictFloat
    iscrowd: Literal[0, 1] = 0
    keypoints: list[_Place] | None = None
    num_keypoints: StrictInt | None = None
    segmentation: _RunLengths | list[_Polygon] | None = None

    @model_validator(mode="after")
    def _threes(self) -> _Annotation:
        if self.keypoints and len(self.keypoints) % 3:
            raise ValueError(f"{len(self.keypoints)} numbers are no keypoints of x, y, visibility")
        if isinstance(self.segmentation, list) and any(len(polygon) % 2 for polygon in self.segmentation):
            raise ValueError("a polygon has an odd count of numbers")
        return self


def _decompressed(text: str) -> list[int]:
    """Run lengths of the text form; see :func:`narrowcast.vision.masks.compress`."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64 or shift > 60:
            raise ValueError("the runs of a mask are not written as COCO does")
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs


#: Lists of a file, with what their entries must be.
ENTRIES: dict[str, type[BaseModel]] = {"images": _Image, "annotations": _Annotation, "categories": _Category}
