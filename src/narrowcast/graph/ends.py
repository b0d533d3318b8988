"""The ends of a graph: nodes taken off, as ``hb_model_modifier`` does, cuts at named nodes, before a join, at a head.

The operators that only put outputs together can be a small float graph of their own (:class:`Join`). Decoders end in
Concat: pixels and probabilities share a tensor, and no 8-bit scale holds both. Cut before it, each part has its own
scale, and the parts are joined in float where the outputs are read.

A decode head is found by topology and cut off after its last convolutions. A stock export ends in arithmetic that puts
pixels (0..640) and probabilities (0..1) into one tensor, which no 8-bit scale can hold. The walk goes back from the
outputs and stops at convolutions, so names do not matter; whether the guess is right is decided by running both graphs
(:mod:`narrowcast.graph.model`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper

from narrowcast.base.errors import UserError, nearest
from narrowcast.graph.run import open_session, with_data
from narrowcast.ops.facts import Kind, facts, removable
from narrowcast.ops.net import Op, computed_inputs, constant_of, dims, named, readers, value_names, written
from narrowcast.tasks import Ends, Tail


def ends_of(graph: ir.Graph, **said: Any) -> Ends:
    """What tasks are recognised by.

    Args:
        graph: static shapes, constants as initializers.
        said: other entries of :class:`Ends`.
    """
    shape = (*dims(graph.inputs[0]), 0, 0, 0, 0)
    size = shape[1:3] if channels_last(shape) else shape[2:4]
    return Ends((size[0], size[1]), tuple(map(_tail, graph.outputs)), **said)


def channels_last(shape: Sequence[int]) -> bool:
    """Whether an image of that shape has its channels last."""
    return shape[3] in (1, 3) and shape[1] not in (1, 3)


def _tail(value: ir.Value) -> Tail:
    found, node = _last_convolutions(value), value.producer()
    last = found if isinstance(found, str) else tuple((str(conv.name), dims(conv)) for conv in found)
    before = node.inputs[0] if node is not None and _turn(node) == "NHWC" else None
    source = before if before is not None and before.producer() is not None else value
    maker = source.producer()
    return Tail(
        str(value.name), dims(value), node.op_type if node is not None else "", last, str(source.name),
        maker.op_type if maker is not None else "", *_way(value),
    )  # fmt: skip


def _turn(node: ir.Node) -> str | None:
    return transposed_layout(node) if facts(node).kind is Kind.TURN else None


def _way(value: ir.Value) -> tuple[str, tuple[str, ...]]:
    """Layout of an output as the nodes before it say it, and its name and those of the nodes up to a convolution."""
    layout, names, step = "", [str(value.name)], value
    while (node := step.producer()) is not None:
        names.append(str(node.name))
        layout = layout or _turn(node) or ""
        if facts(node).kind in (Kind.CONVOLUTION, Kind.TRANSPOSED):
            return layout or "NCHW", tuple(names)
        computed = [operand for _, operand in computed_inputs(node)]
        if len(computed) != 1 or not (layout or dims(computed[0]) == dims(step)):
            break
        step = computed[0]
    return layout, tuple(names)


def _is_decode_arithmetic(conv: ir.Node) -> bool:
    """The 1x1 convolution of DFL with the fixed weights 0, 1, 2, ... is part of decode."""
    weight = constant_of(conv.inputs[1])
    return weight is not None and weight.shape[0] == 1 and bool(np.array_equal(weight.ravel(), np.arange(weight.size)))


def _last_convolutions(output: ir.Value) -> list[ir.Value] | str:
    """Outputs of the convolutions first met when walking back, in the order of the operands (box first)."""
    found: list[ir.Value] = []
    seen: set[ir.Value] = set()
    stack = [output]
    while stack:
        value = stack.pop()
        if value in seen or value.const_value is not None:
            continue
        seen.add(value)
        node = value.producer()
        if node is None:
            return "the output depends on the input without a convolution between"
        if facts(node).kind in (Kind.CONVOLUTION, Kind.TRANSPOSED) and not _is_decode_arithmetic(node):
            found.append(value)
        else:
            stack.extend(operand for operand in reversed(node.inputs) if operand is not None)
    return found


def cut(model: ir.Model, values: Mapping[str, str], turned: Collection[str] = ()) -> None:
    """Make tensors the graph's outputs, in place.

    Args:
        model: prepared graph.
        values: new name to the name in the graph.
        turned: new names of tensors whose channels are last; a Transpose puts them first.
    """
    graph = model.graph
    known = {str(value.name): value for value in written(graph)}
    chosen = {new: _channels_first(graph, known[old]) if new in turned else known[old] for new, old in values.items()}
    graph.outputs.clear()
    graph.outputs.extend(chosen.values())
    remove_unused(model)
    taken = value_names(graph)
    for value in written(graph):  # the user may have called something else so
        if value.name in chosen and value is not chosen[value.name]:
            value.name = next(name for i in itertools.count() if (name := f"{value.name}_{i}") not in taken)
            taken.add(value.name)
    for name, value in chosen.items():
        value.name = name


def _channels_first(graph: ir.Graph, value: ir.Value) -> ir.Value:
    node = ir.node(Op.TRANSPOSE, [value], {"perm": [0, 3, 1, 2]}, name=f"{value.name}_to_NCHW")
    batch, height, width, channels = dims(value)
    node.outputs[0].shape, node.outputs[0].dtype = ir.Shape((batch, channels, height, width)), value.dtype
    graph.append(node)
    return node.outputs[0]


def remove_unused(model: ir.Model) -> None:
    """Drop nodes, functions and initializers that no output needs, in place."""
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)


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


@dataclass(frozen=True)
class Join:
    """What makes the outputs of the user's graph from those of a graph that was cut.

    Attributes:
        proto: float32 graph; its inputs are parts, outputs of the cut graph.
        outputs: names of the user's outputs, in order; those that ``proto`` does not make are outputs of the cut graph.
    """

    proto: onnx.ModelProto
    outputs: tuple[str, ...]

    @cached_property
    def _session(self) -> Any:
        return open_session(self.proto, 1, "basic")

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the outputs of the cut graph that are joined."""
        return tuple(value.name for value in self.proto.graph.input)

    def run(self, values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The user's outputs by name.

        Args:
            values: all outputs of the cut graph; the parts as real numbers.
        """
        made = [value.name for value in self.proto.graph.output]
        feed = {name: np.asarray(values[name], np.float32) for name in self.parts}
        found = {**values, **dict(zip(made, self._session.run(made, feed), strict=True))}
        return {name: found[name] for name in self.outputs}

    def describe(self, file: str) -> dict[str, Any]:
        """For a person or a program without onnxruntime, JSON-ready: the user's outputs, and the steps to them."""
        graph = self.proto.graph
        shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.output}
        steps = []
        for node in graph.node:
            constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
            steps.append(
                {
                    "op": node.op_type,
                    "inputs": list(node.input),
                    "output": node.output[0],
                    **{entry.name: helper.get_attribute_value(entry) for entry in node.attribute},
                    **{f"constant {n}": constants[n].tolist() for n in node.input
                       if n in constants and constants[n].size <= 16},
                }
            )  # fmt: skip
        outputs, parts = list(self.outputs), list(self.parts)
        return {"file": file, "outputs": outputs, "joined": shapes, "parts": parts, "steps": steps}


