"""Spend the integers of an output where decode looks: a range of its own for every channel.

The range of a channel comes from the values at the cells that decode may keep, weighted by what an error costs there.
It becomes a factor in the weights and the bias of the convolution that makes the output, see
:mod:`narrowcast.engine.qdq`.

Beside it, cross-layer equalization: give the channels between two convolutions similar ranges, exactly.

After Nagel et al., Data-free quantization through weight equalization and bias correction (2019). A factor a channel is
divided out of the rows of the first weight and its bias, and multiplied into the columns of the second. Where nothing
or a Relu lies between, the float network computes the same; behind other functions it would not, so these stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.engine.network import Planner, QuantizedNetwork
from narrowcast.graph.run import hold_weights
from narrowcast.ops.facts import Kind, facts
from narrowcast.ops.net import constant_of, is_own, named, only_reader, set_constant
from narrowcast.plan import Draft
from narrowcast.plan.types import Encoding
from narrowcast.tasks import Task

#: Ranges tried for a channel, as shares of its largest value.
SHARES = tuple(1.25 * 0.9**step for step in range(16))
#: Objects of other images may be larger: the values also count multiplied with this, with that weight.
LARGER, LARGER_WEIGHT = 1.3, 0.25
#: Least number of values of a channel to choose a range from.
LEAST_VALUES = 32
#: Largest factor either way, so that a dead channel does not blow up.
LIMIT = 32.0
#: Passes over all pairs; a convolution is in two pairs, so factors have to settle.
PASSES = 10


def output_factors(
    network: QuantizedNetwork,
    drafted: Draft,
    meaning: Task,
    outputs: Iterable[Mapping[str, NDArray[Any]]],
    planner: Planner,
) -> QuantizedNetwork:
    """Fold a factor a channel into every convolution whose output leaves in one 8-bit scale.

    Args:
        network: where to start.
        drafted: its structure.
        meaning: of the outputs.
        outputs: float outputs of some images.
        planner: makes the plan of the changed weights.

    Returns:
        The same network when there is no such output.
    """
    names = _eligible(network, drafted)
    if not names:
        return network
    seen: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {name: [] for name in names}
    for each in outputs:
        for name in names:
            seen[name].append(meaning.relevant(name, each))
    steps = {}
    for name in names:
        values, weights = (np.concatenate(parts, axis=1) for parts in zip(*seen[name], strict=True))
        if values.shape[1] >= LEAST_VALUES:
            steps[name] = best_steps(values, weights, network.plan.tensors[name])
    if not steps:
        return network
    factors = {n: float(network.plan.tensors[n].scales) / each for n, each in meaning.steady(steps).items()}
    model = scale_outputs(network.model, factors)
    chosen = dict(network.chosen)
    for index, group in enumerate(drafted.structure.groups):
        if group.values[0] in factors:
            chosen[index] = network.plan.tensors[group.values[0]]
    every = {**network.factors, **factors}
    return replace(network, model=model, chosen=chosen, changed=True, factors=every).planned(planner)


def _eligible(network: QuantizedNetwork, drafted: Draft) -> list[str]:
    """Outputs that a convolution makes alone, encoded in 8 bits around zero, unless a person fixed their scale."""
    found = []
    for value in network.model.graph.outputs:
        name, node = str(value.name), value.producer()
        encoding, group = network.plan.tensors.get(name), drafted.structure.of.get(name)
        if encoding is None or group is None or group.values != [name] or name in drafted.pins.tensors:
            continue
        simple = encoding.dtype == "int8" and encoding.zero_point == 0 and encoding.axis is None
        if simple and not list(value.uses()) and node is not None and _is_own_convolution(node):
            found.append(name)
    return [name for name in found if name not in network.factors]


def _is_own_convolution(node: ir.Node) -> bool:
    """A Conv whose constants nobody else reads."""
    own = all(is_own(node, index) for index, value in enumerate(node.inputs) if index and value)
    return facts(node).kind is Kind.CONVOLUTION and own


def best_steps(values: NDArray[Any], weights: NDArray[Any], encoding: Encoding) -> NDArray[np.float64]:
    """(C,) step of each channel with the least weighted squared error.

    Args:
        values: (C, P) real values of each channel.
        weights: (C, P) weight of a squared error of each value, 0 or more.
        encoding: its integer limits are used.
    """
    largest = np.maximum(np.abs(values).max(axis=1), 1e-6)
    best, least = largest / encoding.qmax, np.full(len(values), np.inf)
    for share in SHARES:
        steps = largest * share / encoding.qmax
        error = _error(values, weights, steps, encoding)
        error += LARGER_WEIGHT * _error(values * LARGER, weights / LARGER**2, steps, encoding)
        best, least = np.where(error < least, steps, best), np.minimum(error, least)
    return np.asarray(best, np.float64)


def _error(
    values: NDArray[Any], weights: NDArray[Any], steps: NDArray[np.float64], encoding: Encoding
) -> NDArray[np.float64]:
    restored = np.clip(np.rint(values / steps[:, None]), encoding.qmin, encoding.qmax) * steps[:, None]
    return np.asarray((weights * np.square(restored - values)).sum(axis=1), np.float64)


def scale_outputs(model: ir.Model, factors: Mapping[str, NDArray[np.float64]]) -> ir.Model:
    """A copy whose outputs are multiplied by (C,) factors, in the weights of the convolutions that make them."""
    copy = model.clone()
    for value in copy.graph.outputs:
        node = value.producer()
        if str(value.name) not in factors or node is None:
            continue
        values = factors[str(value.name)]
        for constant in node.inputs[1:3]:
            array = constant_of(constant)
            if constant is None or array is None:
                continue
            set_constant(constant, array * values.reshape(-1, *[1] * (array.ndim - 1)))
    hold_weights(copy)
    return copy


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
        user = only_reader(value)
        while user is not None and facts(user).homogeneous and user.inputs[0] is value:
            between.append(str(value.name))
            value = user.outputs[0]
            user = only_reader(value)
        between.append(str(value.name))
        if user is not None and _is_convolution(user) and user.inputs[0] is value:
            pairs.append(Pair(str(node.name), str(user.name), tuple(between)))
    return pairs


def _is_convolution(node: ir.Node) -> bool:
    """A Conv with constants of its own, in one group or one group a channel."""
    if not _is_own_convolution(node):
        return False
    weight = constant_of(node.inputs[1])
    group = node.attributes.get_int("group", 1)
    return weight is not None and (group == 1 or (weight.shape[1] == 1 and group == weight.shape[0]))


def _largest(weight: NDArray[Any], axis: int) -> NDArray[np.float64]:
    """(C,) largest magnitude of each channel of an axis, without a copy of the weight."""
    others = tuple(other for other in range(weight.ndim) if other != axis)
    return np.asarray(np.maximum(weight.max(axis=others), -weight.min(axis=others)), np.float64)


def equalizing_factors(first: NDArray[Any], second: NDArray[Any], depthwise: bool) -> NDArray[np.float64]:
    """(C,) factors sqrt(r1 / r2) that give both weights the same range in every channel, within :data:`LIMIT`.

    Args:
        first: (C, ...) weight that writes the channels.
        second: weight that reads them, (out, C, ...) or depthwise (C, 1, ...).
        depthwise: which.
    """
    rows, columns = _largest(first, 0), _largest(second, 0 if depthwise else 1)
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
    hold_weights(copy)
    return copy, tuple(dict.fromkeys(name for pair in pairs for name in pair.between))


def _move(first: ir.Node, second: ir.Node) -> None:
    one, other = constant_of(first.inputs[1]), constant_of(second.inputs[1])
    assert one is not None and other is not None
    depthwise = second.attributes.get_int("group", 1) != 1
    factors = equalizing_factors(one, other, depthwise)
    for value in first.inputs[1:3]:
        array = constant_of(value)
        if value is not None and array is not None:
            set_constant(value, array / factors.reshape(-1, *[1] * (array.ndim - 1)))
    shape = (-1, *[1] * (other.ndim - 1)) if depthwise else (1, -1, *[1] * (other.ndim - 2))
    reading = second.inputs[1]
    assert reading is not None
    set_constant(reading, other * factors.reshape(shape))
