"""Unary functions of the field in float64, for errors behind them and for tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.ops.net import constant_of, input_at

__all__ = ["UNARY", "unary", "unary_name"]

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


def unary_name(node: ir.Node) -> str | None:
    """Name of the function of one value that a node computes, such as ``"Silu"`` or ``"Clip 0.0 6.0"``.

    Returns:
        ``None`` where the node computes something else, or its bounds are not constant.
    """
    if node.op_type != "Clip":
        return node.op_type if node.op_type in UNARY else None
    bounds = []
    for index, none in ((1, -np.inf), (2, np.inf)):
        value = input_at(node, index)
        array = constant_of(value)
        if value is not None and (array is None or array.size != 1):
            return None
        bounds.append(none if array is None else float(array.reshape(-1)[0]))
    return f"Clip {bounds[0]} {bounds[1]}"


def unary(name: str) -> Callable[[Array], Array]:
    """The function of a name from :func:`unary_name`."""
    kind, *bounds = name.split()
    if kind != "Clip":
        return UNARY[kind]
    low, high = map(float, bounds)
    return lambda x: np.asarray(np.clip(x, low, high))
