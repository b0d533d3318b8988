"""Softmax inside attention, written as operators that stay on the chip.

    softmax(x) = e / sum(e),   e = exp(x - max(x))

    x --> ReduceMax --> Sub --> Exp --> ReduceSum --> Reciprocal --> Mul -->
    \\___________________/        \\__________________________________/

Chips that put Softmax on the CPU pay for it with a second subgraph and two copies of the attention matrix. These
operators, by tables and sums, stay where the convolutions are. The vendor of the RDK boards computes Softmax so when
it is asked for integers, with 16-bit tables for Exp and Reciprocal.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from narrowcast.ops.facts import Kind, facts
from narrowcast.ops.net import constant_value, readers

__all__ = ["PARTS", "attention_softmaxes", "rewrite_attention"]

#: Operators that a Softmax becomes, in order; each node is named after it: ``<softmax>/ReduceMax``.
PARTS = ("ReduceMax", "Sub", "Exp", "ReduceSum", "Reciprocal", "Mul")
#: The axes of ReduceMax are an input from this opset on.
_AXES_INPUT_OPSET = 18


def attention_softmaxes(graph: ir.Graph) -> list[ir.Node]:
    """Softmax nodes whose result weighs something: every reader, behind operators that move bytes, is a MatMul.

    Args:
        graph: prepared graph.

    Returns:
        In graph order; classifiers' last Softmax and the distributions of a decode head are not among them.
    """
    return [node for node in graph if facts(node).kind is Kind.SOFTMAX and _weighs(node.outputs[0])]


def _weighs(value: ir.Value) -> bool:
    users = readers(value)
    if not users or value.is_graph_output():
        return False
    return all(facts(user).kind is Kind.MATRIX or (facts(user).whole and _weighs(user.outputs[0])) for user in users)


def rewrite_attention(model: ir.Model) -> list[str]:
    """Replace every Softmax of an attention, in place.

    Args:
        model: prepared graph with static shapes.

    Returns:
        Names of the nodes replaced. Output tensors keep their names.
    """
    replaced = []
    for node in attention_softmaxes(model.graph):
        _replace(model, node)
        replaced.append(str(node.name))
    return replaced


def _replace(model: ir.Model, softmax: ir.Node) -> None:
    graph, stem = model.graph, str(softmax.name)
    x = softmax.inputs[0]
    if x is None or x.shape is None:
        raise AssertionError(f"{stem} has no input of static shape")
    rank = len(x.shape)
    axis = softmax.attributes.get_int("axis", -1) % rank
    reduced = ir.Shape([1 if index == axis else dim for index, dim in enumerate(x.shape)])
    axes = constant_value(graph, f"{stem}/axes", np.array([axis], np.int64))
    as_attribute = model.opset_imports[""] < _AXES_INPUT_OPSET

    def node(op_type: str, inputs: list[ir.Value], shape: ir.Shape | None, attributes: dict[str, object]) -> ir.Value:
        made = ir.node(op_type, inputs, attributes=attributes or None, num_outputs=1, name=f"{stem}/{op_type}")
        value = made.outputs[0]
        value.name, value.shape, value.type = f"{stem}/{op_type}_output_0", shape, x.type
        graph.insert_before(softmax, made)
        return value

    if as_attribute:
        largest = node("ReduceMax", [x], reduced, {"axes": [axis], "keepdims": 1})
    else:
        largest = node("ReduceMax", [x, axes], reduced, {"keepdims": 1})
    exponential = node("Exp", [node("Sub", [x, largest], x.shape, {})], x.shape, {})
    total = node("ReduceSum", [exponential, axes], reduced, {"keepdims": 1})
    product = node("Mul", [exponential, node("Reciprocal", [total], reduced, {})], x.shape, {})
    old = softmax.outputs[0]
    name = old.name
    old.replace_all_uses_with(product)
    graph.remove(softmax, safe=True)
    product.name = name


