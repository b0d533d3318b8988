"""What one step of an output's encoding is worth in the units of the task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from narrowcast.vision.heads import HeadSpec

__all__ = ["Resolution", "pixels_per_lsb"]

#: Steepest slope of the logistic function, and of the mean of two equally likely neighbouring bins.
_STEEPEST = 0.25


class _Scaled(Protocol):
    @property
    def dtype(self) -> str: ...
    @property
    def scale(self) -> Any: ...


@dataclass(frozen=True)
class Resolution:
    """One output.

    Attributes:
        name: of the output.
        dtype: of its encoding.
        stride: input pixels a cell, ``None`` where it has none.
        quantity: what the output says, e.g. ``"keypoint"``.
        unit: ``"pixels"``, ``"probability"`` or ``"raw"``.
        per_lsb: what one step is worth in that unit; with a scale a channel, the coarsest channel's.
    """

    name: str
    dtype: str
    stride: int | None
    quantity: str
    unit: str
    per_lsb: float


def pixels_per_lsb(head: HeadSpec | None, encodings: Mapping[str, _Scaled]) -> list[Resolution]:
    """What one step of every output's encoding is worth, in the order of ``encodings``.

    Keypoints: ``2 * scale * stride`` pixels (decode: ``(2 * raw + cell) * stride``). Box sides: ``scale * stride``, or
    with bins a quarter of it, when one of two equally likely neighbouring bins moves by a step. Class logits: a quarter
    of the scale, the steepest slope of the logistic function. Mask coefficients and prototypes have no unit.

    Args:
        head: layout of the raw outputs; ``None`` for a whole graph.
        encodings: of the outputs by name, as in the plan or the manifest.
    """
    return [_one(name, encoding, head) for name, encoding in encodings.items()]


def _one(name: str, encoding: _Scaled, head: HeadSpec | None) -> Resolution:
    stem, _, tail = name.partition("_s")
    stride = int(tail) if head is not None and tail.isdecimal() else None
    scale: NDArray[np.float64] = np.atleast_1d(np.asarray(encoding.scale, np.float64))
    if head is None or stride is None:
        return Resolution(name, encoding.dtype, None, "prototype" if name == "proto" else "value", "raw", _max(scale))
    if stem == "kpt" and head.keypoint_shape is not None:
        dims = head.keypoint_shape[1]
        places = np.arange(len(scale)) % dims < 2 if len(scale) > 1 else np.ones(1, np.bool_)
        return Resolution(name, encoding.dtype, stride, "keypoint", "pixels", 2 * stride * _max(scale[places]))
    if stem == "box":
        slope = _STEEPEST if head.reg_max > 1 else 1.0
        return Resolution(name, encoding.dtype, stride, "box side", "pixels", slope * stride * _max(scale))
    if stem == "cls":
        return Resolution(name, encoding.dtype, stride, "class", "probability", _STEEPEST * _max(scale))
    return Resolution(name, encoding.dtype, stride, "mask coefficient", "raw", _max(scale))


def _max(scale: NDArray[np.float64]) -> float:
    return float(scale.max())
