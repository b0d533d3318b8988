"""Remove nodes at the head or the tail of a graph, as ``hb_model_modifier`` does, and cut a graph at named nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from narrowcast.base.errors import UserError, nearest
from narrowcast.graph.exposure import remove_unused
from narrowcast.ops.facts import Kind, facts, removable
from narrowcast.ops.net import named, readers, written

__all__ = ["REMOVABLE", "Removed", "cut_at_nodes", "remove_ends"]

#: Operators that may go from an end of a graph.
REMOVABLE = removable()


@dataclass(frozen=True)
class Removed:
    """A node that is gone.

    Attributes:
        node, op_type: its name and operator.
        end: ``"head"`` or ``"tail"``.
        before, after: name of the graph's input or output before and after.
    """

    node: str
    op_type: str
    end: str
    before: str
    after: str


def remove_ends(
    model: ir.Model, kinds: Sequence[str], nodes: Sequence[str] = (), *, lenient: bool = False
) -> tuple[ir.Model, list[Removed]]:
    """Take nodes off the ends of a copy of a graph.

    Args:
        model: prepared graph; not changed.
        kinds: operators of :data:`REMOVABLE`, in the order in which they are looked for: every input and output gives
            up the nodes of one kind that stand at it before the next kind's turn.
        nodes: names of nodes, removed after that, in this order.
        lenient: a kind that stands at no end is no mistake, as for the vendor's compiler.

    Returns:
        The graph, and what was removed.

    Raises:
        UserError: no such node at an end, or the node is needed elsewhere.
    """
    copy = model.clone()
    removed: list[Removed] = []
    for kind in kinds:
        if kind not in REMOVABLE:
            raise UserError(f"{kind} nodes cannot be removed", nearest(kind, REMOVABLE, 0.3))
        found = _remove(copy.graph, partial(_is, kind=kind))
        if not found and not lenient:
            raise UserError(f"no {kind} node stands at the head or tail", f"there are {_ends(copy.graph)}")
        removed += found
    for name in nodes:
        known = named(copy.graph)
        if name not in known:
            raise UserError(f"no node of this model is named {name}", nearest(name, known, 0.3))
        found = _remove(copy.graph, partial(_is, name=name))
        if not found:
            raise UserError(f"{name} does not stand at the head or tail, or computes", f"there are {_ends(copy.graph)}")
        removed += found
    remove_unused(copy)
    return copy, removed


def _ends(graph: ir.Graph) -> str:
    heads = [node for value in graph.inputs for node in readers(value)]
    tails = [node for value in graph.outputs if (node := value.producer()) is not None]
    listed = [f"{node.op_type} {node.name}" for node in dict.fromkeys([*heads, *tails])]
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")


def _is(node: ir.Node, kind: str | None = None, name: str | None = None) -> bool:
    return node.op_type == kind if kind is not None else node.name == name and node.op_type in REMOVABLE


def _remove(graph: ir.Graph, wanted: Callable[[ir.Node], bool]) -> list[Removed]:
    removed = []
    for index, value in enumerate(graph.inputs):
        users = readers(value)
        if len(users) == 1 and facts(users[0]).kind is Kind.TURN and wanted(users[0]):
            removed.append(_remove_head(graph, index, users[0]))
    for index, value in enumerate(graph.outputs):
        node = value.producer()
        if node is not None and wanted(node) and len(node.outputs) == 1:
            removed.append(_remove_tail(graph, index, node))
    return removed


def _remove_head(graph: ir.Graph, index: int, node: ir.Node) -> Removed:
    old, result = graph.inputs[index], node.outputs[0]
    if result.is_graph_output():
        raise UserError(f"{node.name} is all there is between {old.name} and {result.name}", "keep it")
    new = ir.val(str(old.name), dtype=old.dtype, shape=result.shape)
    result.replace_all_uses_with(new)
    graph.remove(node, safe=True)
    graph.inputs[index] = new
    return Removed(str(node.name), node.op_type, "head", str(old.name), str(new.name))


def _remove_tail(graph: ir.Graph, index: int, node: ir.Node) -> Removed:
    old, source = graph.outputs[index], node.inputs[0]
    if source is None or source.producer() is None or source.const_value is not None:
        raise UserError(f"{node.name} reads no computed tensor", "keep it")
    if source.is_graph_output():
        raise UserError(f"{source.name}, which {node.name} reads, is an output already", f"keep {node.name}")
    graph.outputs[index] = source
    if not list(old.uses()):
        graph.remove(node, safe=True)
    return Removed(str(node.name), node.op_type, "tail", str(old.name), str(source.name))


def transposed_layout(node: ir.Node) -> str | None:
    """Layout of the result of a Transpose between NCHW and NHWC, ``None`` for another permutation."""
    order = tuple(int(axis) for axis in node.attributes.get_ints("perm", []) or [])
    return "NCHW" if order == (0, 3, 1, 2) else "NHWC" if order == (0, 2, 3, 1) else None


def cut_at_nodes(model: ir.Model, names: Sequence[str]) -> None:
    """Make the outputs of the named nodes all the outputs of the graph, in place.

    Args:
        model: prepared graph.
        names: nodes, or tensors that nodes write; the order becomes the order of the outputs.

    Raises:
        UserError: a name is unknown or given twice.
    """
    graph = model.graph
    by_node = {name: list(node.outputs) for name, node in named(graph).items()}
    by_value = {str(value.name): [value] for value in written(graph)}
    values: list[ir.Value] = []
    for name in names:
        found = by_node.get(name) or by_value.get(name)
        if found is None:
            raise UserError(f"output_nodes: no node of this model is named {name}", nearest(name, by_node, 0.3))
        values += found
    if len(set(values)) != len(values):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise UserError(f"output_nodes names {twice} twice", "name each node once")
    graph.outputs.clear()
    graph.outputs.extend(values)
    remove_unused(model)
