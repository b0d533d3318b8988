"""Cut a graph, so that only what changed runs again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import onnx

__all__ = ["cut_behind", "fixed_tensors", "part_of"]


def fixed_tensors(proto: onnx.ModelProto) -> set[str]:
    """Tensors that no input reaches, such as dequantized weights: fed as inputs they could not be prepacked."""
    fixed = {"", *(tensor.name for tensor in proto.graph.initializer)}
    for node in proto.graph.node:
        if fixed.issuperset(node.input):
            fixed.update(node.output)
    return fixed


def part_of(
    proto: onnx.ModelProto, outputs: Sequence[str], stop: Callable[[str], bool]
) -> tuple[onnx.ModelProto, list[str]]:
    """The nodes that some outputs need.

    Args:
        proto: nodes in topological order, no subgraphs.
        outputs: tensors that nodes compute.
        stop: whether a tensor becomes an input instead of being computed.

    Returns:
        The part, and the names of its inputs.
    """
    makers = {name: node for node in proto.graph.node for name in node.output}
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs: dict[str, None] = {}
    kept: set[str] = set()
    used: set[str] = set()
    queue = list(outputs)
    while queue:
        name = queue.pop()
        if not name or name in inputs or name in kept or name in used:
            continue
        if name in constants:
            used.add(name)
        elif stop(name) or name not in makers:
            inputs[name] = None
        else:
            kept.update(makers[name].output)
            queue.extend(makers[name].input)
    part = onnx.ModelProto(ir_version=proto.ir_version)
    part.opset_import.extend(proto.opset_import)
    part.functions.extend(proto.functions)
    part.graph.name = "part"
    part.graph.node.extend(node for node in proto.graph.node if kept.intersection(node.output))
    part.graph.initializer.extend(tensor for tensor in proto.graph.initializer if tensor.name in used)
    known = {value.name: value for value in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)}
    for name in inputs:
        # every tensor between the nodes of a lowered graph is float, unless it says otherwise
        kind = known[name].type.tensor_type.elem_type if name in known else onnx.TensorProto.FLOAT
        part.graph.input.append(onnx.helper.make_tensor_value_info(name, kind or onnx.TensorProto.FLOAT, None))
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return part, list(inputs)


def cut_behind(
    proto: onnx.ModelProto, parameters: Collection[str], outputs: Sequence[str]
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A graph in two.

    Args:
        proto: nodes in topological order, no subgraphs.
        parameters: inputs of the graph that change from run to run.
        outputs: tensors to give out.

    Returns:
        What the parameters do not reach, and the rest, which reads them and what the first part gives.
    """
    reached, fixed = set(parameters), fixed_tensors(proto)
    for node in proto.graph.node:
        if reached.intersection(node.input):
            reached.update(node.output)
    images = {value.name for value in proto.graph.input} - set(parameters)
    late = [name for name in outputs if name in reached]
    after, entering = part_of(proto, late, lambda name: name not in reached and name not in fixed)
    between = [name for name in entering if name not in parameters]
    early = [name for name in dict.fromkeys([*between, *outputs]) if name not in images and name not in reached]
    return part_of(proto, early, images.__contains__)[0], after
