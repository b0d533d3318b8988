"""The outputs as ESP-DL's own post-processors fetch them: by name, read with the exponent of the tensor alone."""

from __future__ import annotations

from collections.abc import Mapping

from narrowcast.vision.heads import HeadSpec

__all__ = ["parser_names", "parser_notes"]

#: Stem of an output here, and there.
_STEMS = {"box": "box", "cls": "score", "kpt": "kpt", "mask": "mc"}
#: What the post-processors of YOLO11 are written for.
_STRIDES, _BINS, _KEYPOINTS = 3, 16, (17, 3)


def parser_names(head: HeadSpec | None) -> dict[str, str]:
    """Output to its name in the file: ``box0, score0, kpt0 | mc0`` of the smallest stride and so on, ``p``.

    Args:
        head: layout of the outputs; without one they keep their names.
    """
    if head is None:
        return {}
    strides = enumerate(head.strides)
    names = {f"{ours}_s{stride}": f"{theirs}{i}" for i, stride in strides for ours, theirs in _STEMS.items()}
    return names | {"proto": "p"}


def parser_notes(head: HeadSpec | None, types: Mapping[str, str]) -> tuple[str, ...]:
    """What a person has to know before a post-processor of ESP-DL reads the file.

    Args:
        head: layout of the outputs.
        types: output to its integer type.
    """
    if head is None:
        return ()
    limits = {
        f"{_STRIDES} strides": len(head.strides) == _STRIDES,
        f"{_BINS} bins of a box side": head.reg_max == _BINS,
        f"{_KEYPOINTS[0]} keypoints of {_KEYPOINTS[1]} numbers": head.keypoint_shape in (None, _KEYPOINTS),
    }
    notes = [
        f"ESP-DL's yolo11 post-processor is made for {want}: decode this model yourself"
        for want, ok in limits.items()
        if not ok
    ]
    if len(set(types.values())) > 1:
        wide = ", ".join(name for name, kind in types.items() if kind != "int8")
        notes.append(
            f"ESP-DL's post-processors read all outputs in the type of box0, and {wide} differ: decode them yourself"
        )
    return tuple(notes)
