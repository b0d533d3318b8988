"""BatchNormalization of a trained model: factors and an offset for every channel, and no node of its own.

    y = x * factor + shift,   factor = scale / sqrt(variance + epsilon),   shift = bias - mean * factor

It goes into the weights of the sum of products before it (Conv, ConvTranspose, Gemm) where nothing else reads that sum;
else it becomes a depthwise 1x1 convolution (four axes), or Mul and Add.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.ops.facts import Kind, facts, weight_axis
from narrowcast.ops.net import constant_at, constant_of, constant_value, input_at, only_reader, producer, put_in_place

__all__ = ["fold_batch_normalization"]

Array = NDArray[np.float64]


def fold_batch_normalization(model: ir.Model) -> list[str]:
    """Replace every BatchNormalization with constant parameters, in place.

    Returns:
        One sentence for each kind of replacement that happened. Values keep their names.
    """
    counts = {"weights of the node before": 0, "a depthwise convolution": 0, "Mul and Add": 0}
    for node in list(model.graph):
        parameters = _parameters(node) if node.op_type == "BatchNormalization" else None
        if parameters is None or len(node.outputs) != 1:
            continue
        factor, shift = parameters
        rank = len(node.outputs[0].shape or ())
        if _into_producer(model.graph, node, factor, shift):
            counts["weights of the node before"] += 1
        elif rank == 4:
            _depthwise(model.graph, node, factor, shift)
            counts["a depthwise convolution"] += 1
        elif rank >= 2:
            _multiply_and_add(model.graph, node, factor, shift, rank)
            counts["Mul and Add"] += 1
    return [
        f"{count} BatchNormalization node{'s' if count != 1 else ''} became {what}"
        for what, count in counts.items()
        if count
    ]


def _parameters(node: ir.Node) -> tuple[Array, Array] | None:
    arrays = [constant_of(value) for value in node.inputs[1:5]]
    if any(array is None for array in arrays) or node.attributes.get_int("training_mode", 0):
        return None
    scale, bias, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return factor, bias - mean * factor


def _float(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    return constant_value(graph, name, array.astype(np.float32))


def _into_producer(graph: ir.Graph, node: ir.Node, factor: Array, shift: Array) -> bool:
    """Scale weights and bias of the node before; ``False`` where that is not possible."""
    source = node.inputs[0]
    before = producer(source)
    if source is None or before is None or only_reader(source) is None:
        return False
    weight = constant_at(before, 1)
    given = input_at(before, 2)
    bias = np.zeros(1) if given is None else constant_of(given)
    folded = _scaled(before, weight, factor) if weight is not None else None
    if folded is None or bias is None or bias.size not in (1, len(factor)):
        return False
    beta = before.attributes.get_float("beta", 1.0) if facts(before).kind is Kind.LINEAR else 1.0
    total = np.broadcast_to(np.asarray(bias, np.float64).reshape(-1) * beta, factor.shape) * factor + shift
    constants = {"weight": folded, "bias": total}
    inputs = [before.inputs[0], *(_float(graph, f"{node.name}.{key}", array) for key, array in constants.items())]
    attributes = [entry for entry in before.attributes.values() if entry.name != "beta"]
    new = ir.Node("", before.op_type, inputs, attributes, num_outputs=1, name=before.name)
    put_in_place(graph, node, [new])
    graph.remove(before, safe=True)
    return True


def _scaled(before: ir.Node, weight: NDArray[Any], factor: Array) -> Array | None:
    """The weights of a sum of products with every output channel multiplied; ``None`` for other operators."""
    weight = np.asarray(weight, np.float64)
    entry = facts(before)
    if entry.kind is Kind.TRANSPOSED:  # (C, N / group, ...), the groups one after the other
        group, tail = before.attributes.get_int("group", 1), [1] * (weight.ndim - 2)
        rows = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:])
        return (rows * factor.reshape(group, 1, weight.shape[1], *tail)).reshape(weight.shape)
    if not entry.is_weighted:
        return None
    axis = weight_axis(before)
    return weight * factor.reshape([-1 if index == axis else 1 for index in range(weight.ndim)])


def _depthwise(graph: ir.Graph, node: ir.Node, factor: Array, shift: Array) -> None:
    weight = _float(graph, f"{node.name}.weight", factor.reshape(-1, 1, 1, 1))
    bias = _float(graph, f"{node.name}.bias", shift)
    inputs = [node.inputs[0], weight, bias]
    put_in_place(graph, node, [ir.node("Conv", inputs, {"group": factor.size}, num_outputs=1, name=node.name)])


def _multiply_and_add(graph: ir.Graph, node: ir.Node, factor: Array, shift: Array, rank: int) -> None:
    shape = (1, -1, *[1] * (rank - 2))
    inputs = [node.inputs[0], _float(graph, f"{node.name}.weight", factor.reshape(shape))]
    product = ir.node("Mul", inputs, num_outputs=1, name=f"{node.name}_scale")
    value, like = product.outputs[0], node.outputs[0]
    value.name, value.shape, value.type = f"{node.name}_scaled", like.shape, like.type
    offset = _float(graph, f"{node.name}.bias", shift.reshape(shape))
    put_in_place(graph, node, [product, ir.node("Add", [value, offset], num_outputs=1, name=node.name)])
