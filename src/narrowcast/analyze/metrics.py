"""How far a quantized tensor is from the float one, in the measures that people know."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.graph.run import as_reals

__all__ = ["Noise", "NoiseSums"]

#: What ESP-PPQ adds to the signal power, so that an all-zero tensor does not divide by zero.
_LEAST_POWER = 1e-7


@dataclass(frozen=True)
class Noise:
    """One tensor over all images.

    Attributes:
        ratio: noise-to-signal power ratio, mean over images of sum((y - x)^2) / (sum(x^2) + 1e-7), as ESP-PPQ's
            ``snr`` (``ppq/quantization/measure/norm.py``) defines it; 0 is equal.
        sqnr_db: 10 log10(sum x^2 / sum (y - x)^2) over all images; infinite when equal.
        cosine: cosine similarity over all images; 1 is equal.
    """

    ratio: float
    sqnr_db: float
    cosine: float

    def to_dict(self) -> dict[str, float | None]:
        """JSON-ready; an infinite ratio is ``null``."""
        return {
            "noise_ratio": self.ratio,
            "sqnr_db": self.sqnr_db if math.isfinite(self.sqnr_db) else None,
            "cosine": self.cosine,
        }


class NoiseSums:
    """Running sums for one tensor; images may arrive in any order."""

    def __init__(self) -> None:
        self.signal = self.noise = self.other = self.product = self.ratios = 0.0
        self.images = 0

    def add(self, expected: NDArray[Any], actual: NDArray[Any]) -> None:
        """Take in the tensor of one image, both of the same shape."""
        x, y = as_reals(expected, actual)
        difference = y - x
        signal, noise = _power(x), _power(difference)
        self.signal += signal
        self.noise += noise
        self.other += _power(y)
        self.product += float(np.dot(x, y))
        self.ratios += noise / (signal + _LEAST_POWER)
        self.images += 1

    def same(self, expected: NDArray[Any]) -> None:
        """Take in a tensor that is equal to the float one."""
        power = _power(as_reals(expected, expected)[0])
        self.signal += power
        self.other += power
        self.product += power
        self.images += 1

    def result(self) -> Noise:
        """The measures over everything taken in."""
        norm = math.sqrt(self.signal * self.other)
        cosine = min(1.0, self.product / norm) if norm else float(self.signal == self.other)
        quotient = self.signal / self.noise if self.noise else math.inf
        sqnr = 10 * math.log10(quotient) if quotient > 0 else -math.inf
        return Noise(self.ratios / max(1, self.images), sqnr, cosine)


def _power(x: NDArray[np.float32]) -> float:
    return float(np.dot(x, x))
