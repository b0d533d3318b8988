"""Boxes with classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from narrowcast.tasks.objects import Objects
from narrowcast.tasks.task import Ends, register

__all__ = ["Detect"]


@register
@dataclass(frozen=True)
class Detect(Objects):
    """Boxes with classes, and nothing else."""

    name: ClassVar[str] = "detect"
    kind: ClassVar[str] = "detection"
    parsers: ClassVar[Mapping[str, str]] = {"TROS": "yolov8"}

    @classmethod
    def fit(cls, extra: int, ends: Ends, shared: Sequence[int]) -> list[dict[str, Any]] | str | None:
        return None if extra else [{}]
