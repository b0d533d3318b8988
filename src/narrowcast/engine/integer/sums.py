"""An accumulator: a sum of products, exact in float32 or put together in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.engine.integer.context import EXACT, Context, Digits, Proof, digit_bounds, split, static_digit
from narrowcast.engine.integer.fixed import FixedPoint, activation_step, fixed_point, half_step, scaled
from narrowcast.engine.integer.values import Integers, Pending, Reals, remove_zero_point, round_and_saturate
from narrowcast.ops.net import Op
from narrowcast.plan.types import Encoding, round_real

__all__ = ["Array", "Emit", "ProductSum"]

Array = NDArray[np.signedinteger[Any]]
#: Makes the product node: activation, weights (a name or constant), bias or None -> output name.
Emit = Callable[[str, str, str | None], str]


@dataclass(frozen=True)
class ProductSum(Pending):
    """An accumulator that is not rounded yet.

    Attributes:
        context: of the lowering.
        node: name, for reports and names.
        emit: makes one product node.
        x: the activation.
        weight: integers of a constant second operand, less their zero point (17 bits at most, held in 32), or the
            second activation.
        channel_axis: axis of the weight with the output channels; ``None`` when one bound holds for all.
        bias: int64 (C,), or ``None``.
        scale: of one step of the accumulator, () or (C,).
        shape: of the output.
        output_axis: axis of the output with the channels.
        terms: number of products in a sum with a dynamic second operand.
        reach: largest accumulator on the chip, where this sum computes less (:meth:`_settled`).
    """

    context: Context
    node: str
    emit: Emit
    x: Integers
    weight: Array | Integers
    channel_axis: int | None
    bias: Array | None
    scale: NDArray[np.float64]
    shape: tuple[int, ...]
    output_axis: int
    terms: int = 0
    reach: int = 0

    def quantized(self, encoding: Encoding, low: int, high: int, output: str) -> Integers:
        """See :class:`Pending`. An int32 encoding takes the accumulator as it is."""
        if encoding.dtype == "int32":
            return self._whole(encoding, output)
        rule = self.context.target.requantize
        total = self._with_half(encoding) if rule.is_fixed_point else self
        settled = total._settled(encoding, low, high)
        if rule.is_fixed_point:
            settled._fixed(encoding, (low, high), output)
        elif rule.method == "shift":
            settled._shifted(encoding, (low, high), output)
        else:
            settled._multiplied(encoding, (low, high), output)
        return Integers(output, encoding, self.shape, low, high)

    def real(self) -> Reals:
        """See :class:`Pending`: accumulator * scale, in float32."""
        name, double = self._accumulate(None, None)
        if double:
            name = self.context.builder.cast(name, "float", self.node)
        factor = self._channels(self.scale).astype(np.float32)
        return Reals(self.context.builder.arithmetic(Op.MUL, self._barrier(name), factor, self.node), self.shape)

    def accumulator(self) -> str:
        """The sum itself as integers in float32, rounded to float32 where it is larger than 2^24."""
        name, double = self._accumulate(None, None)
        return self.context.builder.cast(name, "float", self.node) if double else name

    def bounds(self, digits: Digits, x_bound: int) -> list[int]:
        """Largest sum for each digit of the weight."""
        if isinstance(self.weight, Integers):
            return [self.terms * x_bound * bound for bound in digit_bounds(self.weight.magnitude, digits)]
        parts = (static_digit(self.weight, digits, index) for index in range(digits.count))  # one in memory at a time
        return [int(self._per_channel(np.abs(part, out=part)).max(initial=0)) * x_bound for part in parts]

    def _per_channel(self, weight: Array) -> Array:
        axes = tuple(axis for axis in range(weight.ndim) if axis != self.channel_axis)
        sums = weight.sum(axis=axes, dtype=np.int64)
        groups = self.shape[self.output_axis] // len(sums)  # a grouped ConvTranspose repeats its channels
        return np.asarray(np.tile(sums, groups) if groups > 1 else sums)

    def _channel_bounds(self) -> Array:
        """Largest accumulator of each channel, the bias included."""
        if isinstance(self.weight, Integers):
            products = np.asarray([self.terms * self.x.magnitude * self.weight.magnitude])
        else:
            products = self._per_channel(np.abs(self.weight)) * self.x.magnitude
        return np.asarray(products + (0 if self.bias is None else np.abs(self.bias)))

    def _channels(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values per channel, shaped to broadcast against the output."""
        if values.ndim == 0:
            return values
        shape = [1] * len(self.shape)
        shape[self.output_axis] = -1
        return values.reshape(shape)

    def _whole(self, encoding: Encoding, output: str) -> Integers:
        """The accumulator itself, in float64 where float32 does not hold it."""
        name, double = self._accumulate(None, None)
        builder, bound = self.context.builder, int(self._channel_bounds().max())
        if double:
            limits = [builder.constant(float(limit), np.float64) for limit in (encoding.qmin, encoding.qmax)]
            builder.add(Op.CLIP, [name, *limits], output=output)
        else:
            builder.add(Op.IDENTITY, [name], output=output)
        low, high = max(-bound, encoding.qmin), min(bound, encoding.qmax)
        return Integers(output, encoding, self.shape, low, high)

    def _settled(self, encoding: Encoding, low: int, high: int) -> ProductSum:
        """Channels that give one integer whatever the input is, with weights of 0 and that integer as the bias.

        The scale of a dead channel is tiny and its bias beyond 2^24, for which the whole node would need float64.
        """
        weight, sums, channels = self.weight, self._channel_bounds(), self.shape[self.output_axis]
        if isinstance(weight, Integers) or self.channel_axis is None or weight.shape[self.channel_axis] != channels:
            return self
        reach = self._reach(np.asarray(self.scale / float(encoding.scales)))
        if reach.max() <= EXACT:
            return self
        limits = (low - encoding.zero_point, high - encoding.zero_point)
        bias = np.zeros(channels, np.int64) if self.bias is None else self.bias
        products = sums - np.abs(bias)
        first, last = (
            np.clip(self._rounded(bias + sign * products, encoding), *limits).astype(np.int64) for sign in (-1, 1)
        )
        constant = (first == last) & (reach > EXACT)
        shape = [-1 if axis == self.channel_axis else 1 for axis in range(weight.ndim)]
        return replace(
            self,
            weight=np.where(constant.reshape(shape), 0, weight),
            bias=np.where(constant, first, bias),
            scale=np.where(constant, self._unit(encoding), self.scale),
            reach=int(sums.max()),
        )

    def _unit(self, encoding: Encoding) -> float:
        """The accumulator's step that gives its integers as they are."""
        is_fixed = self.context.target.requantize.is_fixed_point
        return activation_step(encoding) if is_fixed else float(encoding.scales)

    def _half(self, factor: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """The half of half-up rounding in steps of the output, where it is added to the bias."""
        rule = self.context.target.requantize
        added = rule.method == "shift" and rule.rounding == "half-up" and np.any(factor < 1)
        return np.where(factor < 1, 0.5, 0.0) if added else None

    def _reach(self, factor: NDArray[np.float64]) -> NDArray[np.float64]:
        """Largest magnitude of each channel's accumulator, with the half in its steps."""
        half = self._half(factor)
        return np.asarray(self._channel_bounds() + (0.0 if half is None else half / factor))

    def _rounded(self, accumulator: Array, encoding: Encoding) -> NDArray[np.float64]:
        """Accumulators of every channel in steps of the output, as the target rounds them; not saturated."""
        rule, factor = self.context.target.requantize, np.asarray(self.scale / float(encoding.scales))
        if rule.method == "shift":
            return round_real(accumulator * factor, rule.rounding)
        if rule.is_fixed_point:
            return self._multiplier(encoding).of(accumulator).astype(np.float64)
        steps = accumulator.astype(np.float32) * factor.astype(np.float32)
        rounded = np.rint(steps) if rule.rounding == "half-even" else np.floor(steps + np.float32(0.5))
        return rounded.astype(np.float64)

    def _barrier(self, name: str) -> str:
        """A Clip that changes nothing, so that onnxruntime does not fold the next factor into the weights."""
        limit = float(2**53)
        builder = self.context.builder
        return builder.add(Op.CLIP, [name, builder.constant(-limit), builder.constant(limit)], self.node)

    def _with_half(self, encoding: Encoding) -> ProductSum:
        """With the half of fixed-point rounding in the bias, which products of two activations do not have."""
        if isinstance(self.weight, Integers):
            return self
        half = half_step(np.asarray(self.scale / activation_step(encoding)))
        bias = np.zeros(self.shape[self.output_axis], np.int64) if self.bias is None else self.bias
        return replace(self, bias=bias + half)

    def _fixed(self, encoding: Encoding, bounds: tuple[int, int], output: str) -> None:
        fixed = self._multiplier(encoding)
        self.through(fixed, bounds, output, half=isinstance(self.weight, Integers))

    def _multiplier(self, encoding: Encoding) -> FixedPoint:
        wide = self.x.encoding.dtype == "int16" and not isinstance(self.weight, Integers)
        factor = np.asarray(self.scale / activation_step(encoding))
        return fixed_point(factor, encoding.qmax, least=8 if wide else 0)

    def through(self, fixed: FixedPoint, bounds: tuple[int, int], output: str, *, half: bool) -> None:
        """Append the sum through two shifts and a multiplier; the first shift is inside weights and bias.

        Args:
            fixed: multiplier and shifts, () or one a channel.
            bounds: smallest and largest result.
            output: name of the result.
            half: round half up at the last shift; else down.
        """
        name, double = self._accumulate(np.exp2(-fixed.first.astype(np.float64)), None)
        shape = [1] * len(self.shape)
        shape[self.output_axis] = -1
        builder, axes = self.context.builder, tuple(shape)
        scaled(builder, name, fixed, bounds, output, half=half, is_double=double, divided=True, axes=axes)

    def _multiplied(self, encoding: Encoding, bounds: tuple[int, int], output: str) -> None:
        builder, rule = self.context.builder, self.context.target.requantize
        name, double = self._accumulate(None, None)
        if double:
            name = builder.cast(name, "float", self.node)
        factor = self._channels(np.asarray(self.scale / float(encoding.scales))).astype(np.float32)
        name = builder.arithmetic(Op.MUL, self._barrier(name), factor, self.node)
        round_and_saturate(builder, name, rule.rounding, bounds, encoding.zero_point, output=output, stem=self.node)

    def _shifted(self, encoding: Encoding, bounds: tuple[int, int], output: str) -> None:
        """``round(accumulator * 2^-shift)``, the factor and the half of half-up inside weights and bias."""
        rule = self.context.target.requantize
        factor = np.asarray(self.scale / float(encoding.scales))
        if not np.all(np.frexp(factor)[0] == 0.5):
            raise UserError(f"{self.node}: its scales are not powers of two", "make the plan again for this target")
        rounding, half = rule.rounding if np.any(factor < 1) else None, self._half(factor)
        name, double = self._accumulate(factor, half)
        round_and_saturate(
            self.context.builder,
            name,
            rounding,
            bounds,
            encoding.zero_point,
            half_added=half is not None,
            double=double,
            output=output,
            stem=self.node,
        )

    def _accumulate(self, factor: NDArray[np.float64] | None, half: NDArray[np.float64] | None) -> tuple[str, bool]:
        """The sum times ``factor`` plus ``half``, both per channel; and whether it is float64.

        Args:
            factor: powers of two, () or (C,).
            half: added after the factor; must be exact too.
        """
        sums = self._channel_bounds()
        largest = max(self.reach, int(sums.max()))
        bound = int(np.max(sums if half is None or factor is None else sums + half / factor))
        if bound <= EXACT:
            self.context.proofs.append(Proof(self.node, largest, 1, False))
            return self._single(factor, half), False
        weight = self.weight
        magnitude = weight.magnitude if isinstance(weight, Integers) else int(max(-weight.min(), weight.max()))
        x_digits, w_digits = split(self.node, bound, (self.x.magnitude, magnitude), self.bounds)
        products = x_digits.count * w_digits.count
        self.context.proofs.append(Proof(self.node, largest, products, True))
        return self._double(x_digits, w_digits, factor, half), True

    def _single(self, factor: NDArray[np.float64] | None, half: NDArray[np.float64] | None) -> str:
        builder = self.context.builder
        x = remove_zero_point(builder, self.x)
        if isinstance(self.weight, Integers):
            name = self.emit(x, remove_zero_point(builder, self.weight), None)
            for op_type, number in ((Op.MUL, factor), (Op.ADD, half)):
                name = name if number is None else builder.arithmetic(op_type, name, number, self.node)
            return name
        bias = self.bias
        weight = builder.stored(self.weight, np.ones(()) if factor is None else self._against_weight(factor))
        total = np.zeros(self.shape[self.output_axis]) if bias is None else bias.astype(np.float64)
        total = total * (1 if factor is None else factor) + (0 if half is None else half)
        with_bias = bias is not None or half is not None
        return self.emit(x, weight, builder.constant(total) if with_bias else None)

    def _against_weight(self, factor: NDArray[np.float64]) -> NDArray[np.float64]:
        if factor.ndim == 0 or self.channel_axis is None:
            return factor
        if isinstance(self.weight, Integers):
            raise AssertionError("only constant weights have channels")
        shape = [1] * self.weight.ndim
        shape[self.channel_axis] = -1
        return factor[: self.weight.shape[self.channel_axis]].reshape(shape)

    def _double(
        self, x_digits: Digits, w_digits: Digits, factor: NDArray[np.float64] | None, half: NDArray[np.float64] | None
    ) -> str:
        builder = self.context.builder
        total = ""
        for i, left in enumerate(_dynamic_digits(self.context, self.x, x_digits)):
            for j in range(w_digits.count):
                # a power of two times integers below 2^24 is exact in float32, and cheaper there than in float64
                power = 2.0 ** (x_digits.bits * i + w_digits.bits * j)
                part = self._part(left, j, w_digits, np.asarray(power if factor is None else power * factor))
                part = builder.cast(part, "double", self.node)
                total = builder.add(Op.ADD, [total, part], self.node) if total else part
        addend = np.zeros(()) if self.bias is None else self.bias * (1.0 if factor is None else factor)
        addend = addend if half is None else addend + half
        if np.any(addend):
            total = builder.arithmetic(Op.ADD, total, self._channels(np.asarray(addend)), self.node, np.float64)
        return total

    def _part(self, left: str, digit: int, digits: Digits, factor: NDArray[np.float64]) -> str:
        """One digit of the activation times one digit of the weight, times powers of two, in float32."""
        builder = self.context.builder
        if isinstance(self.weight, Integers):
            name = self.emit(left, _dynamic_digits(self.context, self.weight, digits)[digit], None)
            return name if np.all(factor == 1) else builder.arithmetic(Op.MUL, name, self._channels(factor), self.node)
        weight = builder.stored(static_digit(self.weight, digits, digit), self._against_weight(factor))
        return self.emit(left, weight, None)


def _dynamic_digits(context: Context, value: Integers, digits: Digits) -> list[str]:
    """Tensors of the digits of an activation, lowest first."""
    builder = context.builder
    rest, result = remove_zero_point(builder, value), []
    for _ in range(digits.count - 1):
        scaled = builder.arithmetic(Op.MUL, rest, 2.0**-digits.bits, value.name)
        higher = builder.add(Op.FLOOR, [scaled], value.name)
        result.append(
            builder.add(Op.SUB, [rest, builder.arithmetic(Op.MUL, higher, 2.0**digits.bits, value.name)], value.name)
        )
        rest = higher
    return [*result, rest]
