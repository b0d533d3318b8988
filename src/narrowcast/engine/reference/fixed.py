"""Fixed-point multiplication, number by number as integers: the slow twin of the lowering's rules.

Shifts and multipliers are found by counting here, not by logarithms.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.plan.types import Encoding

__all__ = ["activation_step", "added", "averaged", "multiplied", "product_step", "rescaled"]

Array = NDArray[Any]


def activation_step(code: Encoding) -> np.float64:
    """The threshold in float32 over the largest integer."""
    threshold = np.float32(code.scales) * np.float32(code.qmax)
    return np.float64(np.float32(threshold / np.float32(code.qmax)))


def product_step(source: Encoding, weight: Encoding) -> Array:
    """One step of a sum of products with constant weights, () or one a channel."""
    thresholds = np.asarray(weight.scales, np.float32) * np.float32(weight.qmax)
    return np.asarray(np.float32(activation_step(source)) * (thresholds / np.float32(weight.qmax)), np.float64)


def _multiplier(factor: float) -> tuple[int, int]:
    """(scale, shift) with 2^14 <= scale < 2^15 and scale / 2^shift near the factor."""
    shift = 0
    while factor * 2.0**shift < 2**14:
        shift += 1
    return min(int(factor * 2.0**shift + 0.5), 2**15 - 1), shift


def multiplied(
    x: Array, factor: Array, largest: int, half_in_bias: bool, sign: int = 1, elementwise: bool = False, least: int = 0
) -> Array:
    """Integers times real factors: shift, multiplier, shift.

    Args:
        x: int64.
        factor: broadcasts against ``x``.
        largest: integer of the result's type.
        half_in_bias: add half a step first, in whole steps of ``x``; else at the last shift.
        sign: of the multiplier.
        least: first shift, where there are so many bits to shift.
        elementwise: Add, Sub and Mul leave the second shift at 22, or at 14 where the result has 16 bits.
    """
    result = np.empty(x.shape, np.int64)
    factors = np.broadcast_to(factor, x.shape)
    for each in np.unique(factors):
        where = factors == each
        scale, shift = _multiplier(float(each))
        first = min(least, shift)
        while (
            shift - first > (22 if largest == 127 else 14)
            if elementwise
            else largest >= 32767 * float(each) * 2.0**first
        ):
            first += 1
        whole = x[where] + (int(np.rint(0.5 / each)) if half_in_bias else 0)
        half = 0 if half_in_bias or shift == first else 1 << (shift - first - 1)
        result[where] = ((whole >> first) * (sign * scale) + half) >> (shift - first)
    return result


def rescaled(x: Array, source: Encoding, wanted: Encoding) -> Array:
    """Integers of one scale in another, not saturated."""
    factor = activation_step(source) / activation_step(wanted)
    if factor == 1:
        return x
    scale, shift = _multiplier(float(factor))
    return np.asarray((x * scale + (1 << (shift - 1))) >> shift)


def added(terms: tuple[tuple[Array, Encoding, int], ...], wanted: Encoding) -> Array:
    """Sum or difference: the finer operand takes a multiplier, the coarser one is shifted as far to the left."""
    steps = [activation_step(code) for _, code, _ in terms]
    coarse = max(steps)
    which = steps.index(coarse)
    ratio = float(steps[1 - which] / coarse)
    scale, shift = _multiplier(ratio)
    if ratio * 2.0**shift + 0.5 >= 2**15:
        scale, shift = 2**14, shift - 1
    (wide, _, positive), (fine, _, sign) = terms[which], terms[1 - which]
    difference = positive * sign  # of a difference the finer operand is taken off, and the sign is the multiplier's
    total = (wide << shift) + difference * fine * scale
    factor = np.asarray(coarse / 2.0**shift / activation_step(wanted))
    return multiplied(total, factor, wanted.qmax, False, positive, True)


def averaged(total: Array, window: int) -> Array:
    """Sums over windows as averages, 9 bits behind the point."""
    return np.asarray((total * (512 // window)) >> 9)
