"""Graph and plan to standard QDQ ONNX, for onnxruntime, TensorRT, OpenVINO and everything that reads it.

Every tensor with an encoding is followed by QuantizeLinear and DequantizeLinear; weights and biases are stored as
integers behind a DequantizeLinear. Activation units such as SiLU are written out as standard operators, with
nothing quantized inside.
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

from narrowcast.ops.builder import Op
from narrowcast.ops.net import constant_of, constant_value, named, written
from narrowcast.ops.units import inline_units
from narrowcast.plan.types import Encoding, Plan, split_edge_key

__all__ = ["CONTRIB_DOMAIN", "SCALE_INPUT", "ZERO_POINT_INPUT", "lower_qdq"]

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
    return inline_units(ir.to_proto(copy)), state.uses_contrib


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
