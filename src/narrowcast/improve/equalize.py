"""Cross-layer equalization: give the channels between two convolutions similar ranges, exactly.

After Nagel et al., Data-free quantization through weight equalization and bias correction (2019). A factor a channel is
divided out of the rows of the first weight and its bias, and multiplied into the columns of the second. Where nothing
or a Relu lies between, the float network computes the same; behind other functions it would not, so these stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.ops.net import constant_of, named

__all__ = ["Pair", "equalize", "equalizing_factors", "find_pairs"]

#: What may lie between: operators with f(a x) = a f(x) for every a > 0, channel by channel.
PASSING = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity")
#: Largest factor either way, so that a dead channel does not blow up.
LIMIT = 32.0
#: Passes over all pairs; a convolution is in two pairs, so factors have to settle.
PASSES = 10


@dataclass(frozen=True)
class Pair:
    """Two convolutions between whose channels factors can be moved.

    Attributes:
        first, second: names of the nodes.
        between: names of the tensors that change.
    """

    first: str
    second: str
    between: tuple[str, ...]


def find_pairs(graph: ir.Graph) -> list[Pair]:
    """Convolutions that read, alone and through functions that let factors pass, what another one writes."""
    pairs = []
    for node in graph:
        if not _is_convolution(node):
            continue
        between, value = [], node.outputs[0]
        user = _only_user(value)
        while user is not None and user.op_type in PASSING and user.inputs[0] is value:
            between.append(str(value.name))
            value = user.outputs[0]
            user = _only_user(value)
        between.append(str(value.name))
        if user is not None and _is_convolution(user) and user.inputs[0] is value:
            pairs.append(Pair(str(node.name), str(user.name), tuple(between)))
    return pairs


def _only_user(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _is_convolution(node: ir.Node) -> bool:
    """A Conv with constants of its own, in one group or one group a channel."""
    if node.op_type != "Conv":
        return False
    constants = [value for value in node.inputs[1:] if value is not None]
    if any(value.const_value is None or len(list(value.uses())) != 1 for value in constants):
        return False
    weight = constant_of(node.inputs[1])
    group = node.attributes.get_int("group", 1)
    return weight is not None and (group == 1 or (weight.shape[1] == 1 and group == weight.shape[0]))


def _rows(weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """(C,) largest magnitude of what makes each output channel."""
    return np.asarray(np.abs(weight).reshape(len(weight), -1).max(axis=1))


def _columns(weight: NDArray[np.float64], depthwise: bool) -> NDArray[np.float64]:
    """(C,) largest magnitude of what reads each input channel."""
    return _rows(weight) if depthwise else np.asarray(np.abs(weight).max(axis=(0, *range(2, weight.ndim))))


def equalizing_factors(first: NDArray[np.float64], second: NDArray[np.float64], depthwise: bool) -> NDArray[np.float64]:
    """(C,) factors sqrt(r1 / r2) that give both weights the same range in every channel, within :data:`LIMIT`.

    Args:
        first: (C, ...) weight that writes the channels.
        second: weight that reads them, (out, C, ...) or depthwise (C, 1, ...).
        depthwise: which.
    """
    rows, columns = _rows(first), _columns(second, depthwise)
    alive = (rows > 0) & (columns > 0)
    factors = np.sqrt(np.divide(rows, columns, out=np.ones_like(rows), where=alive))
    middle = np.exp(np.log(factors[alive]).mean()) if alive.any() else 1.0
    return np.asarray(np.where(alive, np.clip(factors / middle, 1 / LIMIT, LIMIT), 1.0))


def equalize(model: ir.Model) -> tuple[ir.Model, tuple[str, ...]]:
    """Equalize every pair of a graph.

    Args:
        model: prepared graph; not changed.

    Returns:
        A copy that computes the same outputs in float, and the tensors whose values differ; the same model and none
        where there is no pair.
    """
    pairs = find_pairs(model.graph)
    if not pairs:
        return model, ()
    copy = model.clone()
    nodes = named(copy.graph)
    for _ in range(PASSES):
        for pair in pairs:
            _move(nodes[pair.first], nodes[pair.second])
    return copy, tuple(dict.fromkeys(name for pair in pairs for name in pair.between))


def _move(first: ir.Node, second: ir.Node) -> None:
    one, other = constant_of(first.inputs[1]), constant_of(second.inputs[1])
    assert one is not None and other is not None
    depthwise = second.attributes.get_int("group", 1) != 1
    factors = equalizing_factors(one.astype(np.float64), other.astype(np.float64), depthwise)
    for value in first.inputs[1:3]:
        array = constant_of(value)
        if value is not None and array is not None:
            _set(value, array / factors.reshape(-1, *[1] * (array.ndim - 1)))
    shape = (-1, *[1] * (other.ndim - 1)) if depthwise else (1, -1, *[1] * (other.ndim - 2))
    reading = second.inputs[1]
    assert reading is not None
    _set(reading, other * factors.reshape(shape))


def _set(value: ir.Value, array: NDArray[np.float64]) -> None:
    value.const_value = ir.tensor(array.astype(np.float32), name=str(value.name))
