"""Shifts, rounding and accumulators on arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.chips.schema import Target
from narrowcast.engine.reference import fixed
from narrowcast.plan.types import Encoding

__all__ = ["Accumulator", "Array", "Steps", "Unrounded", "float_rounded", "shift_and_round", "to_encoding"]

Array = NDArray[Any]


def shift_and_round(values: Array, shift: Array | int, rounding: str) -> Array:
    """``values / 2^shift`` rounded to integers; a negative shift goes left.

    Args:
        values: int64, magnitude below 2^53.
        shift: broadcasts against ``values``.
        rounding: ``"half-even"`` or ``"half-up"``.

    Returns:
        int64. Results of left shifts stop growing at about 2^57, far beyond any output type.
    """
    values, shift = np.broadcast_arrays(np.asarray(values, np.int64), np.asarray(shift, np.int64))
    left = np.clip(values, -(2**17), 2**17) << np.clip(-shift, 0, 40)
    right = np.clip(shift, 1, 60)
    floor, remainder, half = values >> right, values & ((np.int64(1) << right) - 1), np.int64(1) << (right - 1)
    if rounding == "half-up":
        rounded = floor + (remainder >= half)
    else:
        rounded = floor + ((remainder > half) | ((remainder == half) & (floor & 1 == 1)))
    result: Array = np.where(shift > 0, rounded, left)
    return result


def float_rounded(values: Array, rounding: str) -> Array:
    """Round float32 numbers as the runtimes do: half to even, or ``floor(x + 0.5)`` in float32."""
    x = np.asarray(values, np.float32)
    rounded: Array = np.rint(x) if rounding == "half-even" else np.floor(x + np.float32(0.5))
    return rounded


def _channels(values: Array, rank: int, axis: int) -> Array:
    if np.ndim(values) == 0:
        return np.asarray(values)
    shape = [1] * rank
    shape[axis] = -1
    return np.reshape(values, shape)


class Unrounded(ABC):
    """A result inside a unit, before rounding."""

    @abstractmethod
    def rounded(self, encoding: Encoding, target: Target) -> Array:
        """Integers of an encoding, not saturated yet, zero point included."""

    @abstractmethod
    def real(self) -> Array:
        """Real numbers, float32."""


@dataclass(frozen=True)
class Accumulator(Unrounded):
    """A sum of products.

    Attributes:
        total: int64, the bias included.
        scale: of one step, () or one a channel.
        axis: of the channels.
        half_in_bias: with fixed-point multipliers the half of rounding is part of the bias.
        least_shift: and the first shift at least.
    """

    total: Array
    scale: Array
    axis: int
    half_in_bias: bool = False
    least_shift: int = 0

    def rounded(self, encoding: Encoding, target: Target) -> Array:
        """See :class:`Unrounded`."""
        if encoding.dtype == "int32":
            return self.total
        if target.requantize.method == "shift":
            shift = np.round(np.log2(float(encoding.scales))) - np.round(np.log2(self.scale))
            return shift_and_round(
                self.total, _channels(shift.astype(np.int64), self.total.ndim, self.axis), target.requantize.rounding
            )
        if target.requantize.is_fixed_point:
            factor = _channels(self.scale / fixed.activation_step(encoding), self.total.ndim, self.axis)
            return fixed.multiplied(self.total, factor, encoding.qmax, self.half_in_bias, least=self.least_shift)
        factor = np.asarray(self.scale / float(encoding.scales)).astype(np.float32)
        steps = self.total.astype(np.float32) * _channels(factor, self.total.ndim, self.axis)
        return float_rounded(steps, target.requantize.rounding) + encoding.zero_point

    def real(self) -> Array:
        """See :class:`Unrounded`."""
        scale = _channels(np.asarray(self.scale).astype(np.float32), self.total.ndim, self.axis)
        return np.asarray(self.total.astype(np.float32) * scale)


@dataclass(frozen=True)
class Steps(Unrounded):
    """An elementwise sum, whose float arithmetic depends on the output's scale.

    Attributes:
        terms: integers without zero points, with their scales and signs.
    """

    terms: tuple[tuple[Array, Encoding, int], ...]

    def rounded(self, encoding: Encoding, target: Target) -> Array:
        """See :class:`Unrounded`."""
        if target.requantize.is_fixed_point:
            return fixed.added(self.terms, encoding)
        codes = [code for _, code, _ in self.terms]
        if all(float(code.scales) == float(encoding.scales) and code.zero_point == 0 for code in (*codes, encoding)):
            return np.asarray(sum(sign * values for values, _, sign in self.terms))
        parts = [
            np.float32(sign) * (values.astype(np.float32) * np.float32(float(code.scales) / float(encoding.scales)))
            for values, code, sign in self.terms
        ]
        return float_rounded(parts[0] + parts[1], target.requantize.rounding) + encoding.zero_point

    def real(self) -> Array:
        """See :class:`Unrounded`."""
        parts = [
            np.float32(sign) * (values.astype(np.float32) * np.float32(code.scales))
            for values, code, sign in self.terms
        ]
        return np.asarray(parts[0] + parts[1])


def to_encoding(values: Array, source: Encoding, wanted: Encoding, target: Target) -> Array:
    """RequantizeLinear: integers of one encoding as integers of another, saturated."""
    distance = np.asarray(values, np.int64) - source.zero_point
    if target.requantize.is_fixed_point:
        return np.asarray(np.clip(fixed.rescaled(distance, source, wanted), wanted.qmin, wanted.qmax))
    result = Accumulator(distance, np.asarray(source.scales), 0).rounded(wanted, target)
    return np.clip(result, wanted.qmin, wanted.qmax).astype(np.int64)
