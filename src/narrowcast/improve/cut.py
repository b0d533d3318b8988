"""Cut a graph into what some of its inputs reach and what comes before, so that only the former runs again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx

__all__ = ["Parts", "cut"]


@dataclass(frozen=True)
class Parts:
    """Two graphs that compute together what one did.

    Attributes:
        before: reads the image and gives :attr:`between` and the outputs that nothing reaches.
        after: reads the parameters and :attr:`between`; gives the other outputs.
        between: tensors handed over.
        early: outputs that ``before`` gives.
        late: outputs that ``after`` gives.
    """

    before: onnx.ModelProto
    after: onnx.ModelProto
    between: tuple[str, ...]
    early: tuple[str, ...]
    late: tuple[str, ...]


def cut(proto: onnx.ModelProto, parameters: Collection[str], outputs: Sequence[str]) -> Parts:
    """Cut behind what the parameters do not reach.

    Args:
        proto: nodes in topological order, no subgraphs.
        parameters: inputs of the graph that change from run to run.
        outputs: tensors to give out.
    """
    reached = set(parameters)
    fixed = {"", *(tensor.name for tensor in proto.graph.initializer)}
    for node in proto.graph.node:
        if reached.intersection(node.input):
            reached.update(node.output)
        elif fixed.issuperset(node.input):
            fixed.update(node.output)
    late = tuple(name for name in outputs if name in reached)
    early = tuple(name for name in outputs if name not in reached)
    wanted: set[str] = set(late)
    between: list[str] = []
    for node in reversed(proto.graph.node):
        if not wanted.intersection(node.output):
            continue
        if not reached.intersection(node.output) and not fixed.issuperset(node.output):
            between += [name for name in node.output if name in wanted and name not in between]
        else:
            wanted.update(node.input)
    images = [value.name for value in proto.graph.input if value.name not in parameters]
    between = [*(name for name in images if name in wanted), *reversed(between)]
    before = _part(proto, images, [*between, *early], [])
    after = _part(proto, [*between, *(p for p in parameters if p in wanted)], late, between)
    return Parts(before, after, tuple(between), early, late)


def _part(
    proto: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str], given: Collection[str]
) -> onnx.ModelProto:
    """The nodes that some outputs need, with other inputs."""
    known = {value.name: value for value in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)}
    needed, nodes = set(outputs) - set(given), []
    for node in reversed(proto.graph.node):
        if needed.intersection(node.output) and not set(given).issuperset(node.output):
            nodes.append(node)
            needed.update(name for name in node.input if name not in given)
    part = onnx.ModelProto(ir_version=proto.ir_version)
    part.opset_import.extend(proto.opset_import)
    part.functions.extend(proto.functions)
    part.graph.name = "part"
    part.graph.node.extend(reversed(nodes))
    part.graph.initializer.extend(tensor for tensor in proto.graph.initializer if tensor.name in needed)
    for name in inputs:
        kind = known[name].type.tensor_type.elem_type if name in known else onnx.TensorProto.FLOAT
        part.graph.input.append(onnx.helper.make_tensor_value_info(name, kind or onnx.TensorProto.FLOAT, None))
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in inputs)
    return part
