"""Weights, biases and constant operands as the integers that the chip stores."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.chips.schema import Target
from narrowcast.plan.types import Encoding, round_real

__all__ = ["bias_integers", "constant_integers", "saturating_integer"]


def constant_integers(values: NDArray[Any], encoding: Encoding, target: Target) -> NDArray[np.int64]:
    """A weight or constant operand: ``clip(round(x / scale) + zero_point)`` with the target's rounding.

    Args:
        values: float values, any shape.
        encoding: per tensor or per channel.
        target: its ``quantize_rounding``.

    Returns:
        int64 of the same shape, within the encoding's range.
    """
    return encoding.quantize(values, target.quantize_rounding).astype(np.int64)


def bias_integers(values: NDArray[Any], encoding: Encoding, target: Target, node_type: str) -> NDArray[np.int64]:
    """A bias at the width that the target adds to the accumulator; larger values saturate.

    Args:
        values: float biases, shape (C,).
        encoding: scale = input scale * weight scale.
        target: its ``bias`` and ``quantize_rounding``.
        node_type: of the node, ``"int8"`` or ``"int16"``.

    Returns:
        int64, shape (C,), within [-2^(bits-1), 2^(bits-1) - 1].
    """
    scaled = np.asarray(values, np.float64) / encoding.broadcast(np.ndim(values))
    limit = 2.0 ** (target.bias.bits_for(node_type) - 1)
    rounded = round_real(scaled, target.quantize_rounding)
    # 2^63 - 1 is no float64, and a bias that large is an error of the plan that the proof reports
    return np.clip(rounded, -limit, min(limit - 1, 2.0**53)).astype(np.int64)


def saturating_integer(x: float, encoding: Encoding, rounding: str) -> int:
    """One real number in an encoding, e.g. a bound of Clip. Infinite values saturate."""
    scaled = np.clip(x / float(encoding.scales), -(2.0**40), 2.0**40)
    return int(np.clip(round_real(float(scaled), rounding) + encoding.zero_point, encoding.qmin, encoding.qmax))
