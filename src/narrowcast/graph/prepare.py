"""Make a graph tidy: simplify, fold, recognise units, name everything."""

from __future__ import annotations

import contextlib
import gc
import io
import itertools

import onnx
import onnx.shape_inference
import onnx_ir as ir
from onnx_ir.passes import common

from narrowcast.base.errors import UserError
from narrowcast.base.reading import reading
from narrowcast.graph.ends import remove_unused
from narrowcast.graph.files import only_float32
from narrowcast.graph.forms import explicit_splits, fold_batch_normalization, unify_forms
from narrowcast.graph.run import hold, hold_weights, with_data
from narrowcast.ops.net import all_names, constant_of, constant_value, copied, node_names, value_names
from narrowcast.ops.units import fuse_units

__all__ = ["as_it_is", "tidy"]

#: What the QDQ graph appends to the name of a value for the nodes and values that it adds.
_DERIVED = ("quantized", "dequantized", "unquantized")


def tidy(proto: onnx.ModelProto, source: str) -> tuple[ir.Model, tuple[str, ...]]:
    """Simplify a model with static input shapes.

    Args:
        proto: a checked model; not changed.
        source: file name, for messages.

    Returns:
        The graph, and one sentence for each thing done.

    Raises:
        UserError: the simplifier fails, or a value keeps a dynamic shape.
    """
    before = len(proto.graph.node)
    with reading(source, "export it again with opset 17", "cannot be simplified"):
        slim, kept = hold(_simplify(proto))
        model = ir.from_proto(onnx.shape_inference.infer_shapes(slim, data_prop=True))
        hold_weights(model)
        del kept
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        unify_forms(model)
    folded = fold_batch_normalization(model)
    units = fuse_units(model)
    remove_unused(model)
    _name_everything(model.graph)
    _free_derived_names(model.graph, source)
    _own_constants(model.graph)
    _require_static_shapes(model.graph, source)
    hold_weights(model)  # those that folding made
    after = model.graph.num_nodes()
    return model, (f"simplified from {before} to {after} nodes, {units} activation patterns recognised", *folded)


def as_it_is(proto: onnx.ModelProto, source: str) -> tuple[ir.Model, tuple[str, ...]]:
    """A translated model: exact integers, some in float64, which simplifying would turn into float32."""
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    _name_everything(model.graph)
    _require_static_shapes(model.graph, source)
    return model, ()


def _simplify(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnxslim

    def slim(**options: bool) -> onnx.ModelProto:
        copy = with_data(proto)
        if copy is proto:  # it changes what it is given
            copy = copied(proto)
        only_float32(copy)
        # equal weights stay apart: each reader gets an encoding of its own
        return onnxslim.slim(copy, skip_optimizations=["weight_tying"], **options)

    with contextlib.redirect_stdout(io.StringIO()):  # it reports on stdout, which belongs to --json
        try:
            found = slim()
        except Exception:  # its shape inference does not know every form (Resize with axes); that of ONNX comes anyway
            found = slim(no_shape_infer=True)
    if not isinstance(found, onnx.ModelProto):
        raise UserError("onnxslim returned no model", "please report the model")
    only_float32(found)
    explicit_splits(found)
    _forget()
    return found


def _forget() -> None:
    """The simplifier's patterns remember what they matched last, and through it the graph with all its weights."""
    from onnxslim.core.pattern.registry import DEFAULT_FUSION_PATTERNS

    for entry in DEFAULT_FUSION_PATTERNS.values():
        for matcher in entry if isinstance(entry, list) else [entry]:
            for name in matcher.pattern_dict.keys() & vars(matcher).keys():
                delattr(matcher, name)
    gc.collect()  # its graphs are circles


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


def _free_derived_names(graph: ir.Graph, source: str) -> None:
    """Rename nodes and inner values whose name the QDQ graph will derive from that of another value."""
    values = all_names(graph)
    derived = {f"{name}_{word}" for name in values for word in _DERIVED}
    taken = values | node_names(graph)

    def free(stem: str) -> str:
        name = next(name for i in itertools.count() if (name := f"{stem}_{i}") not in taken | derived)
        taken.add(name)
        return name

    ends = {str(value.name) for value in [*graph.inputs, *graph.outputs]}
    for end, word in itertools.product(sorted(ends), _DERIVED):
        if f"{end}_{word}" in ends:
            raise UserError(f"{source} has the inputs or outputs {end} and {end}_{word}", "export it with other names")
    for node in graph:
        if node.name in derived:
            node.name = free(node.op_type)
        for value in node.outputs:
            clashes = value.name in derived or any(f"{value.name}_{word}" in ends for word in _DERIVED)
            if clashes and value.name not in ends:
                value.name = free(f"{node.name}_output")


def _own_constants(graph: ir.Graph) -> None:
    """Give every operand a constant of its own, as it has an encoding of its own.

    A real-valued constant with several readers becomes one a reader, named ``<node>.operand<index>``: the same names
    whether or not an exporter merged equal constants. Whole numbers (shapes, axes) have no encoding and stay shared.
    """
    names = value_names(graph)
    for value in list(graph.initializers.values()):
        uses = sorted(value.uses(), key=lambda use: (str(use.node.name), use.idx))
        array = constant_of(value)
        if len(uses) < 2 or array is None or array.dtype.kind != "f":
            continue
        for use in uses:
            own = constant_value(graph, f"{use.node.name}.operand{use.idx}", array, names)
            own.shape, own.type = value.shape, value.type
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
