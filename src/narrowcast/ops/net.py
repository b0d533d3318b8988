"""Reading a graph: names, shapes, constants, who writes and who reads. And the few ways of changing one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = [
    "all_names",
    "computed_inputs",
    "constant_at",
    "constant_of",
    "constant_value",
    "copied",
    "dims",
    "input_at",
    "integers_at",
    "is_own",
    "leads_to",
    "named",
    "node_names",
    "only_reader",
    "producer",
    "put_in_place",
    "readers",
    "scalar_at",
    "set_constant",
    "unused",
    "value_names",
    "with_outputs",
    "written",
]


# values


def dims(value: ir.Value | None) -> tuple[int, ...]:
    """The static shape of a value; () where it is absent or not known."""
    return () if value is None else tuple(int(size) for size in value.shape or ())


def constant_of(value: ir.Value | None) -> np.ndarray | None:
    """The value's constant as an array, ``None`` when it is computed."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def producer(value: ir.Value | None, op_type: str | None = None) -> ir.Node | None:
    """The node that writes a value; ``None`` where there is none, or it is not of the operator asked for."""
    node = value.producer() if value is not None else None
    return node if node is not None and op_type in (None, node.op_type) else None


def readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read a value, once for every time."""
    return [use.node for use in value.uses()]


def only_reader(value: ir.Value) -> ir.Node | None:
    """The node that alone reads a value, which is no output of the graph."""
    found = readers(value)
    return found[0] if len(found) == 1 and not value.is_graph_output() else None


# a node's inputs


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """An input, ``None`` where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def constant_at(node: ir.Node, index: int) -> np.ndarray | None:
    """The constant that is an input; ``None`` where it is left out or computed."""
    return constant_of(input_at(node, index))


def scalar_at(node: ir.Node, index: int) -> float | None:
    """The first number of the constant that is an input; ``None`` where there is none."""
    array = constant_at(node, index)
    return None if array is None or not array.size else float(array.reshape(-1)[0])


def integers_at(node: ir.Node, name: str, index: int) -> list[int] | None:
    """Whole numbers that are an attribute in old opsets and a constant input in new ones; ``None`` where not given."""
    given = node.attributes.get_ints(name, None)
    if given is not None:
        return [int(number) for number in given]
    array = constant_at(node, index)
    return None if array is None else [int(number) for number in array.reshape(-1)]


def computed_inputs(node: ir.Node) -> list[tuple[int, ir.Value]]:
    """Inputs that are computed, with their positions."""
    return [(i, v) for i, v in enumerate(node.inputs) if v is not None and v.const_value is None]


def is_own(node: ir.Node, index: int) -> bool:
    """Whether an input is a constant that nobody else reads."""
    value = input_at(node, index)
    return value is not None and value.const_value is not None and len(value.uses()) == 1


def set_constant(value: ir.Value, array: NDArray[Any]) -> None:
    """Give a constant other numbers, as float32."""
    value.const_value = ir.tensor(np.asarray(array, np.float32), name=str(value.name))


# a graph


def written(graph: ir.Graph) -> list[ir.Value]:
    """What the nodes of a graph write, in graph order."""
    return [output for node in graph for output in node.outputs]


def named(graph: ir.Graph) -> dict[str, ir.Node]:
    """Nodes by name."""
    return {str(node.name): node for node in graph}


def node_names(graph: ir.Graph) -> set[str]:
    """Names of the nodes."""
    return set(named(graph))


def value_names(graph: ir.Graph) -> set[str]:
    """Names of all that is computed: what the nodes write, and the graph's inputs."""
    return {str(value.name) for value in (*graph.inputs, *written(graph))}


def all_names(graph: ir.Graph) -> set[str]:
    """Names of all values, constants too."""
    return value_names(graph) | {str(name) for name in graph.initializers}


def leads_to(graph: ir.Graph, names: Iterable[str]) -> dict[str, set[str]]:
    """By node, in graph order, those of the named values that it computes or that what it computes goes into."""
    wanted, found = set(names), dict[str, set[str]]()
    for node in reversed(list(graph)):
        mine = wanted & {str(output.name) for output in node.outputs}
        found[str(node.name)] = mine.union(*(found[str(r.name)] for output in node.outputs for r in readers(output)))
    return dict(reversed(found.items()))


def unused(stem: str, taken: set[str]) -> str:
    """The stem, or with the first number from 2 that is not taken; it is taken now."""
    name, index = stem, 1
    while name in taken:
        index += 1
        name = f"{stem}_{index}"
    taken.add(name)
    return name


def constant_value(graph: ir.Graph, name: str, array: NDArray[Any], taken: Iterable[str] = ()) -> ir.Value:
    """A new initializer, whose name ends in ``_`` where the name is taken by another or in ``taken``."""
    while name in graph.initializers or name in taken:
        name += "_"
    value = ir.val(name, const_value=ir.tensor(np.asarray(array), name=name))
    graph.register_initializer(value)
    return value


def put_in_place(graph: ir.Graph, old: ir.Node, nodes: Sequence[ir.Node]) -> None:
    """Nodes in the place of another; the last one writes the old one's (only) output."""
    value, new = old.outputs[0], nodes[-1].outputs[0]
    new.name, new.shape, new.type = value.name, value.shape, value.type
    graph.insert_before(old, nodes)
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = new
    value.replace_all_uses_with(new)
    graph.remove(old, safe=True)


# ONNX messages


def copied(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


def with_outputs(proto: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of a model with the named tensors as additional outputs."""
    copy = copied(proto)
    present = {value.name for value in [*copy.graph.output, *copy.graph.input]}
    for name in dict.fromkeys(names):
        if name not in present:
            copy.graph.output.add().name = name
    return copy
