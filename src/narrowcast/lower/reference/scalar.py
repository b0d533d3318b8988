"""Unary functions by ONNX's own reference implementation in float64, and the tables that chips make of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

from narrowcast.chips.schema import Target
from narrowcast.lower.reference.moving import evaluate_wide
from narrowcast.ops.net import constant_at
from narrowcast.plan.types import Encoding

__all__ = ["tabulated"]

Array = NDArray[Any]
_erf = np.vectorize(math.erf, otypes=[np.float64])


# ONNX computes these in float32, or with constants of float32, or does not know them


class Erf(OpRun):  # type: ignore[misc]
    """The error function."""

    def _run(self, x: Array) -> tuple[Array]:
        return (_erf(x),)


class Gelu(OpRun):  # type: ignore[misc]
    """``x * Phi(x)``, or its approximation by tanh."""

    def _run(self, x: Array, approximate: str | None = None) -> tuple[Array]:
        if approximate == "tanh":
            return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
        return (0.5 * x * (1 + _erf(x / math.sqrt(2))),)


class HardSwish(OpRun):  # type: ignore[misc]
    """``x * clip(x / 6 + 1/2, 0, 1)``."""

    def _run(self, x: Array) -> tuple[Array]:
        return (x * np.minimum(np.maximum(x / 6 + 0.5, 0.0), 1.0),)


class Silu(OpRun):  # type: ignore[misc]
    """``x * sigmoid(x)``."""

    def _run(self, x: Array) -> tuple[Array]:
        return (x / (1 + np.exp(-x)),)


_OWN: list[type[OpRun]] = [Erf, Gelu, HardSwish, Silu]


def _rounded(y: Array, wanted: Encoding, rounding: str) -> Array:
    """Real numbers (float64) as integers of an encoding; what is undefined is real 0."""
    steps = np.nan_to_num(y / float(wanted.scales), nan=0.0, posinf=1e12, neginf=-1e12)
    whole = np.rint(steps) if rounding == "half-even" else np.floor(steps + 0.5)
    integers: Array = np.clip(whole + wanted.zero_point, wanted.qmin, wanted.qmax).astype(np.int64)
    return integers


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
    parameter = constant_at(node, 1)
    found, inverse = points, None
    if parameter is None or parameter.size == 1:
        found, inverse = np.unique(points, return_inverse=True)
    operands = [(found - source.zero_point).astype(np.float64) * float(source.scales)]
    if parameter is not None:
        operands.append(np.asarray(parameter, np.float64).reshape(() if inverse is not None else parameter.shape))
    entries = _rounded(evaluate_wide(node, operands, _OWN)[0], wanted, target.requantize.rounding)
    return entries if inverse is None else entries[inverse].reshape(x.shape)
