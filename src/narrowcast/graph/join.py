"""A graph cut before the operators that only put its outputs together; these are a small float graph of their own.

Decoders end in Concat: pixels and probabilities share a tensor, and no 8-bit scale holds both. Cut before it, each part
has its own scale, and the parts are joined in float where the outputs are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper

from narrowcast.graph.exposure import remove_unused
from narrowcast.graph.run import open_session
from narrowcast.graph.weights import with_data
from narrowcast.ops.facts import Kind, facts
from narrowcast.ops.net import computed_inputs, dims, written

__all__ = ["Join", "cut_before", "opened"]


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
