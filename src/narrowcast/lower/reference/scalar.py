"""Unary functions one number at a time, with Python's math module, and their tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.chips.schema import Target
from narrowcast.ops.net import constant_of
from narrowcast.plan.types import Encoding

__all__ = ["is_scalar_function", "scalar_function", "tabulated"]

Array = NDArray[Any]
Scalar = Callable[[float], float]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def _elu(x: float, alpha: float) -> float:
    return x if x >= 0 else alpha * math.expm1(x)


def _softplus(x: float) -> float:
    return math.log1p(math.exp(x)) if x < 30 else x + math.exp(-x)


def _attribute(name: str, default: float) -> Callable[[ir.Node], float]:
    return lambda node: node.attributes.get_float(name, default)


_MATH: dict[str, Scalar] = {
    "Silu": lambda x: x * _sigmoid(x),
    "Sigmoid": _sigmoid,
    "Tanh": math.tanh,
    "Erf": math.erf,
    "HardSwish": lambda x: x * min(max(x / 6 + 0.5, 0.0), 1.0),
    "Softplus": _softplus,
    "Softsign": lambda x: x / (1 + abs(x)),
    "Exp": math.exp,
    "Log": lambda x: math.log(x) if x > 0 else (-math.inf if x == 0 else math.nan),
    "Sqrt": math.sqrt,
    "Reciprocal": lambda x: 1 / x if x else math.inf,
    "Neg": lambda x: -x,
    "Abs": abs,
    "Sign": lambda x: float((x > 0) - (x < 0)),
    "Floor": lambda x: float(math.floor(x)),
    "Ceil": lambda x: float(math.ceil(x)),
    "Round": lambda x: float(round(x)),
    "Sin": math.sin,
    "Cos": math.cos,
    "Tan": math.tan,
    "Sinh": math.sinh,
    "Cosh": math.cosh,
    "Asin": math.asin,
    "Acos": math.acos,
    "Atan": math.atan,
    "Asinh": math.asinh,
    "Acosh": math.acosh,
    "Atanh": math.atanh,
}


def is_scalar_function(node: ir.Node) -> bool:
    """Whether a node is a function of each number on its own."""
    return node.op_type in _MATH or node.op_type in (
        "Gelu", "HardSigmoid", "LeakyRelu", "Elu", "Selu", "PRelu", "Pow",
    )  # fmt: skip


def scalar_function(node: ir.Node, channel: int = 0) -> Scalar:
    """The function of a node, for one channel where slopes differ."""
    number = node.attributes.get_float
    if node.op_type == "Gelu":
        if node.attributes.get_string("approximate", "none") == "tanh":
            return lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2)))
    if node.op_type == "HardSigmoid":
        alpha, beta = number("alpha", 0.2), number("beta", 0.5)
        return lambda x: min(max(alpha * x + beta, 0.0), 1.0)
    if node.op_type == "LeakyRelu":
        slope = number("alpha", 0.01)
        return lambda x: x if x >= 0 else x * slope
    if node.op_type == "Elu":
        elu_alpha = number("alpha", 1.0)
        return lambda x: _elu(x, elu_alpha)
    if node.op_type == "Selu":
        selu_alpha, gamma = number("alpha", 1.6732632), number("gamma", 1.0507010)
        return lambda x: gamma * _elu(x, selu_alpha)
    if node.op_type in ("PRelu", "Pow"):
        constant = np.asarray(constant_of(node.inputs[1]), np.float64).reshape(-1)
        parameter = float(constant[channel % constant.size])
        if node.op_type == "PRelu":
            return lambda x: x if x >= 0 else x * parameter
        return lambda x: float(np.power(np.float64(x), parameter))
    return _MATH[node.op_type]


def _entry(function: Scalar, x: float, wanted: Encoding, rounding: str) -> int:
    try:
        y = function(x) / float(wanted.scales)
    except ValueError:  # outside of the domain
        y = math.nan
    except OverflowError:
        y = math.inf
    if math.isnan(y):
        return wanted.zero_point
    y = min(max(y, -1e12), 1e12)
    rounded = round(y) if rounding == "half-even" else math.floor(y + 0.5)
    return min(max(rounded + wanted.zero_point, wanted.qmin), wanted.qmax)


def tabulated(node: ir.Node, x: Array, source: Encoding, wanted: Encoding, target: Target) -> Array:
    """A unary node on integers, through 8-bit tables, 16-bit tables with steps, or entry by entry.

    Args:
        node: the function.
        x: int64 integers in ``source``.
        source: encoding of the input.
        wanted: encoding of the output.
        target: its rounding and its 16-bit table.
    """
    rule = target.table16 if (source.dtype, wanted.dtype) == ("int16", "int16") else None
    points = x
    if rule is not None:
        exact = (x + 32768) / rule.step
        index = np.rint(exact) if rule.rounding == "half-even" else np.floor(exact + 0.5)
        points = index.astype(np.int64) * rule.step - 32768
    constant = constant_of(node.inputs[1]) if node.op_type == "PRelu" else None
    channels = 1 if constant is None else constant.size
    result = np.empty(x.shape, np.int64)
    for channel in range(channels):
        part = (slice(None), channel) if channels > 1 else (...,)
        function = scalar_function(node, channel)
        found, inverse = np.unique(points[part], return_inverse=True)
        reals = ((int(q) - source.zero_point) * float(source.scales) for q in found)
        entries = np.array([_entry(function, real, wanted, target.requantize.rounding) for real in reals], np.int64)
        result[part] = entries[inverse].reshape(points[part].shape)
    return result
