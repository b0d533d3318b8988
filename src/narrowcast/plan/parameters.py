"""Encodings of weights, biases and other constants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.graph.units import constant_of
from narrowcast.plan.types import DTYPES, Encoding
from narrowcast.targets.schema import Target

__all__ = ["bias_encoding", "constant_encoding", "output_channels_axis", "weight_encoding"]

_SMALLEST = 2.0**-30
#: Weights whose scale is searched at once, at most, where rows can be taken apart.
_BLOCK = 1 << 20


def output_channels_axis(node: ir.Node, target: Target) -> int | None:
    """Axis of the weight along which the target scales per output channel, ``None`` for per tensor."""
    axis = target.weight.per_channel.get(node.op_type)
    if axis is None:
        return None
    if node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) != 1:
        return None
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return axis


def weight_encoding(node: ir.Node, target: Target, dtype: str, weight: NDArray[Any] | None = None) -> Encoding:
    """Symmetric encoding of a node's second input with the least squared error.

    Args:
        node: Conv, ConvTranspose, Gemm or MatMul with a constant weight.
        target: granularity and scale rule.
        dtype: ``"int8"`` or ``"int16"``.
        weight: instead of the graph's own.
    """
    weight = constant_of(node.inputs[1]) if weight is None else weight
    if weight is None:
        raise ValueError(f"{node.name} has no constant weight")
    axis = output_channels_axis(node, target)
    rows = weight.reshape(1, -1) if axis is None else np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    qmin, qmax = DTYPES[dtype]
    if target.weight.restricted_range:
        qmin = -qmax
    count = max(1, _BLOCK // rows.shape[1])  # rows have nothing to do with each other, and float64 takes memory
    power_of_two = target.weight.scale == "power-of-two"
    scales = np.concatenate(
        [
            _least_error_scales(rows[start : start + count].astype(np.float64), qmin, qmax, power_of_two)
            for start in range(0, len(rows), count)
        ]
    )
    if axis is None:
        return Encoding(dtype, float(scales[0]))
    return Encoding(dtype, tuple(float(scale) for scale in scales), 0, axis)


def _least_error_scales(rows: NDArray[np.float64], qmin: int, qmax: int, power_of_two: bool) -> NDArray[np.float64]:
    """One scale a row: among the candidates below the full range, the one with the least squared error.

    Clipping one outlier by a few steps can pay for a finer grid everywhere else (Banner et al., ACIQ, 2018).
    """
    full = np.maximum(np.maximum(rows.max(axis=1) / qmax, rows.min(axis=1) / qmin), _SMALLEST)
    if power_of_two:
        exponent = np.ceil(np.log2(full) - 1e-9)
        candidates = [2.0 ** (exponent - lower) for lower in range(3)]
    else:
        candidates = [full * share for share in np.linspace(1.0, 0.7, 13)]
    best, best_error = candidates[0], np.full(len(rows), math.inf)
    for scales in candidates:
        values = rows / scales[:, None]
        np.clip(np.rint(values, out=values), qmin, qmax, out=values)
        values *= scales[:, None]
        values -= rows
        error = np.square(values, out=values).sum(axis=1)
        better = error < best_error
        best, best_error = np.where(better, scales, best), np.where(better, error, best_error)
    return np.asarray(best, np.float64)


def bias_encoding(input_encoding: Encoding, weight: Encoding) -> Encoding:
    """A bias is added to the accumulator, so its scale is the product of input and weight scale."""
    product = input_encoding.scales * weight.scales
    if weight.axis is None:
        return Encoding("int32", float(product))
    return Encoding("int32", tuple(float(scale) for scale in product), 0, 0)


def constant_encoding(value: NDArray[Any], target: Target, dtype: str) -> Encoding:
    """Symmetric per-tensor encoding of a constant operand (of Mul, Add, ...)."""
    qmin, qmax = DTYPES[dtype]
    if target.weight.restricted_range:
        qmin = -qmax
    rows = np.asarray(value, np.float64).reshape(1, -1)
    return Encoding(dtype, float(_least_error_scales(rows, qmin, qmax, target.activation.scale == "power-of-two")[0]))
