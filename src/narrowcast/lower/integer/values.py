"""What a tensor is while the integer graph is being built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from narrowcast.plan.types import Encoding

__all__ = ["Integers", "Pending", "Reals", "Value"]


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
