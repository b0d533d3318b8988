"""Which axis of a tensor in a file is which axis of the model's tensor.

An order says for every axis of the file's tensor which axis of the model's tensor it holds: ``(0, 2, 3, 1)`` is a
model's NCHW stored as NHWC. Convolutions, pools and Resize of ESP-DL work on channels-last tensors only; operators
that treat all elements alike take any order; those with an axis take any order once the axis is renamed; the rest
sees shapes, and wants the model's own order.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "AXIS",
    "BINARY",
    "CHANNELS_LAST",
    "CONVERSIONS",
    "UNARY_TABLES",
    "Order",
    "channels_last",
    "identity",
    "inverse",
    "moves_nothing",
    "reordered",
    "then",
]

Order = tuple[int, ...]

#: Operators that read and write channels-last tensors.
CHANNELS_LAST = frozenset({
    "Conv", "ConvTranspose", "AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool", "Resize",
    "DepthToSpace", "SpaceToDepth", "InsertZeros",
})  # fmt: skip
#: Operators of one tensor that treat all elements alike, computed by table where they are quantized.
UNARY_TABLES = frozenset({
    "Silu", "Swish", "Relu", "PRelu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Elu", "Gelu", "LeakyRelu",
    "Clip", "Exp", "Log", "Sqrt", "Neg", "Erf", "Softplus", "Abs", "Floor", "Ceil", "Round", "Sin", "Cos", "Tan",
    "Reciprocal", "Softsign", "Selu", "LUT",
})  # fmt: skip
#: Changes of the number format.
CONVERSIONS = frozenset({"RequantizeLinear", "QuantizeLinear", "DequantizeLinear"})
#: Operators of two tensors, element by element.
BINARY = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"})
#: Operators with the attribute ``axis``.
AXIS = frozenset({"Concat", "Split", "Softmax", "LogSoftmax"})


def identity(rank: int) -> Order:
    """The model's own order."""
    return tuple(range(rank))


def channels_last(rank: int) -> Order:
    """N, then the window's axes, then the channels; the model's own order below three axes."""
    return (0, *range(2, rank), 1) if rank > 2 else identity(rank)


def inverse(order: Order) -> Order:
    """The permutation that undoes another."""
    return tuple(order.index(axis) for axis in range(len(order)))


def then(first: Order, second: Order) -> Order:
    """The permutation that a transposition by ``first`` and then one by ``second`` amount to."""
    return tuple(first[axis] for axis in second)


def reordered(shape: Sequence[int], order: Order) -> tuple[int, ...]:
    """A shape after transposition by an order."""
    return tuple(int(shape[axis]) for axis in order)


def moves_nothing(shape: Sequence[int], order: Order) -> bool:
    """Whether transposing a tensor of that shape leaves its elements where they are in memory: only axes of length
    one change places."""
    kept = [axis for axis in order if shape[axis] != 1]
    return kept == sorted(kept)
