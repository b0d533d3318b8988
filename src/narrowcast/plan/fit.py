"""Does a plan from a file belong to this graph?"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from narrowcast.base.errors import UserError
from narrowcast.plan.types import Encoding, Plan, split_edge_key

__all__ = ["check_fit"]


def check_fit(plan: Plan, graph: ir.Graph, where: str | Path) -> None:
    """Raise when a plan names what the graph does not have, says nothing of a node, or has scales for other channels.

    Args:
        plan: as read from a file.
        graph: prepared.
        where: the file, for messages.

    Raises:
        UserError: naming the entry.
    """
    nodes = {str(node.name): node for node in graph}
    values = {str(value.name): value for value in (*graph.inputs, *graph.initializers.values())}
    values |= {str(output.name): output for node in graph for output in node.outputs}
    lost = [name for name in nodes if name not in plan.nodes]
    if lost:
        raise _wrong(where, f"says nothing of the node {lost[0]}")
    other = [f"node {name}" for name in plan.nodes if name not in nodes]
    other += [f"tensor {name}" for name in plan.tensors if name not in values]
    if other:
        raise _wrong(where, f"names the {other[0]}, which the model does not have")
    for name, encoding in plan.tensors.items():
        _check_channels(encoding, values[name], f"{where}: tensor {name}")
    for key, encoding in plan.edges.items():
        node, index = split_edge_key(key) if key.rpartition("#")[2].isdecimal() else (key, -1)
        operands = nodes[node].inputs if node in nodes else ()
        value = operands[index] if 0 <= index < len(operands) else None
        if value is None:
            raise _wrong(where, f"names the edge {key}, which the model does not have")
        _check_channels(encoding, value, f"{where}: edge {key}")


def _check_channels(encoding: Encoding, value: ir.Value, where: str) -> None:
    if encoding.axis is None or value.shape is None:
        return
    shape, count = [int(size) for size in value.shape], len(encoding.scales)
    if not 0 <= encoding.axis < len(shape) or shape[encoding.axis] != count:
        raise _wrong(where, f"has {count} scales along axis {encoding.axis}, its shape is {shape}")


def _wrong(where: str | Path, problem: str) -> UserError:
    return UserError(f"{where} {problem}", "take the plan.json of this model's bundle")
