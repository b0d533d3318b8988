"""Why a float32 sum of integer products is exact, and how to split it where it would not be.

Every partial sum of a convolution, in whatever order and with fused multiply-adds or without, is a sum of some of
the products and perhaps the bias. Its magnitude is at most ``sum(|w|) * max|x| + |bias|``. Float32 holds every
integer up to 2^24, so where that bound stays within 2^24 nothing is ever rounded (DESIGN, numeric rule 2). Scaling
the weights of a channel by a power of two scales every partial sum alike and stays exact.

Where the bound is larger, operands are written in digits, ``x = x0 + 2^b x1 + ...`` with 0 <= x0 < 2^b, each pair
of digits is multiplied on its own in float32, and the results are added in float64, which is exact up to 2^53.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from narrowcast.base.errors import UserError

__all__ = ["EXACT", "Digits", "Proof", "digit_bounds", "split", "static_digit"]

#: Largest integer up to which float32 holds every integer.
EXACT = 2**24
_EXACT_DOUBLE = 2**53
#: Digits of the activation and of the weight, cheapest first.
_CHOICES = ((1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 2), (3, 3), (3, 4), (4, 4))


@dataclass(frozen=True)
class Digits:
    """How an operand is written.

    Attributes:
        count: number of digits; 1 leaves the operand as it is.
        bits: of every digit but the highest.
    """

    count: int
    bits: int


@dataclass(frozen=True)
class Proof:
    """Why one node is exact.

    Attributes:
        node: its name.
        bound: largest magnitude that the chip's accumulator can reach, from the weights and the input's range. Beyond
            2^24 in one float32 product, the channels beyond it give one integer whatever the input is.
        products: number of float32 products; 1 when the node is not split.
        double: whether sums are finished in float64.
    """

    node: str
    bound: int
    products: int
    double: bool

    @property
    def text(self) -> str:
        """One clause for a report."""
        if self.products > 1:
            return f"|accumulator| <= {self.bound}: {self.products} float32 products added in float64"
        return f"|accumulator| <= {self.bound}: one float32 product" + (", finished in float64" if self.double else "")


def digit_bounds(magnitude: int, digits: Digits) -> list[int]:
    """Largest magnitude of each digit of an operand, lowest digit first."""
    lower = [2**digits.bits - 1] * (digits.count - 1)
    return [*lower, -(-magnitude // 2 ** (digits.bits * (digits.count - 1)))]


def static_digit(weight: NDArray[Any], digits: Digits, index: int) -> NDArray[Any]:
    """One digit of a constant operand, 0 for the lowest, as a new array: all but the highest are >= 0."""
    digit = weight >> (digits.bits * index)
    if index < digits.count - 1:
        digit &= 2**digits.bits - 1
    return digit


def split(
    node: str, total: int, magnitudes: tuple[int, int], sums: Callable[[Digits, int], list[int]]
) -> tuple[Digits, Digits]:
    """The cheapest way to write the operands so that every product is exact in float32.

    Args:
        node: for the message.
        total: bound of the finished accumulator.
        magnitudes: largest magnitude of the activation and of the weight.
        sums: bounds of the products' sums for each digit of the weight, given its digits and the largest
            magnitude of one digit of the activation.

    Raises:
        UserError: the accumulator does not even fit in float64.
    """
    if total <= _EXACT_DOUBLE:
        for x_count, w_count in _CHOICES:
            x_digits, w_digits = _digits(magnitudes[0], x_count), _digits(magnitudes[1], w_count)
            bounds = digit_bounds(magnitudes[0], x_digits)
            if all(bound <= EXACT for x_bound in bounds for bound in sums(w_digits, x_bound)):
                return x_digits, w_digits
    raise UserError(f"{node}: its accumulator can reach {total}, more than can be summed exactly", "use int8 there")


def _digits(magnitude: int, count: int) -> Digits:
    bits = max(int(magnitude), 1).bit_length() + 1  # with the sign
    return Digits(count, -(-bits // count) if count > 1 else 0)
