"""Results as plain dataclasses of numpy arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.vision.masks import Masks, dense_masks

__all__ = ["Classification", "Detections", "Result"]


class Result(ABC):
    """What is said of one image."""

    @abstractmethod
    def __len__(self) -> int:
        """How many entries it has."""

    @abstractmethod
    def to_dict(self, classes: Sequence[str] = ()) -> list[dict[str, Any]]:
        """One JSON-ready dictionary an entry."""

    def lines(self, classes: Sequence[str] = ()) -> list[str]:
        """In words, for a panel on the picture."""
        return [", ".join(f"{key} {value}" for key, value in entry.items()) for entry in self.to_dict(classes)]

    def against(self, other: Result) -> tuple[str, float]:
        """How another result of the same image differs, in words and as a number to sort by."""
        same = self.to_dict() == other.to_dict()
        return ("the same", 0.0) if same else ("another result", 1.0)


@dataclass(frozen=True)
class Detections(Result):
    """Objects found in one image, best first.

    Attributes:
        boxes: (N, 4) float32, left, top, right, bottom in pixels of the original image.
        scores: (N,) float32, 0..1.
        class_ids: (N,) int64.
        keypoints: (N, K, 3) float32 of x, y in pixels and a confidence 0..1, or ``None``.
        masks: :class:`~narrowcast.vision.masks.Masks`, which behave like (N, H, W) bool at the size of the original
            image but are computed when asked for, or ``None``. A plain array is accepted and wrapped.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    keypoints: NDArray[np.float32] | None = None
    masks: Masks | None = None

    def __post_init__(self) -> None:
        if isinstance(self.masks, np.ndarray):
            object.__setattr__(self, "masks", dense_masks(self.masks))

    def __repr__(self) -> str:
        extra = [name for name in ("masks", "keypoints") if getattr(self, name) is not None]
        scores = f", scores {self.scores.max():.2f} to {self.scores.min():.2f}" if len(self) else ""
        return f"<Detections: {', '.join([f'{len(self)} boxes', *extra])}{scores}>"

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Any) -> Detections:
        """The detections at ``index``: an integer, slice, index array or boolean mask."""
        if isinstance(index, (int, np.integer)):
            index = [index]
        return Detections(
            self.boxes[index],
            self.scores[index],
            self.class_ids[index],
            None if self.keypoints is None else self.keypoints[index],
            None if self.masks is None else self.masks[index],
        )

    def to_supervision(self) -> Any:
        """The same as ``supervision.Detections``, for its annotators, trackers and counters.

        Keypoints are in ``data["keypoints"]`` as (N, K, 3).

        Raises:
            ImportError: the package ``supervision`` is not installed.
        """
        import supervision

        return supervision.Detections(
            xyxy=self.boxes.reshape(-1, 4),
            mask=None if self.masks is None else np.asarray(self.masks),
            confidence=self.scores,
            class_id=self.class_ids,
            data={} if self.keypoints is None else {"keypoints": self.keypoints},
        )

    def to_dict(self, classes: Sequence[str] = ()) -> list[dict[str, Any]]:
        """One JSON-ready dictionary an object: box (xyxy), score, class, class_id, keypoints."""
        result = []
        for index in range(len(self)):
            class_id = int(self.class_ids[index])
            entry: dict[str, Any] = {
                "box": [round(float(v), 2) for v in self.boxes[index]],
                "score": round(float(self.scores[index]), 4),
                "class_id": class_id,
                "class": classes[class_id] if class_id < len(classes) else str(class_id),
            }
            if self.keypoints is not None:
                entry["keypoints"] = [[round(float(v), 3) for v in point] for point in self.keypoints[index]]
            result.append(entry)
        return result


@dataclass(frozen=True)
class Classification(Result):
    """The most likely classes of one image.

    Attributes:
        class_ids: (k,) int64, best first.
        scores: (k,) float32 probabilities.
    """

    class_ids: NDArray[np.int64]
    scores: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.scores)

    def to_supervision(self) -> Any:
        """The same as ``supervision.Classifications``.

        Raises:
            ImportError: the package ``supervision`` is not installed.
        """
        import supervision

        return supervision.Classifications(class_id=self.class_ids, confidence=self.scores)

    def to_dict(self, classes: Sequence[str] = ()) -> list[dict[str, Any]]:
        """One JSON-ready dictionary a class: score, class, class_id."""
        return [
            {"score": round(float(s), 4), "class_id": int(c), "class": classes[c] if c < len(classes) else str(c)}
            for c, s in zip(self.class_ids, self.scores, strict=True)
        ]

    def lines(self, classes: Sequence[str] = ()) -> list[str]:
        """See :meth:`Result.lines`."""
        return [f"{class_name(classes, int(c))} {s:.2f}" for c, s in zip(self.class_ids, self.scores, strict=True)]

    def against(self, other: Result) -> tuple[str, float]:
        """See :meth:`Result.against`."""
        assert isinstance(other, Classification)
        change = abs(float(self.scores[0]) - float(other.scores[0]))
        if self.class_ids[0] != other.class_ids[0]:
            return "another class is first", 1.0 + change
        return f"same class, probability differs by {change:.3f}", change


def class_name(classes: Sequence[str], index: int) -> str:
    """What a class is called on a picture."""
    return classes[index] if index < len(classes) else f"class {index}"
