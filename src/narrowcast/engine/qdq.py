"""Graph and plan to standard QDQ ONNX, for onnxruntime, TensorRT, OpenVINO and everything that reads it.

Every tensor with an encoding is followed by QuantizeLinear and DequantizeLinear; weights and biases are stored as
integers behind a DequantizeLinear. Activation units such as SiLU are written out as standard operators, with
nothing quantized inside.

Inputs and outputs can be integers: the outermost QuantizeLinear and DequantizeLinear are removed then. And channels of
an output can have factors, folded into the last convolution and divided out again behind the chip. A chip gives an
output one scale, however different the ranges of its channels are. A factor a channel in the weights and the bias that
make the output costs nothing there, and whoever reads the integers reads them with a scale a channel: ``real = (integer
- zero point) * scale / factor``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from narrowcast.engine.integer.lowering import IntegerGraph
from narrowcast.ops.net import Op, constant_of, constant_value, copied, named, written
from narrowcast.ops.units import inline_units
from narrowcast.plan.types import Encoding, Plan, split_edge_key

#: 16-bit QuantizeLinear is standard from opset 21 on; onnxruntime has it in this domain before.
CONTRIB_DOMAIN = "com.microsoft"
_STANDARD_16_BIT_OPSET = 21
#: Prefixes of the graph inputs of tunable parameters.
SCALE_INPUT, ZERO_POINT_INPUT = "scale of ", "zero point of "


@dataclass
class _Lowering:
    """One run of :func:`lower_qdq`: the graph under construction and constants already made."""

    graph: ir.Graph
    plan: Plan
    opset: int
    constants: dict[tuple[str, Any], ir.Value] = field(default_factory=dict)
    uses_contrib: bool = False
    tunable: Mapping[str, str] = field(default_factory=dict)

    def parameters(self, encoding: Encoding, key: str = "") -> tuple[ir.Value, ir.Value]:
        """Scale and zero point: initializers shared between equal encodings, or graph inputs if ``key`` is tunable."""
        if key in self.tunable:
            return self._inputs(encoding, self.tunable[key])
        scale_key = ("scale", encoding.scale)
        if scale_key not in self.constants:
            scale = np.asarray(encoding.scale, np.float32)
            self.constants[scale_key] = self.constant(f"scale_{len(self.constants)}", scale)
        channels = len(encoding.scale) if isinstance(encoding.scale, tuple) else 0
        zero_key = ("zero_point", (encoding.dtype, encoding.zero_point, channels))
        if zero_key not in self.constants:
            zero = np.full((channels,) if channels else (), encoding.zero_point, encoding.dtype)
            self.constants[zero_key] = self.constant(f"zero_point_{len(self.constants)}", zero)
        return self.constants[scale_key], self.constants[zero_key]

    def _inputs(self, encoding: Encoding, parameter: str) -> tuple[ir.Value, ir.Value]:
        stems = (SCALE_INPUT, ZERO_POINT_INPUT)
        types = (ir.DataType.FLOAT, ir.DataType[encoding.dtype.upper()])
        for stem, kind in zip(stems, types, strict=True):
            if (stem, parameter) not in self.constants:
                value = ir.val(stem + parameter, dtype=kind, shape=[])
                self.graph.inputs.append(value)
                self.constants[stem, parameter] = value
        return self.constants[SCALE_INPUT, parameter], self.constants[ZERO_POINT_INPUT, parameter]

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        return constant_value(self.graph, name, array)

    def domain(self, encoding: Encoding) -> str:
        if encoding.dtype in ("int16", "uint16") and self.opset < _STANDARD_16_BIT_OPSET:
            self.uses_contrib = True
            return CONTRIB_DOMAIN
        return ""

    def node(self, op_type: str, x: ir.Value, encoding: Encoding, name: str, key: str = "") -> ir.Node:
        attributes = {"axis": encoding.axis} if encoding.axis is not None else None
        node = ir.node(
            op_type,
            [x, *self.parameters(encoding, key)],
            attributes=attributes,
            domain=self.domain(encoding),
            name=name,
            num_outputs=1,
        )
        output = node.outputs[0]
        output.name, output.shape = name, x.shape
        kind = encoding.dtype.upper() if op_type == Op.QUANTIZE else "FLOAT"
        output.type = ir.TensorType(ir.DataType[kind])
        return node

    def pair(self, x: ir.Value, encoding: Encoding, stem: str) -> list[ir.Node]:
        """QuantizeLinear and DequantizeLinear of ``x``; ``stem`` is the tensor's name or the edge's key."""
        quantize = self.node(Op.QUANTIZE, x, encoding, f"{stem}_quantized", stem)
        return [quantize, self.node(Op.DEQUANTIZE, quantize.outputs[0], encoding, f"{stem}_dequantized", stem)]


def lower_qdq(model: ir.Model, plan: Plan, tunable: Mapping[str, str] | None = None) -> tuple[onnx.ModelProto, bool]:
    """Lower a prepared graph.

    Args:
        model: prepared graph; not changed.
        plan: its encodings.
        tunable: tensor names and edge keys whose scale and zero point become graph inputs, for searching without
            making a session again, with the name of their parameter (:data:`SCALE_INPUT` + name and so on).

    Returns:
        The QDQ model, valid under ``onnx.checker`` (except for 16-bit operators of the contrib domain), with the
        graph's own input and output names, float32 on both ends; and whether it uses the contrib domain.
    """
    copy = model.clone()
    image = copy.graph.inputs[0]
    state = _Lowering(copy.graph, plan, copy.opset_imports[""], tunable=tunable or {})
    _quantize_parameters(state)
    _quantize_activations(state, image)
    _requantize_edges(state)
    if state.uses_contrib:
        copy.opset_imports[CONTRIB_DOMAIN] = 1
    copy.graph.sort()
    proto = inline_units(ir.to_proto(copy))
    for value in copy.graph.initializers.values():
        value.const_value = None  # a graph refers to itself: it goes when the collector comes, its data now
    return proto, state.uses_contrib


def _quantize_parameters(state: _Lowering) -> None:
    for value in list(state.graph.initializers.values()):
        encoding = state.plan.tensors.get(str(value.name))
        array = constant_of(value)
        if encoding is None or array is None:
            continue
        name = str(value.name)
        if encoding.dtype == "int32":
            encoding = _fitting(encoding, array)
        users = list(value.uses())
        stored = state.constant(f"{name}_quantized", encoding.quantize(array))
        dequantize = state.node(Op.DEQUANTIZE, stored, encoding, f"{name}_dequantized")
        state.graph.insert_before(users[0].node, dequantize)
        value.replace_all_uses_with(dequantize.outputs[0])
        del state.graph.initializers[name]


def _fitting(encoding: Encoding, array: NDArray[Any]) -> Encoding:
    """The encoding of a bias, with its scale doubled until int32 holds the values.

    Chips add the biases of 16-bit nodes with up to 40 bits, ONNX stores them in 32; 31 bits of each are kept.
    """
    excess = float(np.abs(array / encoding.broadcast(array.ndim)).max(initial=0.0)) / (encoding.qmax - 1)
    if excess <= 1:
        return encoding
    factor = 2.0 ** math.ceil(math.log2(excess))
    scale = encoding.scale
    return replace(encoding, scale=tuple(s * factor for s in scale) if isinstance(scale, tuple) else scale * factor)


def _quantize_activations(state: _Lowering, image: ir.Value) -> None:
    for value in [image, *written(state.graph)]:
        encoding = state.plan.tensors.get(str(value.name))
        if encoding is None or encoding.dtype == "int32" or value.name is None:
            continue  # an accumulator is exact in float
        users = list(value.uses())
        producer = value.producer()
        if producer is not None and producer.op_type in (Op.DEQUANTIZE, Op.QUANTIZE):
            continue
        is_output = value.is_graph_output()
        name = value.name
        if is_output:
            value.name = f"{name}_unquantized"
        quantize, dequantize = state.pair(value, encoding, name)
        result = dequantize.outputs[0]
        if producer is None:
            state.graph.insert_before(state.graph[0], [quantize, dequantize])
        else:
            state.graph.insert_after(producer, [quantize, dequantize])
        for use in users:
            use.node.replace_input_with(use.idx, result)
        if is_output:
            result.name = name
            for index, output in enumerate(state.graph.outputs):
                if output is value:
                    state.graph.outputs[index] = result


def _requantize_edges(state: _Lowering) -> None:
    nodes = named(state.graph)
    for key, encoding in state.plan.edges.items():
        node_name, index = split_edge_key(key)
        node = nodes[node_name]
        value = node.inputs[index]
        if value is None:
            raise AssertionError(f"{key} names an absent input")
        pair = state.pair(value, encoding, key)
        state.graph.insert_before(node, pair)
        node.replace_input_with(index, pair[1].outputs[0])


#: Largest float32 below 2^31, so that a cast to int32 cannot overflow.
_LARGEST = 2147483520.0


def with_integer_outputs(proto: onnx.ModelProto, encodings: Mapping[str, Encoding]) -> onnx.ModelProto:
    """Let outputs leave as integers.

    Args:
        proto: from :func:`narrowcast.engine.lower_qdq`; not changed.
        encodings: graph output to its encoding in the plan.

    Returns:
        A copy in which these outputs keep their names and have the encodings' types. Outputs that the plan keeps in
        accumulators, which are real numbers in a QDQ graph, are divided by their scales and rounded half to even.
    """
    copy = copied(proto)
    graph = copy.graph
    for output in graph.output:
        encoding = encodings.get(output.name)
        if encoding is None:
            continue
        maker = next(node for node in graph.node if output.name in node.output)
        if encoding.dtype == "int32" or maker.op_type != Op.DEQUANTIZE:
            _append_rounding(graph, output.name, encoding, len(output.type.tensor_type.shape.dim))
        else:
            _expose_quantized(graph, maker, output.name)
        output.type.tensor_type.elem_type = getattr(TensorProto, encoding.dtype.upper())
    _drop_unused(graph)
    return copy


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def _expose_quantized(graph: onnx.GraphProto, dequantize: onnx.NodeProto, name: str) -> None:
    quantized = dequantize.input[0]
    _rename(graph, name, f"{name}_dequantized")
    _rename(graph, quantized, name)
    if not any(f"{name}_dequantized" in node.input for node in graph.node):
        graph.node.remove(dequantize)


def _append_rounding(graph: onnx.GraphProto, name: str, encoding: Encoding, rank: int) -> None:
    real = f"{name}_real"
    _rename(graph, name, real)
    bounds = max(float(encoding.qmin), -_LARGEST), min(float(encoding.qmax), _LARGEST)
    constants = {
        "scale": encoding.broadcast(rank).astype(np.float32),
        "zero": np.float32(encoding.zero_point),
        "low": np.float32(bounds[0]),
        "high": np.float32(bounds[1]),
    }
    for stem, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"{real}_{stem}"))
    steps = [(Op.DIV, [f"{real}_scale"]), (Op.ROUND, []), (Op.ADD, [f"{real}_zero"])]
    steps.append((Op.CLIP, [f"{real}_low", f"{real}_high"]))
    current = real
    for op_type, operands in steps:
        following = f"{real}_{op_type.lower()}"
        graph.node.append(helper.make_node(op_type, [current, *operands], [following], name=following))
        current = following
    kind = getattr(TensorProto, encoding.dtype.upper())
    graph.node.append(helper.make_node(Op.CAST, [current], [name], name=f"{name}_as_integers", to=kind))


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def with_integer_input(proto: onnx.ModelProto, encoding: Encoding) -> onnx.ModelProto:
    """Let the image enter as integers.

    Args:
        proto: from :func:`narrowcast.engine.lower_qdq`; not changed.
        encoding: of the graph's first input in the plan.

    Raises:
        ValueError: the input is not quantized first.
    """
    copy = copied(proto)
    graph, image = copy.graph, copy.graph.input[0]
    readers = [node for node in graph.node if image.name in node.input]
    if len(readers) != 1 or readers[0].op_type != Op.QUANTIZE:
        raise ValueError(f"{image.name} is not quantized first")
    quantized = readers[0].output[0]
    graph.node.remove(readers[0])
    for node in graph.node:
        node.input[:] = [image.name if name == quantized else name for name in node.input]
    image.type.tensor_type.elem_type = getattr(TensorProto, encoding.dtype.upper())
    _drop_unused(graph)
    return copy


#: Output name to its factors, (C,) float64, above 0.
Factors = Mapping[str, NDArray[np.float64]]


def factored(encoding: Encoding, factors: NDArray[Any]) -> Encoding:
    """How an output that left with factors is read: the per-tensor scale becomes one a channel of axis 1."""
    scales = np.broadcast_to(encoding.scales / np.asarray(factors, np.float64), np.shape(factors))
    return replace(encoding, scale=tuple(float(scale) for scale in scales), axis=1)


def with_factors(graph: IntegerGraph, factors: Factors) -> IntegerGraph:
    """The same integers, whose outputs mean what the float model's outputs mean.

    Args:
        graph: lowered from a model into which the factors are folded.
        factors: of some outputs.
    """
    outputs = dict(graph.outputs)
    for name, values in factors.items():
        encoding = outputs[name]
        if encoding is not None:
            outputs[name] = factored(encoding, values)
    return replace(graph, outputs=outputs)


def undo_factors(proto: onnx.ModelProto, factors: Factors) -> onnx.ModelProto:
    """A graph whose real outputs are divided by the factors; itself where there are none.

    Args:
        proto: a graph with float outputs (1, C, ...), lowered from a model into which the factors are folded.
        factors: of some outputs.
    """
    if not factors:
        return proto
    copy = copied(proto)
    ranks = {output.name: len(output.type.tensor_type.shape.dim) for output in copy.graph.output}
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}
    for name, values in factors.items():
        last = next(node for node in copy.graph.node if name in node.output)
        if last.op_type == Op.DEQUANTIZE and last.input[1] in constants:
            _dequantize_per_channel(copy.graph, last, constants, values)
        else:
            _divide(copy.graph, name, values, ranks[name])
    return copy


def _dequantize_per_channel(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    constants: Mapping[str, onnx.TensorProto],
    factors: NDArray[np.float64],
) -> None:
    """Put the factors into the scale of the last DequantizeLinear."""
    scale = onnx.numpy_helper.to_array(constants[node.input[1]]).astype(np.float64)
    zero = onnx.numpy_helper.to_array(constants[node.input[2]])
    stem = f"{node.output[0]}_channels"
    new = {
        f"{stem}_scale": (scale / factors).astype(np.float32),
        f"{stem}_zero_point": np.full(len(factors), zero, zero.dtype),
    }
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in new.items())
    node.input[1:3] = list(new)
    node.attribute.append(onnx.helper.make_attribute("axis", 1))


def _divide(graph: onnx.GraphProto, name: str, factors: NDArray[np.float64], rank: int) -> None:
    scaled, inverse = f"{name}_with_factors", f"{name}_inverse_factors"
    for node in graph.node:
        node.output[:] = [scaled if output == name else output for output in node.output]
        node.input[:] = [scaled if entry == name else entry for entry in node.input]
    array = (1 / np.asarray(factors, np.float64)).astype(np.float32).reshape(-1, *[1] * (rank - 2))
    graph.initializer.append(onnx.numpy_helper.from_array(array, inverse))
    graph.node.append(onnx.helper.make_node(Op.MUL, [scaled, inverse], [name], name=f"{name}_undo_factors"))
