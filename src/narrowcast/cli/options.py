"""What several commands parse alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from narrowcast.base.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from narrowcast.evaluate import CocoData, ImageNetData
    from narrowcast.vision.preprocess import Preprocess

__all__ = ["beside", "change_preprocessing", "labelled_images", "parse_size"]


def beside(path: Path, ending: str) -> Path:
    """What is written by default: a name made from that of a bundle, in the folder where the bundle lies."""
    whole = path.absolute()
    return whole.with_name(f"{whole.name}{ending}")


def labelled_images(
    images: Path,
    annotations: Path | None,
    labels: Path | None,
    *,
    limit: int | None,
    seed: int = 0,
    skip_missing: bool = False,
) -> CocoData | ImageNetData | None:
    """Images with what ``--annotations`` or ``--labels`` says of them, ``None`` without either.

    Raises:
        UserError: both are given, or what reading them refuses.
    """
    from narrowcast.evaluate import coco, imagenet

    if annotations is not None and labels is not None:
        raise UserError("both --annotations and --labels are given", "give the one that fits the model")
    if annotations is not None:
        return coco(images, annotations, limit=limit, seed=seed, skip_missing=skip_missing)
    return imagenet(images, labels, limit=limit, seed=seed) if labels is not None else None


def parse_size(text: str | None) -> tuple[int, int] | None:
    """``480x640`` (or ``640``) to height and width.

    Raises:
        UserError: anything else.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and len(part) < 7 and int(part) > 0 for part in parts):
        raise UserError(f"--size {text} is not understood", "write HEIGHTxWIDTH, such as 480x640")
    return int(parts[0]), int(parts[-1])


def change_preprocessing(spec: Preprocess, changes: Mapping[str, str | float | tuple[float, ...] | None]) -> Preprocess:
    """The model's own preprocessing with what the person asked for.

    Raises:
        UserError: an impossible value.
    """
    values: dict[str, Any] = {}
    for name, text in changes.items():
        if text is None:
            continue
        if name not in ("mean", "scale"):
            values[name] = text
            continue
        try:
            parts = (
                text.replace(",", " ").split()
                if isinstance(text, str)
                else text
                if isinstance(text, tuple)
                else (text,)
            )
            values[name] = tuple(float(part) for part in parts)
        except ValueError as error:
            raise UserError(f"--{name} {text} is not understood", "write one number, or one a channel") from error
    try:
        changed = replace(spec, **values)
    except ValueError as error:
        raise UserError(str(error), "see narrowcast quantize --help") from error
    if changed.camera.startswith("nv12") and (changed.height % 2 or changed.width % 2):
        raise UserError(
            f"NV12 has even sides, the model's input is {changed.height}x{changed.width}",
            "export the model with an even size, or feed it rgb",
        )
    return changed
