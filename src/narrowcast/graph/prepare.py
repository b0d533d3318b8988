"""Make a graph tidy: simplify, fold, recognise units, name everything."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import onnx
import onnx.shape_inference
import onnx_ir as ir
from onnx_ir.passes import common

from narrowcast.errors import UserError
from narrowcast.graph.exposure import remove_unused
from narrowcast.graph.units import constant_of, fuse_units

__all__ = ["tidy"]


def tidy(proto: onnx.ModelProto, source: str) -> tuple[ir.Model, tuple[str, ...]]:
    """Simplify a model with static input shapes.

    Args:
        proto: a checked model; not changed.
        source: file name, for messages.

    Returns:
        The graph, and one sentence for each thing done.

    Raises:
        UserError: a value keeps a dynamic shape.
    """
    before = len(proto.graph.node)
    slim = _simplify(proto)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(slim, data_prop=True))
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    folded = _fold_batch_normalization(model)
    units = fuse_units(model)
    remove_unused(model)
    _name_everything(model.graph)
    _own_constants(model.graph)
    _require_static_shapes(model.graph, source)
    after = model.graph.num_nodes()
    notes = [f"simplified from {before} to {after} nodes, {units} activation patterns recognised"]
    if folded:
        notes.append(f"{folded} BatchNormalization nodes became depthwise convolutions")
    return model, tuple(notes)


def _simplify(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnxslim

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    with contextlib.redirect_stdout(io.StringIO()):  # it reports on stdout, which belongs to --json
        # equal weights stay apart: each reader gets an encoding of its own
        slim = onnxslim.slim(copy, skip_optimizations=["weight_tying"])
    if not isinstance(slim, onnx.ModelProto):
        raise UserError("onnxslim returned no model", "please report the model")
    return slim


def _fold_batch_normalization(model: ir.Model) -> int:
    """onnxslim folds it into a preceding convolution; what is left becomes a depthwise 1x1 convolution."""
    graph = model.graph
    count = 0
    for node in list(graph):
        if node.op_type != "BatchNormalization" or len(_dims(node.outputs[0])) != 4:
            continue
        parameters = [constant_of(value) for value in node.inputs[1:5]]
        if any(array is None for array in parameters):
            continue
        gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in parameters)
        factor = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
        weight = ir.val(f"{node.name}.weight", const_value=ir.tensor(factor.astype(np.float32).reshape(-1, 1, 1, 1)))
        bias = ir.val(f"{node.name}.bias", const_value=ir.tensor((beta - mean * factor).astype(np.float32)))
        for value in (weight, bias):
            graph.register_initializer(value)
        conv = ir.node(
            "Conv", [node.inputs[0], weight, bias], attributes={"group": factor.size}, num_outputs=1, name=node.name
        )
        old, new = node.outputs[0], conv.outputs[0]
        new.name, new.shape, new.type = old.name, old.shape, old.type
        graph.insert_before(node, conv)
        for index, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[index] = new
        old.replace_all_uses_with(new)
        graph.remove(node, safe=True)
        count += 1
    return count


def _dims(value: ir.Value) -> list[object]:
    return list(value.shape) if value.shape is not None else []


def _name_everything(graph: ir.Graph) -> None:
    """Keep the export's names (people and hb_mapper configs know them); fill in missing and purely numeric ones."""
    seen: set[str] = set()
    counters: dict[str, int] = {}
    for node in graph:
        name = node.name or ""
        if not name or name.isdigit() or name in seen:
            while not name or name.isdigit() or name in seen:
                index = counters.get(node.op_type, 0)
                counters[node.op_type] = index + 1
                name = f"{node.op_type}_{index}"
            node.name = name
        seen.add(name)
    kept = {value.name for value in [*graph.inputs, *graph.outputs, *graph.initializers.values()]}
    used: set[str | None] = set(kept)
    for node in graph:
        for index, output in enumerate(node.outputs):
            if output.name in kept and output.is_graph_output():
                continue
            if not output.name or output.name.isdigit() or output.name in used:
                output.name = f"{node.name}_output_{index}"
            used.add(output.name)


def _own_constants(graph: ir.Graph) -> None:
    """Give every operand a constant of its own, as it has an encoding of its own.

    A real-valued constant with several readers becomes one a reader, named ``<node>.operand<index>``: the same names
    whether or not an exporter merged equal constants. Whole numbers (shapes, axes) have no encoding and stay shared.
    """
    names = {value.name for value in graph.initializers.values()}
    names |= {value.name for node in graph for value in node.outputs} | {value.name for value in graph.inputs}
    for value in list(graph.initializers.values()):
        uses = sorted(value.uses(), key=lambda use: (str(use.node.name), use.idx))
        array = constant_of(value)
        if len(uses) < 2 or array is None or array.dtype.kind != "f":
            continue
        for use in uses:
            name = f"{use.node.name}.operand{use.idx}"
            while name in names:
                name += "_"
            names.add(name)
            own = ir.val(name, const_value=ir.tensor(array, name=name))
            own.shape, own.type = value.shape, value.type
            graph.register_initializer(own)
            use.node.replace_input_with(use.idx, own)
        if not value.is_graph_output():
            del graph.initializers[str(value.name)]


def _require_static_shapes(graph: ir.Graph, source: str) -> None:
    for node in graph:
        for output in node.outputs:
            if output.shape is None or not all(isinstance(dim, int) for dim in output.shape):
                raise UserError(
                    f"{source}: the shape of {output.name} ({node.op_type} {node.name}) depends on the data",
                    "export the model with static shapes (dynamic=False) and without NMS (nms=False)",
                )
