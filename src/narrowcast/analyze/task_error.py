"""The error of a quantized model in the units of its task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["TaskError", "combine"]

#: What :func:`combine` weights by candidates and by images; everything else is weighted by detections.
_BY_CANDIDATES, _BY_IMAGES = ("candidate_probability",), ("noise_ratio",)


@dataclass(frozen=True)
class TaskError:
    """Means over what the float model found; ``None`` where the task has no such thing or nothing was found.

    Attributes:
        detections: objects that the means are over (images, for a classifier).
        candidates: pairs of class and cell that either graph thinks possible.
        images: how many.
        box_pixels: absolute difference of a box side, input pixels.
        iou_loss: 1 - IoU of float and quantized box, 0..1.
        probability: absolute difference of the class probability, 0..1 (classifiers: of the float model's best class).
        candidate_probability: the same over all candidates, so that new false positives count.
        keypoint_pixels: distance of a keypoint, input pixels, weighted by visibility.
        oks_loss: 1 - object keypoint similarity (COCO), 0..1.
        mask_iou_loss: 1 - IoU of the masks on the prototypes inside the float box, 0..1.
        top1_disagreement: share of images whose best class differs.
        divergence: Kullback-Leibler divergence (its form for numbers that need not add up to 1) of the quantized from
            the float probabilities, nats, over the five best float classes, the best quantized one, and all others
            together.
        noise_ratio: noise-to-signal power ratio, mean over outputs; only where there is no task to judge by.
    """

    detections: int
    candidates: int
    images: int
    box_pixels: float | None = None
    iou_loss: float | None = None
    probability: float | None = None
    candidate_probability: float | None = None
    keypoint_pixels: float | None = None
    oks_loss: float | None = None
    mask_iou_loss: float | None = None
    top1_disagreement: float | None = None
    divergence: float | None = None
    noise_ratio: float | None = None

    @property
    def loss(self) -> float:
        """One number to make small, 0 or more: the sum of the losses that the task's metric depends on.

        Classifiers: the divergence. Objects: 1 - OKS or 1 - mask IoU, 1 - box IoU, and both probability errors.
        Without a task: the noise ratio.
        """
        if self.divergence is not None:
            return self.divergence
        if self.noise_ratio is not None:
            return self.noise_ratio
        parts = (self.oks_loss, self.mask_iou_loss, self.iou_loss, self.probability, self.candidate_probability)
        return sum(part for part in parts if part is not None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the loss; what does not apply is left out."""
        return {**{key: value for key, value in asdict(self).items() if value is not None}, "loss": self.loss}


def combine(errors: Iterable[TaskError]) -> TaskError:
    """The error over several images: means weighted by detections (or candidates, or images).

    Raises:
        ValueError: nothing to combine.
    """
    every = list(errors)
    if not every:
        raise ValueError("no errors to combine")
    counts = {name: sum(getattr(entry, name) for entry in every) for name in ("detections", "candidates", "images")}
    means: dict[str, Any] = dict(counts)
    for entry in fields(TaskError):
        if entry.name in counts:
            continue
        by = "candidates" if entry.name in _BY_CANDIDATES else "images" if entry.name in _BY_IMAGES else "detections"
        known = [(getattr(e, by), getattr(e, entry.name)) for e in every if getattr(e, entry.name) is not None]
        weight = sum(count for count, _ in known)
        means[entry.name] = sum(c * v for c, v in known) / weight if weight else (0.0 if known else None)
    return TaskError(**means)
