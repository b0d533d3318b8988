"""In which encoding a node reads an operand, and what follows from that for its sum of products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from narrowcast.base.errors import UserError
from narrowcast.plan.parameters import bias_encoding
from narrowcast.plan.types import Encoding, Placement, edge_key, split_edge_key
from narrowcast.targets.schema import Target

__all__ = ["accumulator_encoding", "operand_encoding", "read_encoding", "read_name", "written_value"]


def read_name(key: str, nodes: Mapping[str, ir.Node]) -> str:
    """Name of the value that a key of :attr:`narrowcast.plan.Plan.edges` reads; empty for an absent operand.

    Args:
        key: of the edge.
        nodes: of the graph, by name.
    """
    node, index = split_edge_key(key)
    value = nodes[node].inputs[index]
    return "" if value is None else str(value.name)


def read_encoding(
    node: ir.Node, index: int, tensors: Mapping[str, Encoding], edges: Mapping[str, Encoding]
) -> Encoding | None:
    """How a node reads an operand: requantized on the edge, or as the tensor is; ``None`` for float and for none.

    Args:
        node: that reads.
        index: of the operand.
        tensors, edges: of a plan, or of one that is being made.
    """
    edge = edges.get(edge_key(str(node.name), index))
    value = node.inputs[index]
    return tensors.get(str(value.name)) if edge is None and value is not None else edge


def operand_encoding(
    node: ir.Node, index: int, tensors: Mapping[str, Encoding], edges: Mapping[str, Encoding]
) -> Encoding:
    """As :func:`read_encoding`, for an operand that has to be quantized.

    Raises:
        UserError: it is not.
    """
    found = read_encoding(node, index, tensors, edges)
    if found is None:
        raise UserError(f"operand {index} of {node.name} is not quantized", "quantize the model again")
    return found


def accumulator_encoding(node: ir.Node, tensors: Mapping[str, Encoding], edges: Mapping[str, Encoding]) -> Encoding:
    """Of an output that leaves as accumulator: scale = input scale * weight scale, channels on axis 1.

    Args:
        node: a sum of products whose operands are quantized.
        tensors, edges: as :func:`read_encoding` takes them.

    Raises:
        UserError: an operand is not quantized.
    """
    product = bias_encoding(*(operand_encoding(node, index, tensors, edges) for index in (0, 1)))
    return product if product.axis is None else replace(product, axis=1)


def written_value(
    node: ir.Node, tensors: Mapping[str, Encoding], target: Target, placement: Mapping[str, Placement]
) -> ir.Value | None:
    """The value into whose encoding a node's accumulator is requantized, ``None`` where it leaves as it is.

    Args:
        node: a sum of products.
        tensors: as :func:`read_encoding` takes them.
        target: its fusions: the value may be the result of the unit that the node begins.
        placement: of every node.
    """
    value = node.outputs[0]
    while str(value.name) not in tensors:
        uses = list(value.uses())
        if value.is_graph_output() or len(uses) != 1:
            return None
        user = uses[0].node
        fused = (node.op_type, user.op_type) in target.fusions and placement[str(user.name)].type != "float32"
        if not fused:
            return None
        node, value = user, user.outputs[0]
    return None if tensors[str(value.name)].dtype == "int32" else value
