"""Fixed-point arithmetic: a multiplier of 15 bits between two shifts, as Horizon's BPU computes.

A real factor ``m`` (scale of what is added up / scale of the output) becomes

    k     = 14 - floor(log2 m)
    scale = min(floor(m 2^k + 1/2), 32767)                     15 bits, 16384 or more
    first = max(0, 1 + floor(log2(qmax / (32767 m))))          what fits in 16 bits behind it saturates nothing less;
            max(0, k - 22) for Add, Sub and Mul (k - 14 for results of 16 bits)
    y     = (floor(x / 2^first) scale + half) >> (k - first)   saturated

``half`` is half of the last shift, except for products with constant weights: there the half is ``round(1 / (2 m))``
in steps of the accumulator, inside the bias. Of an addition, the operand with the finer scale is multiplied first:

    Add, Sub    x = a << k +- b scale, with k and scale of b's step / a's step, a the operand with the coarser scale
    Mul, MatMul, ReduceMean, ReduceSum   x is the exact product or sum
    GlobalAveragePool   the mean in the scale of the input, then another scale
    AveragePool         floor(sum floor(512 / window) / 512), padding counted, in the scale of the input, then another
    requantize          one shift: (q scale + half) >> k

Scales are float32 numbers: ``threshold / qmax`` with the threshold, too, in float32; the step of an accumulator is the
float32 product. A convolution that reads 16 bits shifts at least by 8 first. Measured on the vendor's compiler and
runtime (hb_mapper 1.24.3, HB_ONNXRuntime) with networks of one operator; ``tests/engine/data`` holds integers that they
gave.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.ops.net import Builder, Op
from narrowcast.plan.types import Encoding

__all__ = [
    "FixedPoint", "accumulator_step", "activation_step", "fixed_point", "half_step", "requantize_multiplier", "scaled",
    "shifted_operand", "tool_scale",
]  # fmt: skip

_LARGEST = 32767


@dataclass(frozen=True)
class FixedPoint:
    """``(floor(x / 2^first) * scale) >> second``; int64 arrays, () or one a channel."""

    first: NDArray[np.int64]
    scale: NDArray[np.int64]
    second: NDArray[np.int64]

    def of(self, x: NDArray[np.int64]) -> NDArray[np.int64]:
        """Integers through it, the last shift rounded down; channels last where there is one a channel."""
        return np.asarray(((x >> self.first) * self.scale) >> self.second)


def activation_step(encoding: Encoding) -> float:
    """The scale of an activation as the vendor's tool computes with it."""
    return float(tool_scale(encoding))


def accumulator_step(x: Encoding, weight: Encoding) -> NDArray[np.float64]:
    """One step of the sum of products of an activation with constant weights, () or (C,)."""
    return np.asarray(np.float32(activation_step(x)) * tool_scale(weight), np.float64)


def tool_scale(encoding: Encoding) -> NDArray[np.float32]:
    """The scales that the vendor's tool makes of these: a threshold in float32, divided. () or (C,)."""
    largest = np.float32(encoding.qmax)
    return np.asarray(encoding.scales.astype(np.float32) * largest / largest, np.float32)


def fixed_point(
    factor: NDArray[np.float64] | float, largest: int, *, elementwise: bool = False, least: int = 0
) -> FixedPoint:
    """Multiplier and shifts of a real factor.

    Args:
        factor: > 0, () or (C,).
        largest: integer of the output's type.
        elementwise: of Add, Sub or Mul.
        least: first shift, where there are so many bits to shift.

    Raises:
        UserError: a factor of 2^15 or more.
    """
    factor = np.asarray(factor, np.float64)
    scale, shift = _multiplier(factor)
    if np.any(shift < 0):
        raise UserError(f"a result is {factor.max():.3g} times finer than what is added up", "calibrate on more images")
    most = shift - (22 if largest == 127 else 14) if elementwise else np.frexp(largest / (_LARGEST * factor))[1]
    first = np.maximum(np.minimum(least, shift), most).astype(np.int64)
    return FixedPoint(first, np.minimum(scale, _LARGEST), shift - first)


def _multiplier(factor: NDArray[np.float64] | float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Integers of 15 bits, at the top of an octave 2^15, and shifts of factors above 0."""
    shift = 15 - np.asarray(np.frexp(factor)[1], np.int64)
    return np.floor(np.ldexp(factor, shift) + 0.5).astype(np.int64), shift


def half_step(factor: NDArray[np.float64]) -> NDArray[np.int64]:
    """The half of rounding in steps of the accumulator, added to the bias."""
    return np.rint(0.5 / np.asarray(factor)).astype(np.int64)


def shifted_operand(ratio: float) -> tuple[int, int]:
    """Multiplier of the finer operand of an addition and shift of the coarser one, of finer / coarser <= 1."""
    scale, shift = (int(number) for number in _multiplier(ratio))
    return (scale, shift) if scale <= _LARGEST else (scale // 2, shift - 1)


def requantize_multiplier(ratio: float) -> tuple[int, int]:
    """Multiplier and shift between two scales."""
    scale, shift = (int(number) for number in _multiplier(ratio))
    return min(scale, _LARGEST), shift


def scaled(
    builder: Builder,
    x: str,
    fixed: FixedPoint,
    bounds: tuple[int, int],
    output: str,
    *,
    half: bool,
    is_double: bool = False,
    divided: bool = False,
    axes: tuple[int, ...] = (),
) -> None:
    """Append ``(floor(x / 2^first) * scale + half) >> second``, saturated, in float64.

    Args:
        builder: the graph.
        x: tensor of exact integers, float32 or float64.
        fixed: multiplier and shifts.
        bounds: smallest and largest result.
        output: name of the float32 result.
        half: round half up at the last shift; else down.
        is_double: ``x`` is float64.
        divided: ``x`` is divided by 2^first already, and not rounded.
        axes: shape in which a multiplier a channel broadcasts against ``x``.
    """
    dtype: Any = np.float64 if is_double else np.float32
    if np.any(fixed.first):
        power = _shaped(np.exp2(-fixed.first.astype(np.float64)), axes)
        x = x if divided else builder.arithmetic(Op.MUL, x, power, output, dtype)
        x = builder.add(Op.FLOOR, [x], output)
    x = x if is_double else builder.cast(x, "double", output)
    factor = np.asarray(fixed.scale * np.exp2(-fixed.second.astype(np.float64)), np.float64)
    x = builder.arithmetic(Op.MUL, x, _shaped(factor, axes), output, np.float64)
    if half:
        x = builder.arithmetic(Op.ADD, x, 0.5, output, np.float64)
    x = builder.cast(builder.add(Op.FLOOR, [x], output), "float", output)  # float32 is coarse only beyond the bounds
    builder.add(Op.CLIP, [x, *(builder.constant(float(bound)) for bound in bounds)], output=output)


def _shaped(values: NDArray[np.float64], axes: tuple[int, ...]) -> NDArray[np.float64]:
    return values.reshape(axes) if values.ndim else values
