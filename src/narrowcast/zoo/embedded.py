"""Two small models of our own with images, so that everything can be tried offline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from narrowcast.base.errors import UserError

__all__ = ["Sample", "sample", "sample_for", "sample_names"]

_FOLDER = Path(__file__).parent / "samples"
_FOLDERS = {"pose": "people", "classify": "things"}


@dataclass(frozen=True)
class Sample:
    """A model and its images.

    Attributes:
        name: ``"pose"`` or ``"classify"``.
        model: float ONNX file.
        calibration: folder of images to calibrate on.
        validation: folder of labelled images that no training step has seen.
        annotations: COCO keypoint annotations of the validation images, for pose.
        labels: file name and class index a line, for classify.
    """

    name: str
    model: Path
    calibration: Path
    validation: Path
    annotations: Path | None
    labels: Path | None


def sample_names() -> tuple[str, ...]:
    """Names that :func:`sample` takes."""
    return tuple(_FOLDERS)


def sample(name: str) -> Sample:
    """An embedded sample.

    Raises:
        UserError: unknown name.
    """
    if name not in _FOLDERS:
        raise UserError(f"there is no sample named {name!r}", f"known are {', '.join(_FOLDERS)}")
    folder = _FOLDER / _FOLDERS[name]
    annotations, labels = folder / "keypoints.json", folder / "labels.txt"
    return Sample(
        name,
        _FOLDER / f"{name}.onnx",
        folder / "calibration",
        folder / "validation",
        annotations if annotations.exists() else None,
        labels if labels.exists() else None,
    )


def sample_for(task: str) -> Sample:
    """The sample whose images suit a model: drawn things for a classifier, drawn people for any other task."""
    return sample("classify" if task == "classify" else "pose")
