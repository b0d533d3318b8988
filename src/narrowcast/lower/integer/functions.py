"""Unary functions of real numbers in float64, with the attributes of a node: the truth behind every table."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.ops.net import constant_at

__all__ = ["Function", "unary_function"]

Real = NDArray[np.float64]
Function = Callable[[Real], Real]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: Real) -> Real:
    positive = 1 / (1 + np.exp(-np.abs(x)))
    return np.asarray(np.where(x >= 0, positive, np.exp(-np.abs(x)) * positive))


def _softplus(x: Real) -> Real:
    return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))


_PLAIN: dict[str, Function] = {
    "Silu": lambda x: x * _sigmoid(x),
    "Sigmoid": _sigmoid,
    "Tanh": np.tanh,
    "Erf": _erf,
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "Softplus": _softplus,
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Exp": np.exp,
    "Log": np.log,
    "Sqrt": np.sqrt,
    "Reciprocal": lambda x: 1 / x,
    "Neg": np.negative,
    "Abs": np.abs,
    "Sign": np.sign,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Round": np.rint,
    "Sin": np.sin,
    "Cos": np.cos,
    "Tan": np.tan,
    "Sinh": np.sinh,
    "Cosh": np.cosh,
    "Asin": np.arcsin,
    "Acos": np.arccos,
    "Atan": np.arctan,
    "Asinh": np.arcsinh,
    "Acosh": np.arccosh,
    "Atanh": np.arctanh,
    "Relu": lambda x: np.maximum(x, 0),
}


def _gelu(node: ir.Node) -> Function:
    if node.attributes.get_string("approximate", "none") == "tanh":
        return lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def _hard_sigmoid(node: ir.Node) -> Function:
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    return lambda x: np.clip(alpha * x + beta, 0, 1)


def _leaky(slope: Any) -> Function:
    return lambda x: np.where(x >= 0, x, x * slope)


def _elu(node: ir.Node) -> Function:
    alpha = node.attributes.get_float("alpha", 1.0)
    return lambda x: np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _selu(node: ir.Node) -> Function:
    alpha = node.attributes.get_float("alpha", 1.6732632)
    gamma = node.attributes.get_float("gamma", 1.0507010)
    return lambda x: gamma * np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0)))


_WITH_ATTRIBUTES: dict[str, Callable[[ir.Node], Function]] = {
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "LeakyRelu": lambda node: _leaky(node.attributes.get_float("alpha", 0.01)),
    "Elu": _elu,
    "Selu": _selu,
}


def unary_function(node: ir.Node) -> Function | None:
    """The function of a node of one computed input, or ``None`` when the node is none.

    Args:
        node: its constant operands (slopes, exponents) become part of the function: scalars, or one number a
            channel, in which case the function takes an array with the channels first and the values last.

    Returns:
        A function of float64 arrays. It may give infinite or undefined values outside its domain.
    """
    if node.op_type in _PLAIN:
        return _PLAIN[node.op_type]
    if node.op_type in _WITH_ATTRIBUTES:
        return _WITH_ATTRIBUTES[node.op_type](node)
    constant = constant_at(node, 1)
    if constant is None:
        return None
    if node.op_type == "PRelu":
        slope = np.asarray(constant, np.float64)
        return _leaky(float(slope.reshape(-1)[0]) if slope.size == 1 else slope.reshape(-1, 1))
    if node.op_type == "Pow" and constant.size == 1:
        exponent = float(constant.reshape(-1)[0])
        return lambda x: np.power(x, exponent)
    return None
