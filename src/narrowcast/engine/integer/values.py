"""What a tensor is while the integer graph is being built, and how it changes its encoding.

Every rule here works on float32 tensors that hold exact values. Rounding half to even is ONNX's Round; half up is
``floor(x + 1/2)``, computed in float32 as the chips' runtimes do for real numbers. For accumulators both are exact,
because their values and the added half are multiples of one power of two below 2^24 of them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.chips.schema import Target
from narrowcast.engine.integer.fixed import activation_step, requantize_multiplier
from narrowcast.ops.net import Builder, Op
from narrowcast.plan.types import Encoding, round_real


@dataclass(frozen=True)
class Integers:
    """Integer values in a float32 tensor.

    Attributes:
        name: in the integer graph.
        encoding: what the integers mean.
        shape: static.
        low: smallest value that can occur, at least the encoding's ``qmin``.
        high: largest value that can occur.
    """

    name: str
    encoding: Encoding
    shape: tuple[int, ...]
    low: int
    high: int

    @property
    def magnitude(self) -> int:
        """Largest distance from the zero point."""
        return max(abs(self.low - self.encoding.zero_point), abs(self.high - self.encoding.zero_point))


@dataclass(frozen=True)
class Reals:
    """Real values in a float32 tensor.

    Attributes:
        name: in the integer graph.
        shape: static.
    """

    name: str
    shape: tuple[int, ...]


class Pending(ABC):
    """A result inside a fused unit: exact, not rounded yet."""

    @abstractmethod
    def quantized(self, encoding: Encoding, low: int, high: int, output: str) -> Integers:
        """Rounded into an encoding and saturated to ``low..high``, in a tensor named ``output``."""

    @abstractmethod
    def real(self) -> Reals:
        """As real numbers."""


Value = Integers | Reals | Pending


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


def ratio(source: float, wanted: float) -> np.float32:
    """The float32 factor from steps of one scale to steps of another; exact for powers of two."""
    return np.float32(source / wanted)


def round_and_saturate(
    builder: Builder,
    x: str,
    rounding: str | None,
    bounds: tuple[int, int],
    zero_point: int = 0,
    *,
    half_added: bool = False,
    double: bool = False,
    output: str | None = None,
    stem: str = "",
) -> str:
    """Integers of real values in steps of the output: ``clip(round(x) + zero_point)``.

    Saturation comes first, which is the same because the bounds are integers, and lets onnxruntime fuse it into a
    convolution.

    Args:
        builder: the graph.
        x: tensor of real values.
        rounding: ``"half-even"``, ``"half-up"``, or ``None`` when the values are integers already.
        bounds: smallest and largest result.
        zero_point: added after rounding.
        half_added: the half of half-up rounding is in ``x`` already.
        double: ``x`` is float64.
        output: exact name of the result.
        stem: for names of the nodes in between.
    """
    dtype = np.float64 if double else np.float32
    steps: list[tuple[str, tuple[float, ...]]] = [(Op.CLIP, (bounds[0] - zero_point, bounds[1] - zero_point))]
    if rounding == "half-even":
        steps.append((Op.ROUND, ()))
    elif rounding == "half-up":
        steps += [(Op.FLOOR, ())] if half_added else [(Op.ADD, (0.5,)), (Op.FLOOR, ())]
    if zero_point:
        steps.append((Op.ADD, (float(zero_point),)))
    for index, (op_type, numbers) in enumerate(steps):
        last = index == len(steps) - 1 and not double
        inputs = [x, *(builder.constant(number, dtype) for number in numbers)]
        x = builder.add(op_type, inputs, stem, output=output if last else None)
    return builder.cast(x, "float", stem, output) if double else x


def remove_zero_point(builder: Builder, value: Integers) -> str:
    """The integers minus their zero point."""
    if value.encoding.zero_point == 0:
        return value.name
    return builder.arithmetic(Op.SUB, value.name, float(value.encoding.zero_point), value.name)


def dequantize(builder: Builder, value: Integers) -> Reals:
    """Real values ``(q - zero_point) * scale`` in float32."""
    name = remove_zero_point(builder, value)
    scale = value.encoding.broadcast(len(value.shape)).astype(np.float32)
    return Reals(builder.arithmetic(Op.MUL, name, scale, f"{value.name}_real"), value.shape)


def quantize(builder: Builder, value: Reals, encoding: Encoding, target: Target, output: str) -> Integers:
    """Integers ``clip(round(x / scale) + zero_point)``; the division is in float32, exact for powers of two."""
    scale = np.float32(encoding.scales)
    if math.frexp(float(scale))[0] == 0.5:
        x = builder.arithmetic(Op.MUL, value.name, 1 / scale, output)
    else:
        x = builder.arithmetic(Op.DIV, value.name, scale, output)
    bounds = (encoding.qmin, encoding.qmax)
    round_and_saturate(builder, x, target.quantize_rounding, bounds, encoding.zero_point, output=output, stem=output)
    return Integers(output, encoding, value.shape, *bounds)


def requantize(
    builder: Builder,
    value: Integers,
    encoding: Encoding,
    target: Target,
    bounds: tuple[int, int] | None = None,
    output: str | None = None,
) -> Integers:
    """The same numbers in another encoding: ``clip(round((q - z) * (s / s')) + z')`` with a float32 factor.

    For powers of two this is the chip's shift: exact, rounded as the target says, left without rounding.

    Args:
        builder: the graph.
        value: integers.
        encoding: the wanted one, per tensor.
        target: its ``requantize`` rule.
        bounds: saturate to less than the range of the type, as Relu and Clip do.
        output: exact name of the result.
    """
    low, high = bounds or (encoding.qmin, encoding.qmax)
    stem = output or f"{value.name}_requantized"
    factor, wide = _factor(value.encoding, encoding, target)
    name = remove_zero_point(builder, value)
    if factor != 1:
        name = builder.cast(name, "double", stem) if wide else name
        name = builder.arithmetic(Op.MUL, name, factor, stem, np.float64 if wide else np.float32)
    wide = wide and factor != 1
    rounding = None if factor >= 1 and float(factor).is_integer() else target.requantize.rounding
    name = round_and_saturate(
        builder, name, rounding, (low, high), encoding.zero_point, double=wide, output=output, stem=stem
    )
    smallest, largest = (
        (bound - value.encoding.zero_point) * float(factor) + encoding.zero_point for bound in (value.low, value.high)
    )
    low, high = (int(np.clip(bound, low, high)) for bound in (math.floor(smallest), math.ceil(largest)))
    return Integers(name, encoding, value.shape, low, high)


def _factor(source: Encoding, wanted: Encoding, target: Target) -> tuple[float, bool]:
    """From steps of one encoding to steps of another, and whether float32 is too narrow for the product."""
    if not target.requantize.is_fixed_point:
        return float(ratio(float(source.scales), float(wanted.scales))), False
    steps = activation_step(source) / activation_step(wanted)
    if steps == 1:
        return 1.0, False
    scale, shift = requantize_multiplier(steps)
    # 8 bits times 15 bits, and the half of the last shift: 24 bits, unless the shift is longer
    return scale * 2.0**-shift, source.dtype != "int8" or shift > 23
