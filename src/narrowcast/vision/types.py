"""Results as plain dataclasses of numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.vision.masks import Masks, dense_masks

__all__ = ["Classification", "Detections"]


@dataclass(frozen=True)
class Detections:
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
class Classification:
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
