"""What must hold in every plan, whoever made or edited it: one line for each thing that does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.chips.schema import Target
from narrowcast.ops.facts import facts
from narrowcast.ops.net import all_names, computed_inputs, constant_of, node_names, value_names
from narrowcast.plan.drafting import (
    Draft,
    accumulator_encoding,
    bias_encoding,
    draft_again,
    output_channels_axis,
    read_encoding,
    written_value,
)
from narrowcast.plan.structure import is_passive
from narrowcast.plan.types import Encoding, Plan, edge_key, split_edge_key

__all__ = ["product_violations", "violations"]

#: Scales are compared to this share: a plan is written with all digits.
_NEAR = 1e-6


def violations(graph: ir.Graph, plan: Plan, target: Target, runtime: str | None = None) -> list[str]:
    """Everything that is wrong with a plan of a prepared graph, one line each; empty for a sound plan."""
    names = node_names(graph)
    unplaced = [f"{name} is not placed" for name in names - set(plan.nodes)]
    unknown = [f"{name} is placed, but no node has that name" for name in set(plan.nodes) - names]
    if plan.target != target.name or unplaced or unknown:
        wrong = [] if plan.target == target.name else [f"the plan is for {plan.target}, not for {target.name}"]
        return [*wrong, *sorted(unplaced), *sorted(unknown)]
    try:
        drafted = draft_again(graph, target, plan, runtime)
    except UserError as error:
        return [error.what]
    found = [*_tensors(drafted, plan), *_edges(drafted, plan), *_joints(drafted, plan)]
    return list(dict.fromkeys([*found, *product_violations(graph, plan, target)]))


def _tensors(drafted: Draft, plan: Plan) -> Iterator[str]:
    """Encodings that are missing, that name nothing, or that the chip does not have."""
    graph, target = drafted.graph, drafted.target
    for group in drafted.structure.groups:
        yield from (f"{name} has no encoding" for name in group.values if name not in plan.tensors)
    computed, known = value_names(graph), all_names(graph)
    for name, encoding in plan.tensors.items():
        if name not in known:
            yield f"{name} has an encoding, but no tensor has that name"
        elif name in computed and encoding.dtype != "int32":
            yield from (f"{name} {problem}" for problem in _activation(encoding, target))


def _activation(encoding: Encoding, target: Target) -> Iterator[str]:
    """What the chip does not have of an encoding of an activation."""
    rules = target.activation
    if encoding.dtype not in rules.types:
        yield f"is {encoding.dtype}, {target.name} has {' and '.join(rules.types)}"
    if encoding.axis is not None:
        yield "has a scale a channel, an activation has one"
    if rules.symmetric and encoding.zero_point:
        yield f"has the zero point {encoding.zero_point}, {target.name} has none"
    if rules.scale == "power-of-two":
        yield from _powers(encoding, target)


def _powers(encoding: Encoding, target: Target) -> Iterator[str]:
    if np.any(np.frexp(encoding.scales)[0] != 0.5):
        yield f"has a scale that is no power of two, {target.name} shifts"


def _edges(drafted: Draft, plan: Plan) -> Iterator[str]:
    """Requantized inputs that are none, or of a type that their node cannot read."""
    nodes, target = drafted.nodes_by_name, drafted.target
    for key, encoding in plan.edges.items():
        name, _, index = key.rpartition("#")
        node = nodes.get(name)
        if node is None or not index.isdecimal() or int(index) >= len(node.inputs):
            yield f"the edge {key} names no input of a node"
            continue
        value, kind = node.inputs[int(index)], plan.nodes[name].type
        if value is None or value.const_value is not None or kind == "float32":
            yield f"the edge {key} is no input that {name} reads as integers"
            continue
        if str(value.name) not in plan.tensors:
            yield f"the edge {key} requantizes {value.name}, which has no encoding"
        yield from (f"the edge {key} {problem}" for problem in _activation(encoding, target))
        if target.uniform_types and encoding.dtype != kind and not is_passive(node, target):
            yield f"the edge {key} is {encoding.dtype}, {name} computes in {kind}"


def _joints(drafted: Draft, plan: Plan) -> Iterator[str]:
    """Tensors that must have one encoding: operands of joints, and what a node only moves."""
    nodes = drafted.nodes_by_name
    for key, group in drafted.structure.edges.items():
        name, index = split_edge_key(key)
        read = read_encoding(nodes[name], index, plan.tensors, plan.edges)
        wanted = plan.tensors.get(group.values[0])
        if wanted is not None and read != wanted:
            yield f"{name} does not read operand {index} in the encoding of its result"
    for group in drafted.structure.groups:
        found = [plan.tensors[name] for name in group.values if name in plan.tensors]
        if len(set(found)) > 1:
            first = group.values[0]
            other = next(n for n in group.values if plan.tensors.get(n) not in (None, plan.tensors.get(first)))
            yield f"{first} and {other} must have one encoding"
    if not drafted.target.uniform_types:
        return
    for node in drafted.graph:
        kind = plan.nodes[str(node.name)].type
        for index, value in computed_inputs(node) if not drafted.is_passive(node) else ():
            read = read_encoding(node, index, plan.tensors, plan.edges)
            if read is not None and read.dtype != kind and edge_key(str(node.name), index) not in plan.edges:
                yield f"{node.name} computes in {kind} but reads {value.name}, which is {read.dtype}"


def product_violations(graph: ir.Graph, plan: Plan, target: Target) -> list[str]:
    """What is wrong with sums of products: scales, biases and shifts; one line each."""
    found: list[str] = []
    for node in graph:
        if facts(node).is_product and plan.nodes[str(node.name)].type != "float32":
            found += [f"{node.name}: {problem}" for problem in _product(node, plan, target)]
        elif node.op_type in target.constant_operands and plan.nodes[str(node.name)].type != "float32":
            found += [f"{node.name}: {problem}" for problem in _constants(node, plan)]
    return found


def _constants(node: ir.Node, plan: Plan) -> Iterator[str]:
    if str(node.outputs[0].name) not in plan.tensors:
        return  # it computes with real numbers
    for value in node.inputs:
        array = constant_of(value)
        if value is not None and array is not None and array.dtype == np.float32 and value.name not in plan.tensors:
            yield f"its constant {value.name} has no encoding"


def _product(node: ir.Node, plan: Plan, target: Target) -> Iterator[str]:
    kind = plan.nodes[str(node.name)].type
    operands = [read_encoding(node, index, plan.tensors, plan.edges) for index in (0, 1)]
    for value, encoding in zip(node.inputs[:2], operands, strict=True):
        if encoding is None:
            yield f"its operand {value.name if value is not None else ''} has no encoding"
    read, second = operands
    if read is None or second is None:
        return
    array = constant_of(node.inputs[1])
    if array is not None:
        problems = list(_weight(node, second, array, target, kind))
        yield from problems
        if problems:
            return
        yield from _bias(node, bias_encoding(read, second), plan, target, kind)
    yield from _shift(node, read.scales * second.scales, plan, target)
    output = plan.tensors.get(str(node.outputs[0].name))
    if output is not None and output.dtype == "int32":
        wanted = accumulator_encoding(node, plan.tensors, plan.edges)
        if output.axis != wanted.axis or not np.allclose(output.scales, wanted.scales, _NEAR, 0):
            yield "the scale of its result is not input scale * weight scale"


def _weight(node: ir.Node, encoding: Encoding, array: NDArray[Any], target: Target, kind: str) -> Iterator[str]:
    wanted = target.weight.type_for(kind)
    if encoding.dtype != wanted:
        yield f"its weight is {encoding.dtype}, {kind} nodes of {target.name} have {wanted}"
    if encoding.zero_point:
        yield "its weight has a zero point"
    if encoding.axis is not None and encoding.axis != output_channels_axis(node, target):
        yield f"its weight has scales along axis {encoding.axis}"
    elif encoding.axis is not None and len(encoding.scales) != array.shape[encoding.axis]:
        yield f"its weight has {len(encoding.scales)} scales for {array.shape[encoding.axis]} channels"
    if target.weight.scale == "power-of-two":
        yield from (f"its weight {problem}" for problem in _powers(encoding, target))


def _bias(node: ir.Node, product: Encoding, plan: Plan, target: Target, kind: str) -> Iterator[str]:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return
    array, encoding = constant_of(value), plan.tensors.get(str(value.name))
    if array is None or encoding is None:
        yield f"its bias {value.name} " + ("is computed" if array is None else "has no encoding")
        return
    if encoding.axis != product.axis or encoding.scales.shape != product.scales.shape:
        yield "its bias has not one scale for each scale of its weight"
        return
    apart = np.abs(encoding.scales / product.scales - 1) > _NEAR
    if np.any(apart):
        channel = int(np.argmax(apart))
        one, other = (float(each.scales.reshape(-1)[channel]) for each in (encoding, product))
        yield f"the scale of its bias is {one:.6g}, input scale * weight scale is {other:.6g}"
        return
    bits = target.bias.bits_for(kind)
    steps = np.abs(np.rint(array.reshape(-1).astype(np.float64) / encoding.scales))
    beyond = int(np.count_nonzero(steps > 2.0 ** (bits - 1) - 1))
    if beyond:
        yield f"{beyond} of its biases exceed {bits} bits, at worst {float(steps.max()):.3g} steps"


def _shift(node: ir.Node, product: NDArray[np.float64], plan: Plan, target: Target) -> Iterator[str]:
    value = written_value(node, plan.tensors, target, plan.nodes)
    if value is None:
        return
    low, high = target.requantize.shift_range
    shifts = np.log2(plan.tensors[str(value.name)].scales) - np.log2(product)
    outside = int(np.count_nonzero((shifts < low - _NEAR) | (shifts > high + _NEAR)))
    if outside:
        worst = float(np.min(shifts) if np.min(shifts) < low - _NEAR else np.max(shifts))
        yield f"{outside} channels are shifted right by up to {worst:.4g} bits, {target.name} has {low} to {high}"
