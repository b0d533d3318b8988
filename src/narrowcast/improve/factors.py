"""Spend the integers of an output where decode looks: a range of its own for every channel.

The range of a channel comes from the values at the cells that decode may keep, weighted by what an error costs there.
It becomes a factor in the weights and the bias of the convolution that makes the output, see
:mod:`narrowcast.lower.qdq`.

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

from narrowcast.lower.network import Planner, QuantizedNetwork
from narrowcast.ops.facts import Kind, facts
from narrowcast.ops.net import constant_of, is_own, named, only_reader, set_constant
from narrowcast.plan import Draft
from narrowcast.plan.types import Encoding
from narrowcast.vision.heads import HeadSpec, distances, sigmoid

#: Least class probability of a cell whose box, keypoints or mask coefficients matter.
LEAST_PROBABILITY = 0.02
#: Values of a channel of one image that are looked at, at most.
MOST = 4096

Rows = NDArray[np.float64]


def relevant(name: str, outputs: Mapping[str, NDArray[Any]], head: HeadSpec | None) -> tuple[Rows, Rows]:
    """Values of an output in one image, and the weight of a squared error of each.

    Box bins: the squared slope of the distance that the softmax over the bins gives. Keypoints: 1 over the area of the
    box, as in object keypoint similarity, and the squared slope of the visibility. Class logits: the squared slope of
    the probability. Everything else: 1.

    Args:
        name: of the output, as the head names it.
        outputs: float outputs of one image (1, C, H, W) by name.
        head: their layout; ``None`` for outputs of which nothing is known.

    Returns:
        Values and weights, (C, P) both.
    """
    values = np.asarray(outputs[name][0], np.float64).reshape(outputs[name].shape[1], -1)
    stem, _, stride = name.partition("_s")
    if head is None or not stride.isdecimal() or f"cls_s{stride}" not in outputs:
        values = values[:, :: _step(values.shape[1])]
        return values, np.ones_like(values)
    logits = np.asarray(outputs[f"cls_s{stride}"][0], np.float32).reshape(head.num_classes, -1)
    if stem == "cls":
        values = values[:, :: _step(values.shape[1])]
        probability = sigmoid(values.astype(np.float32)).astype(np.float64)
        return values, np.square(probability * (1 - probability)) + 1e-8
    probability = sigmoid(logits.max(axis=0)).astype(np.float64)
    cells = np.flatnonzero(probability >= LEAST_PROBABILITY)
    values, probability = values[:, cells], probability[cells]
    if stem == "box":
        return values, _box_weights(values, head) * probability
    if stem == "kpt":
        boxes = np.asarray(outputs[f"box_s{stride}"][0], np.float32).reshape(4 * head.reg_max, -1)[:, cells]
        return values, _keypoint_weights(values, boxes, head) * probability
    return values, np.ones_like(values) * probability


def _step(count: int) -> int:
    return max(1, -(-count // MOST))


def _box_weights(values: Rows, head: HeadSpec) -> Rows:
    if head.reg_max == 1:
        return np.ones_like(values)
    bins = values.reshape(4, head.reg_max, -1)
    shares = np.exp(bins - bins.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    place = np.arange(head.reg_max, dtype=np.float64)[:, None]
    slope = shares * (place - (shares * place).sum(axis=1, keepdims=True))
    return np.asarray((np.square(slope) + 1e-6).reshape(values.shape))


def _keypoint_weights(values: Rows, boxes: NDArray[np.float32], head: HeadSpec) -> Rows:
    assert head.keypoint_shape is not None
    left, top, right, bottom = distances(boxes, head.reg_max)
    area = np.maximum((left + right) * (top + bottom), 0.25).astype(np.float64)
    count, dims = head.keypoint_shape
    weights = np.ones((count, dims, values.shape[1]))
    if dims == 3:
        sure = sigmoid(values.reshape(count, dims, -1)[:, 2].astype(np.float32)).astype(np.float64)
        weights[:, :2] = sure[:, None]
        weights[:, 2] = np.square(sure * (1 - sure)) + 1e-6
    weights[:, :2] /= area
    return np.asarray(weights.reshape(values.shape))


#: Ranges tried for a channel, as shares of its largest value.
SHARES = tuple(1.25 * 0.9**step for step in range(16))
#: Objects of other images may be larger: the values also count multiplied with this, with that weight.
LARGER, LARGER_WEIGHT = 1.3, 0.25
#: What each box side, and each of the 17 COCO keypoints, is in a mirror.
MIRRORED = {
    ("box", 4): (2, 1, 0, 3),
    ("kpt", 17): (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15),
}
#: Least step of a channel, as a share of the largest among the strides.
OTHER_STRIDES = 0.8
#: Least number of values of a channel to choose a range from.
LEAST_VALUES = 32


def output_factors(
    network: QuantizedNetwork,
    drafted: Draft,
    head: HeadSpec | None,
    outputs: Iterable[Mapping[str, NDArray[Any]]],
    planner: Planner,
) -> QuantizedNetwork:
    """Fold a factor a channel into every convolution whose output leaves in one 8-bit scale.

    Args:
        network: where to start.
        drafted: its structure.
        head: layout of the outputs.
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
            seen[name].append(relevant(name, each, head))
    steps = {}
    for name in names:
        values, weights = (np.concatenate(parts, axis=1) for parts in zip(*seen[name], strict=True))
        if values.shape[1] >= LEAST_VALUES:
            steps[name] = best_steps(values, weights, network.plan.tensors[name])
    if not steps:
        return network
    factors = {n: float(network.plan.tensors[n].scales) / each for n, each in steady(steps, head).items()}
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


def steady(steps: Mapping[str, NDArray[np.float64]], head: HeadSpec | None) -> dict[str, NDArray[np.float64]]:
    """Steps of box and keypoint outputs that hold for other objects; those of other outputs as they are.

    Few images hold few objects, and a keypoint beyond its range is off by many steps. In a mirror the left wrist is the
    right one, and the same pose at another size meets another stride. So both sides get the larger step, and no stride
    gets much less than another. On yolo11n-pose, 48 other images, 1 - OKS of these outputs alone: from 9 calibration
    images 0.027 without and 0.012 with this, from 33 images 0.0069 and 0.0050, from 45 images 0.0023 and 0.0026.

    Args:
        steps: (C,) by output.
        head: layout of the outputs.
    """
    if head is None:
        return dict(steps)
    result = dict(steps)
    shapes = {"box": (4, head.reg_max), "kpt": head.keypoint_shape}
    for stem, shape in shapes.items():
        own = {name: each.reshape(shape) for name, each in steps.items() if shape and name.startswith(f"{stem}_s")}
        mirrored = MIRRORED.get((stem, shape[0] if shape else 0))
        if mirrored is not None:
            own = {name: np.maximum(each, each[list(mirrored)]) for name, each in own.items()}
        least = OTHER_STRIDES * np.max(list(own.values()), axis=0) if own else 0.0
        result.update({name: np.maximum(each, least).reshape(-1) for name, each in own.items()})
    return result


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
    return copy


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
            set_constant(value, array / factors.reshape(-1, *[1] * (array.ndim - 1)))
    shape = (-1, *[1] * (other.ndim - 1)) if depthwise else (1, -1, *[1] * (other.ndim - 2))
    reading = second.inputs[1]
    assert reading is not None
    set_constant(reading, other * factors.reshape(shape))
