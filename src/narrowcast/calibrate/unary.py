"""Unary functions of the field in float64, for errors behind them and for tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["UNARY"]

Array = NDArray[Any]


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def _gelu(x: Array) -> Array:
    # Abramowitz and Stegun 7.1.26: error function to 1.5e-7, enough to compare encodings
    t = 1 / (1 + 0.3275911 * np.abs(x) / np.sqrt(2))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.sign(x) * (1 - series * np.exp(-(x**2) / 2))
    return np.asarray(0.5 * x * (1 + erf))


#: Op type to function, for operators without attributes that matter here.
UNARY: dict[str, Callable[[Array], Array]] = {
    "Silu": lambda x: x * _sigmoid(x),
    "Sigmoid": _sigmoid,
    "Relu": lambda x: np.maximum(x, 0),
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "Gelu": _gelu,
    "Tanh": np.tanh,
}
