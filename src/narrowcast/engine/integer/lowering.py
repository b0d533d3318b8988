"""Graph and plan to the exact integer graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from narrowcast.base.errors import UserError
from narrowcast.chips.schema import Target
from narrowcast.engine.integer.context import Context, Proof
from narrowcast.engine.integer.elementwise import (
    lower_add,
    lower_clip,
    lower_divide,
    lower_extreme,
    lower_fixed_clip,
    lower_multiply,
    lower_real,
)
from narrowcast.engine.integer.moving import copy_node, lower_concat, lower_linear_resize, lower_moving, lower_pad
from narrowcast.engine.integer.products import (
    constant_product,
    dynamic_product,
    lower_average_pool,
    lower_fixed_mean,
    lower_global_average,
    lower_reduce,
)
from narrowcast.engine.integer.tables import lower_softmax, lower_table
from narrowcast.engine.integer.values import Integers, Reals, quantize
from narrowcast.ops.facts import Kind, facts
from narrowcast.ops.net import Builder, Op, constant_of, dims, node_names, value_names, with_outputs
from narrowcast.ops.units import DOMAIN, inline_units
from narrowcast.plan.types import Encoding, Plan

__all__ = ["IntegerGraph", "lower_integer"]


@dataclass(frozen=True)
class IntegerGraph:
    """An ordinary ONNX graph that computes the chip's integers.

    Attributes:
        proto: the graph. Its input is the float image as in the float model, or integers if so asked; its outputs
            have the plan's integer types, or are float32 where the plan has no encoding.
        inputs: graph input to its encoding, ``None`` for a float network without one.
        outputs: graph output to its encoding, ``None`` for a float output.
        tensors: value name, or edge key of a requantized input, to the float32 tensor of ``proto`` that holds
            its integers.
        encodings: the same keys to what the integers mean.
        proofs: one for each sum of products.
        notes: for a person: nodes that needed splitting, accumulators beyond the chip's.
    """

    proto: onnx.ModelProto
    inputs: dict[str, Encoding | None]
    outputs: dict[str, Encoding | None]
    tensors: dict[str, str]
    encodings: dict[str, Encoding]
    proofs: tuple[Proof, ...]
    notes: tuple[str, ...]

    def with_all_tensors(self) -> onnx.ModelProto:
        """A copy of the graph that also gives every integer tensor out, in floats, under its name in the graph."""
        return with_outputs(self.proto, self.tensors.values())


Rule = Callable[[Context, ir.Node], None]


def _product(context: Context, node: ir.Node) -> None:
    constant = facts(node).is_weighted or constant_of(node.inputs[1]) is not None
    result = constant_product(context, node) if constant else dynamic_product(context, node)
    context.store(node.outputs[0], result)


def _resize(context: Context, node: ir.Node) -> None:
    nearest = node.attributes.get_string("mode", "nearest") == "nearest"
    (lower_moving if nearest else lower_linear_resize)(context, node)


_RULES: dict[Kind, Rule] = {
    Kind.CONVOLUTION: _product,
    Kind.TRANSPOSED: _product,
    Kind.LINEAR: _product,
    Kind.MATRIX: _product,
    Kind.FUNCTION: lower_table,
    Kind.CLIP: lower_clip,
    Kind.TURN: lower_moving,
    Kind.MOVE: lower_moving,
    Kind.JOIN: lower_concat,
    Kind.PAD: lower_pad,
    Kind.SUM: lower_add,
    Kind.DIFFERENCE: lower_add,
    Kind.MULTIPLY: lower_multiply,
    Kind.DIVIDE: lower_divide,
    Kind.LARGER: lower_extreme,
    Kind.SMALLER: lower_extreme,
    Kind.AVERAGE_POOL: lower_average_pool,
    Kind.GLOBAL_AVERAGE: lower_global_average,
    Kind.MAX_POOL: lower_moving,
    Kind.GLOBAL_MAX: lower_moving,
    Kind.MEAN: lower_reduce,
    Kind.TOTAL: lower_reduce,
    Kind.LARGEST: lower_reduce,
    Kind.LEAST: lower_reduce,
    Kind.SOFTMAX: lower_softmax,
    Kind.RESIZE: _resize,
    Kind.REAL: lower_real,
}


#: Where a chip with fixed-point multipliers computes in another way.
_FIXED_RULES: dict[Kind, Rule] = {
    **dict.fromkeys((Kind.GLOBAL_AVERAGE, Kind.MEAN, Kind.TOTAL), lower_fixed_mean),
    Kind.CLIP: lower_fixed_clip,
}


def lower_integer(model: ir.Model, plan: Plan, target: Target, *, integer_input: bool = False) -> IntegerGraph:
    """Lower a prepared graph to the integers that the chip computes.

    Tensors hold integer values in float32, so that onnxruntime's ordinary kernels run them; every sum of products is
    proven exact (:mod:`narrowcast.engine.integer.context`).

    Args:
        model: prepared graph; not changed.
        plan: its encodings, made for ``target``.
        target: the rounding, widths and tables of the chip.
        integer_input: the graph takes the quantized image instead of the float one.

    Returns:
        The graph, made of standard operators only, in the model's own opset.

    Raises:
        UserError: an operator without an integer rule, a plan without a needed encoding or for another target, an
            accumulator that cannot be summed exactly.
    """
    if plan.target != target.name:
        raise UserError(f"the plan was made for {plan.target}, not for {target.name}", "make the plan again")
    graph = model.graph
    builder = Builder(model.opset_imports[""], value_names(graph), node_names(graph))
    context = Context(builder, graph, plan, target)
    inputs = [_lower_input(context, value, integer_input) for value in graph.inputs]
    used = [(node, value) for node in graph for value in node.inputs if value is not None]
    last = {id(value): node for node, value in used if not value.is_graph_output()}
    for node in graph:
        _lower_node(context, node)
        for value in node.inputs:
            if value is not None and last.get(id(value)) is node:
                context.values.pop(str(value.name), None)  # a sum has its weights in 32 bits
    outputs = [_lower_output(context, value) for value in graph.outputs]
    context.values.clear()  # sums and context hold each other
    return IntegerGraph(
        proto=_assemble(model, context, inputs, outputs),
        inputs={str(value.name): context.encoding(value) for value in graph.inputs},
        outputs={str(value.name): context.encoding(value) for value in graph.outputs},
        tensors=context.tensors,
        encodings=context.encodings,
        proofs=tuple(context.proofs),
        notes=(*context.notes, *_proof_notes(context)),
    )


def _lower_input(context: Context, value: ir.Value, integer_input: bool) -> onnx.ValueInfoProto:
    name, shape, encoding = str(value.name), dims(value), context.encoding(value)
    if encoding is None:
        context.values[name] = Reals(name, shape)
    elif integer_input:
        integers = context.builder.cast(name, "float", output=context.name(value))
        context.store(value, Integers(integers, encoding, shape, encoding.qmin, encoding.qmax))
        return helper.make_tensor_value_info(name, getattr(TensorProto, encoding.dtype.upper()), shape)
    else:
        real = Reals(name, shape)
        context.store(value, quantize(context.builder, real, encoding, context.target, context.name(value)))
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _lower_output(context: Context, value: ir.Value) -> onnx.ValueInfoProto:
    name, shape, encoding = str(value.name), dims(value), context.encoding(value)
    current = context.values[name]
    if isinstance(current, Integers) and encoding is not None:
        context.builder.cast(current.name, encoding.dtype, output=name)
        return helper.make_tensor_value_info(name, getattr(TensorProto, encoding.dtype.upper()), shape)
    real = context.reals(value)
    if real is not None and real.name != name:
        context.builder.add(Op.IDENTITY, [real.name], output=name)
    kind = TensorProto.FLOAT if value.dtype is None else int(value.dtype)  # whole numbers and truth values as they are
    return helper.make_tensor_value_info(name, kind, shape)


def _lower_node(context: Context, node: ir.Node) -> None:
    if _is_float(context, node):
        _copy_float(context, node)
    elif (rule := _rule(context, node)) is not None:
        rule(context, node)
    else:
        remedy = "pin it to float32" if context.target.float_nodes else "rewrite the model without it"
        raise UserError(f"{node.name}: there is no integer rule for {node.op_type}", remedy)


def _rule(context: Context, node: ir.Node) -> Rule | None:
    kind = facts(node).kind
    is_fixed = context.target.requantize.is_fixed_point
    return _FIXED_RULES[kind] if is_fixed and kind in _FIXED_RULES else _RULES.get(kind)


def _is_float(context: Context, node: ir.Node) -> bool:
    """Whether a node computes real numbers: placed so, fed by floats, or the float end of a network."""
    placement = context.plan.nodes.get(str(node.name))
    if placement is None:
        raise UserError(f"the plan does not place {node.name} ({node.op_type})", "make the plan again")
    if placement.type == "float32":
        return True
    current = [context.values.get(str(value.name)) for value in node.inputs if value is not None]
    computed = [entry for entry in current if entry is not None]
    encoded = all(context.encoding(value) is not None for value in node.outputs)
    if any(not isinstance(entry, Integers) for entry in computed):
        fused = facts(node).is_clip and encoded and context.is_fused(node.inputs[0])
        return not fused
    return not encoded and not facts(node).waits


def _copy_float(context: Context, node: ir.Node) -> None:
    """A node on real numbers; its outputs are quantized where the plan encodes them."""
    inputs = [context.reals(value) for value in node.inputs]
    names = [context.builder.fresh(f"{value.name}_real") for value in node.outputs]
    copy_node(context, node, ["" if entry is None else entry.name for entry in inputs], names)
    for value, name in zip(node.outputs, names, strict=True):
        context.store(value, Reals(name, dims(value)))


def _proof_notes(context: Context) -> list[str]:
    notes = [f"{proof.node}: {proof.text}" for proof in context.proofs if proof.double]
    wide: dict[int, list[str]] = {}
    for proof in context.proofs:
        bits = context.target.accumulator.bits_for(context.plan.nodes[proof.node].type)
        if proof.bound > 2 ** (bits - 1):
            wide.setdefault(bits, []).append(proof.node)
    for bits, nodes in wide.items():
        notes.append(f"{len(nodes)} nodes could exceed a {bits}-bit accumulator in the worst case, e.g. {nodes[0]}")
    return notes


def _assemble(
    model: ir.Model, context: Context, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
) -> onnx.ModelProto:
    builder = context.builder
    graph = helper.make_graph(builder.nodes, "integer", inputs, outputs, builder.initializers)
    opsets = [helper.make_opsetid("", builder.opset)]
    needed = any(node.domain == DOMAIN for node in builder.nodes)
    functions = [ir.serde.serialize_function(function) for function in model.functions.values()] if needed else []
    if needed:
        opsets.append(helper.make_opsetid(DOMAIN, 1))
    proto = helper.make_model(
        graph,
        opset_imports=opsets,
        functions=functions,
        ir_version=min(model.ir_version, 10),
        producer_name="narrowcast",
    )
    return inline_units(proto) if needed else proto