def opened(value: ir.Value) -> list[ir.Value] | None:
    """The computed operands of the node that writes a value; ``None`` where :class:`Join` cannot take that node."""
    node = value.producer()
    if node is None:
        return None
    computed = [operand for _, operand in computed_inputs(node)]
    entry = facts(node)
    simple = entry.whole or entry.shifts_or_scales
    return computed if entry.kind is Kind.JOIN or (simple and len(computed) == 1) else None


def cut_before(model: ir.Model, parts: Mapping[str, Sequence[str]]) -> tuple[ir.Model, Join]:
    """Cut a copy of a graph.

    Args:
        model: prepared graph; not changed.
        parts: for each output that is cut, the names of the float32 values where :func:`opened` nodes lead from.

    Returns:
        The graph whose outputs are the parts and the other outputs, and what joins them.
    """
    copy = model.clone()
    graph = copy.graph
    values = {str(value.name): value for value in written(graph)}
    outputs = tuple(str(value.name) for value in graph.outputs)
    names = dict.fromkeys(part for output in outputs for part in parts.get(output, (output,)))
    graph.outputs.clear()
    graph.outputs.extend(values[name] for name in names)
    remove_unused(copy)
    return copy, Join(_joining(model, parts, outputs), outputs)


def _joining(model: ir.Model, parts: Mapping[str, Sequence[str]], outputs: Sequence[str]) -> onnx.ModelProto:
    """The nodes between the parts and the outputs."""
    graph = with_data(ir.to_proto(model)).graph  # it outlives the model
    makers = {output: node for node in graph.node for output in node.output}
    ends = {part for group in parts.values() for part in group}
    wanted: set[str] = set()
    stack = list(parts)
    while stack:
        node = makers[stack.pop()]
        if node.output[0] not in wanted:
            wanted.add(node.output[0])
            stack.extend(name for name in node.input if name in makers and name not in ends)
    nodes = [node for node in graph.node if node.output[0] in wanted]
    read = {name for node in nodes for name in node.input}
    shapes = {str(value.name): dims(value) for value in written(model.graph)}
    infos = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in {*ends, *parts}}
    joining = helper.make_graph(
        nodes,
        "join",
        [infos[name] for name in dict.fromkeys(part for group in parts.values() for part in group) if name in read],
        [infos[name] for name in outputs if name in parts],
        [tensor for tensor in graph.initializer if tensor.name in read],
    )
    opset = helper.make_opsetid("", model.opset_imports[""])
    return helper.make_model(joining, opset_imports=[opset], ir_version=model.ir_version, producer_name="narrowcast")
