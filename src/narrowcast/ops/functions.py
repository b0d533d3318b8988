"""Unary operators: functions of real numbers in float64, the truth behind every table, and how exporters write them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.ops.facts import Function, Kind, Operator, facts, register
from narrowcast.ops.net import constant_at, dims, input_at, scalar_at

__all__ = ["clip_bounds", "unary", "unary_function", "unary_name"]

Real = NDArray[np.float64]

#: Default alpha and gamma of Selu.
_SELU = 1.6732632, 1.0507010
_erf = np.vectorize(math.erf, otypes=[np.float64])


def unary_function(node: ir.Node) -> Function | None:
    """The function of a node of one computed input, or ``None`` when the node is none.

    Args:
        node: its constant operands (slopes, exponents) become part of the function: scalars, or one number a
            channel, in which case the function takes an array with the channels first and the values last.
    """
    function = facts(node).function
    return None if function is None else function(node)


def unary_name(node: ir.Node) -> str | None:
    """Name of the bent function that a node computes, such as ``"Silu"`` or ``"Clip 0.0 6.0"``.

    Returns:
        ``None`` where the node computes something else, or its bounds are not constant.
    """
    entry = facts(node)
    if not entry.bends:
        return None
    bounds = _bounds(node) if entry.is_clip and entry.constants else ()
    return None if bounds is None else " ".join([entry.name, *map(str, bounds)])


def unary(name: str) -> Function:
    """The function of a name from :func:`unary_name`."""
    kind, *bounds = name.split()
    if bounds:
        low, high = map(float, bounds)
        return lambda x: np.asarray(np.clip(x, low, high))
    function = facts(kind).function
    found = None if function is None else function(None)
    if found is None:
        raise KeyError(name)
    return found


def clip_bounds(node: ir.Node) -> tuple[float, float]:
    """Real bounds of a node of kind ``CLIP``.

    Raises:
        UserError: bounds that are computed.
    """
    bounds = _bounds(node)
    if bounds is None:
        raise UserError(f"{node.name}: the bounds of {node.op_type} are computed", "make them constant")
    return bounds


def _bounds(node: ir.Node) -> tuple[float, float] | None:
    if not facts(node).constants:
        return 0.0, math.inf
    bounds = [-math.inf, math.inf]
    for index in (1, 2):
        if input_at(node, index) is not None:
            array = constant_at(node, index)
            if array is None or array.size != 1:
                return None
            bounds[index - 1] = float(array.reshape(-1)[0])
    return bounds[0], bounds[1]


def _clip(node: ir.Node | None) -> Function | None:
    bounds = None if node is None else _bounds(node)
    return None if bounds is None else lambda x: np.clip(x, *bounds)


def _number(node: ir.Node | None, name: str, default: float) -> float:
    default = float(np.float32(default))  # as ONNX stores it
    return default if node is None else float(node.attributes.get_float(name, default))


def _sigmoid(x: Real) -> Real:
    positive = 1 / (1 + np.exp(-np.abs(x)))
    return np.asarray(np.where(x >= 0, positive, np.exp(-np.abs(x)) * positive))


def _softplus(x: Real) -> Real:
    return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))


def _gelu(node: ir.Node | None) -> Function:
    if node is not None and node.attributes.get_string("approximate", "none") == "tanh":
        return lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def _hard_sigmoid(node: ir.Node | None) -> Function:
    alpha, beta = _number(node, "alpha", 0.2), _number(node, "beta", 0.5)
    return lambda x: np.clip(alpha * x + beta, 0, 1)


def _leaky(slope: Any) -> Function:
    return lambda x: np.where(x >= 0, x, x * slope)


def _slopes(node: ir.Node | None) -> Function | None:
    slope = None if node is None else constant_at(node, 1)
    if slope is None:
        return None
    return _leaky(float(slope.reshape(-1)[0]) if slope.size == 1 else slope.astype(np.float64).reshape(-1, 1))


def _elu(node: ir.Node | None, alpha: float = 1.0, gamma: float = 1.0) -> Function:
    alpha, gamma = _number(node, "alpha", alpha), _number(node, "gamma", gamma)
    return lambda x: gamma * np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _torch_elu(torch: Any, node: ir.Node, x: Any, alpha: float, gamma: float) -> Any:
    alpha, gamma = _number(node, "alpha", alpha), _number(node, "gamma", gamma)
    return gamma * torch.where(x >= 0, x, alpha * torch.expm1(x.clamp(max=0)))


def _power(node: ir.Node | None) -> Function | None:
    constant = None if node is None else constant_at(node, 1)
    if constant is None or constant.size != 1:
        return None
    exponent = float(constant.reshape(-1)[0])
    return lambda x: np.power(x, exponent)


def _torch_clip(torch: Any, node: ir.Node, x: list[Any]) -> Any:
    def bound(index: int, name: str) -> float | None:
        return float(node.attributes.get_float(name)) if name in node.attributes else scalar_at(node, index)

    return x[0].clamp(bound(1, "min"), bound(2, "max"))


def _several_exponents(node: ir.Node) -> tuple[str, str]:
    size = math.prod(dims(node.inputs[1]))
    return ("", "") if size == 1 else (f"it has {size} exponents", "use one exponent")


def _several_slopes(node: ir.Node) -> tuple[str, str]:
    """One slope, or one a channel."""
    whole, slopes = dims(node.inputs[0]), dims(node.inputs[1])
    full = [1] * (len(whole) - len(slopes)) + list(slopes)
    if math.prod(slopes) == 1 or (len(whole) > 1 and full == [1, whole[1], *[1] * (len(whole) - 2)]):
        return "", ""
    return f"it has {math.prod(slopes)} slopes", "use one slope, or one a channel"


def _plain(name: str, function: Function, **more: Any) -> None:
    """A function without attributes, of the same name in torch if nothing else is said."""
    more.setdefault("torch", lambda torch, node, x: getattr(torch, name.lower())(x[0]))
    register(Operator(name, Kind.FUNCTION, keeps_axes=True, function=lambda node: function, **more))


def _varied(name: str, function: Callable[[ir.Node | None], Function | None], **more: Any) -> None:
    """A function with attributes or constant operands."""
    register(Operator(name, Kind.FUNCTION, keeps_axes=True, function=function, **more))


_HARD_GATE = "gate = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x)"
_SIX = (
    "three = Constant <value_float = 3.0> () six = Constant <value_float = 6.0> ()"
    "zero = Constant <value_float = 0.0> () moved = Add(x, three) clipped = Clip(moved, zero, six)"
)
_GELU = (
    "root = Constant <value_float = 1.41421356> () one = Constant <value_float = 1.0> ()"
    "half = Constant <value_float = 0.5> () scaled = Div(x, root) erf = Erf(scaled) gate = Add(erf, one)"
)


def _all() -> None:
    _plain("Silu", lambda x: x * _sigmoid(x), bends=True, since=None, forms=("gate = Sigmoid(x) y = Mul(x, gate)",),
           torch=lambda t, node, x: t.nn.functional.silu(x[0]))  # fmt: skip
    _plain("Sigmoid", _sigmoid, bends=True, bounds=(0, 1))
    _plain("Tanh", np.tanh, bends=True, bounds=(-1, 1))
    _plain("HardSwish", lambda x: x * np.clip(x / 6 + 0.5, 0, 1), bends=True, since=14, forms=(
        f"{_HARD_GATE} y = Mul(x, gate)", f"{_SIX} product = Mul(x, clipped) y = Div(product, six)",
    ), torch=lambda t, node, x: t.nn.functional.hardswish(x[0]))  # fmt: skip
    _varied("Gelu", _gelu, bends=True, since=20, forms=(
        f"{_GELU} product = Mul(x, gate) y = Mul(product, half)",
        f"{_GELU} product = Mul(x, half) y = Mul(product, gate)",
    ), torch=lambda t, node, x: t.nn.functional.gelu(
        x[0], approximate=node.attributes.get_string("approximate", "none") or "none"))  # fmt: skip
    _varied("HardSigmoid", _hard_sigmoid, bounds=(0, 1), forms=(f"{_SIX} y = Div(clipped, six)",),
            attributes=(("alpha", 1 / 6), ("beta", 0.5)), torch=lambda t, node, x: (
        _number(node, "alpha", 0.2) * x[0] + _number(node, "beta", 0.5)).clamp(0, 1))  # fmt: skip
    _varied("LeakyRelu", lambda node: _leaky(_number(node, "alpha", 0.01)), homogeneous=True, torch=lambda t, node, x: (
        t.nn.functional.leaky_relu(x[0], _number(node, "alpha", 0.01))))  # fmt: skip
    _varied("Elu", _elu, torch=lambda t, node, x: _torch_elu(t, node, x[0], 1.0, 1.0))
    _varied("Selu", lambda node: _elu(node, *_SELU), torch=lambda t, node, x: _torch_elu(t, node, x[0], *_SELU))
    _varied("PRelu", _slopes, constants=(1,), refusal=_several_slopes,
            torch=lambda t, node, x: t.where(x[0] >= 0, x[0], x[0] * x[1]))  # fmt: skip
    _varied("Pow", _power, constants=(1,), refusal=_several_exponents, torch=lambda t, node, x: x[0] ** x[1])
    register(Operator("Relu", Kind.CLIP, keeps_axes=True, homogeneous=True, bends=True, torch=lambda t, node, x: (
        t.nn.functional.relu(x[0])), function=lambda node: lambda x: np.maximum(x, 0)))  # fmt: skip
    register(Operator("Clip", Kind.CLIP, (1, 2, 3), keeps_axes=True, bends=True, function=_clip, torch=_torch_clip))
    _plain("Exp", np.exp)
    _plain("Sqrt", np.sqrt)
    _plain("Reciprocal", lambda x: 1 / x)
    _plain("Neg", np.negative)
    _plain("Erf", _erf, bounds=(-1, 1))
    _plain("Softplus", _softplus, torch=lambda t, node, x: t.nn.functional.softplus(x[0]))
    _plain("Softsign", lambda x: x / (1 + np.abs(x)), bounds=(-1, 1), torch=lambda t, node, x: x[0] / (1 + x[0].abs()))
    for name, function in (
        ("Log", np.log), ("Abs", np.abs), ("Sign", np.sign), ("Floor", np.floor), ("Ceil", np.ceil), ("Round", np.rint),
        ("Sin", np.sin), ("Cos", np.cos), ("Tan", np.tan), ("Sinh", np.sinh), ("Cosh", np.cosh), ("Asin", np.arcsin),
        ("Acos", np.arccos), ("Atan", np.arctan), ("Asinh", np.arcsinh), ("Acosh", np.arccosh), ("Atanh", np.arctanh),
    ):  # fmt: skip
        _plain(name, function)


_all()
