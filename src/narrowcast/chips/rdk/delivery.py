"""A plan inside the float graph, as hb_mapper takes it with ``calibration_type: load``: ranges, weights and 16 bits.

Measured with hb_mapper 1.24.3 (docs/rdk-x5.md): QuantizeLinear and DequantizeLinear with one scale behind a tensor give
it 8 bits and exactly that scale. A node ``HzCalibration`` of the tool's own domain gives it 16 bits, or, behind a
weight, the scale of each output channel. Nodes that the plan runs as one unit have nothing between them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from narrowcast.base.errors import UserError
from narrowcast.bundle import Bundle
from narrowcast.engine.integer.fixed import fixed_point, half_step, tool_scale
from narrowcast.ops.facts import Kind, facts
from narrowcast.ops.functions import clip_bounds
from narrowcast.ops.net import (
    Op,
    constant_at,
    constant_of,
    constant_value,
    copied,
    dims,
    named,
    only_reader,
    put_in_place,
    set_constant,
    unused,
)
from narrowcast.plan import Encoding, Plan
from narrowcast.plan.drafting import operand_encoding, read_encoding, written_value
from narrowcast.plan.types import split_edge_key

__all__ = [
    "DOMAIN", "MARKER", "Markers", "has_markers", "pixel_terms", "settled", "shaped", "undelivered", "with_markers",
    "without_markers",
]  # fmt: skip

#: The tool's own operator that carries a range, and its domain.
MARKER, DOMAIN = "HzCalibration", "horizon"
#: ``quant_attrs`` of the tool's own nodes: an activation's, a weight's.
_ACTIVATION, _WEIGHT = 69905, 139537


@dataclass
class Markers:
    """Which encoding stands behind which tensor of the exported graph.

    Attributes:
        tensors: activations and constant operands.
        weights: of sums of products, with a scale for each output channel, and the number of groups of the node.
        edges: name of an Identity on an edge that the plan reads in another encoding.
    """

    tensors: dict[str, Encoding] = field(default_factory=dict)
    weights: dict[str, tuple[Encoding, int]] = field(default_factory=dict)
    edges: dict[str, Encoding] = field(default_factory=dict)


def settled(bundle: Bundle) -> ir.Model:
    """The bundle's float graph with the constants that the plan's integers stand for.

    Weights and operands are integer times scale. Biases stay as they are: the tool rounds them as our integers are
    rounded, in its own float32 steps.

    Raises:
        UserError: outputs leave with a scale a channel of their own.
    """
    if bundle.factors:
        raise UserError(
            f"{', '.join(bundle.factors)} leaves with factors of its channels, which the vendor's tool does not know",
            "quantize without --output-factors",
        )
    model, plan, target = bundle.prepared.ir.clone(), bundle.plan, bundle.target
    weighted = [node for node in model.graph if _weight(node, plan) is not None]
    biases = {str(value.name) for node in weighted for value in node.inputs[2:3] if value is not None}
    for name, value in model.graph.initializers.items():
        encoding, array = plan.tensors.get(name), constant_of(value)
        if encoding is not None and array is not None and name not in biases:
            set_constant(value, encoding.dequantize(encoding.quantize(array, target.quantize_rounding)))
    return model


def _weight(node: ir.Node, plan: Plan) -> tuple[str, Encoding] | None:
    """Name and encoding of the constant weight of a sum of products; ``None`` where it has none, or in float."""
    if not facts(node).is_weighted or constant_at(node, 1) is None or node.inputs[1] is None:
        return None
    name = str(node.inputs[1].name)
    return (name, plan.tensors[name]) if name in plan.tensors else None


def shaped(settled: ir.Model, bundle: Bundle) -> tuple[ir.Model, Markers]:
    """A copy in the forms for which the tool takes ranges, and the encodings to write."""
    model, plan, markers = settled.clone(), bundle.plan, Markers()
    graph = model.graph
    _mark_edges(graph, plan, markers)
    for node in list(graph):
        found = _weight(node, plan)
        if found is None:
            continue
        markers.weights[found[0]] = _each_channel(node, found[1]), node.attributes.get_int("group", 1)
        if facts(node).kind is Kind.LINEAR:
            _as_convolution(graph, node, bundle, markers)
    constants = {name: value for name, value in graph.initializers.items() if name not in markers.weights}
    for name, value in constants.items():
        array = constant_of(value)
        if name in plan.tensors and array is not None and not array.ndim:
            set_constant(value, array.reshape(1))  # with a number without axes the tool computes on the CPU
            value.shape = ir.Shape([1])
    markers.tensors |= {
        name: encoding
        for name, encoding in plan.tensors.items()
        if encoding.dtype != "int32" and name not in markers.weights
    }
    return model, markers


def _each_channel(node: ir.Node, encoding: Encoding) -> Encoding:
    """A weight's encoding with a scale for each channel of the result, also where these have one."""
    if encoding.axis is not None:
        return encoding
    channels = dims(node.outputs[0])[facts(node).output_axis]
    axis = 1 if facts(node).kind is Kind.TRANSPOSED else 0
    return replace(encoding, scale=(float(encoding.scales),) * channels, axis=axis)


def _as_convolution(graph: ir.Graph, node: ir.Node, bundle: Bundle, markers: Markers) -> None:
    """Put a 1x1 convolution between Reshapes in the place of a fully connected layer.

    The tool does so too, but takes scales of weights from a convolution only. What runs as one unit with the layer
    stays behind the convolution.
    """
    plan, target = bundle.plan, bundle.target
    (x, weight, *bias), end = node.inputs, node
    assert x is not None and weight is not None
    follower = only_reader(node.outputs[0])
    fused = follower is not None and (node.op_type, follower.op_type) in {tuple(chain) for chain in target.fusions}
    if fused and follower is not None and str(node.outputs[0].name) not in plan.tensors:
        end = follower
    array = constant_of(weight)
    assert array is not None
    rows = array if node.attributes.get_int("transB", 0) else array.T
    set_constant(weight, rows.reshape(*rows.shape, 1, 1))
    weight.shape = ir.Shape([*rows.shape, 1, 1])
    encoding, group = markers.weights[str(weight.name)]
    markers.weights[str(weight.name)] = replace(encoding, axis=0), group
    count, channels = dims(x)

    def reshape(source: ir.Value, shape: Sequence[int], name: str, output: str) -> ir.Node:
        sizes = constant_value(graph, f"{name}_shape", np.asarray(shape, np.int64))
        made = ir.node("Reshape", [source, sizes], name=name, num_outputs=1)
        made.outputs[0].name, made.outputs[0].shape, made.outputs[0].type = output, ir.Shape(shape), source.type
        return made

    before = reshape(x, [count, channels, 1, 1], f"{node.name}_to_map", f"{x.name}_of_{node.name}")
    operands = [before.outputs[0], weight, *bias]
    convolution = ir.node("Conv", operands, {"kernel_shape": [1, 1]}, name=node.name, num_outputs=1)
    result = convolution.outputs[0]
    put_in_place(graph, node, [before, convolution])
    end = convolution if end is node else end
    flat = list(dims(end.outputs[0]))
    result.shape = ir.Shape([*dims(result), 1, 1])
    value = end.outputs[0]
    name, value.name, value.shape = value.name, f"{value.name}_map", ir.Shape([*flat, 1, 1])
    users = list(value.uses())
    after = reshape(value, flat, f"{node.name}_to_row", str(name))
    graph.insert_after(end, after)
    for use in users:
        use.node.replace_input_with(use.idx, after.outputs[0])
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = after.outputs[0]


def _mark_edges(graph: ir.Graph, plan: Plan, markers: Markers) -> None:
    """An Identity on each edge that is read in another encoding; what aligns its operands does so itself."""
    nodes = named(graph)
    for key, encoding in plan.edges.items():
        name, index = split_edge_key(key)
        node = nodes[name]
        value = node.inputs[index]
        if facts(node).aligns or value is None:
            continue
        marker = ir.node("Identity", [value], name=key, num_outputs=1)
        output = marker.outputs[0]
        output.name, output.shape, output.type = key, value.shape, value.type
        graph.insert_before(node, marker)
        node.replace_input_with(index, output)
        markers.edges[key] = encoding


def pixel_terms(mean: float, scale: float, encoding: Encoding) -> tuple[float, float]:
    """``mean_value`` and ``scale_value`` with which the tool's preprocessing gives every byte the plan's integer.

    It multiplies ``pixel - 128`` by the scale as an 8-bit weight, which always is 127, and rounds as a convolution
    does. At 1/255 and a range of 1 the pixel 254 comes to 126 so, and with a mean of 127.5 the bias lies between two
    integers; a scale that is a millionth smaller, a mean that is a thousandth of a pixel off, mend it.

    Args:
        mean: of a channel, in pixels.
        scale: real value of a pixel step.
        encoding: of the model's input.

    Returns:
        Both as they are, or their nearest neighbours; as they are where none does.
    """
    pixels = np.arange(256, dtype=np.float32)
    real = (pixels - np.float32(mean)) * np.float32(scale)
    wanted = np.clip(np.rint(real / np.float32(encoding.scales)), encoding.qmin, encoding.qmax)
    for shift, nudge in itertools.product((0.0, 1e-3, -1e-3, 3e-3, -3e-3), range(16)):
        candidate = scale * (1 - nudge * 2.0**-20)
        step = float(np.float32(candidate) / np.float32(127))
        factor = np.asarray(step / float(np.float32(encoding.scales)))
        fixed, half = fixed_point(factor, encoding.qmax), int(half_step(factor))
        exact = (128 - mean - shift) * candidate / step
        biases = {int(np.rint(exact + beside)) + half for beside in (-0.01, 0.01)}  # a tie may fall either way
        sums = [fixed.of(np.arange(-128, 128) * 127 + bias) for bias in biases]
        found = [np.clip(total, encoding.qmin, encoding.qmax) for total in sums]
        if all(np.array_equal(each, wanted) for each in found):
            return mean + shift, candidate
    return mean, scale


#: Operators that read 8 bits, whatever their operands have: the tool requantizes before them.
NARROW = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize", "ConvTranspose", "MatMul")
#: Operators that the tool computes in float on the CPU under ``load``.
FLOAT = ("Div", "Softmax", "Gelu", "Pow", "Neg")
#: Operators whose form on the CPU the board's runtime does not have.
MISSING = ("Silu", "HardSwish")
#: Least factor from the scale of products to that of the result, or to 1 where the result leaves in accumulators.
LEAST_FACTOR = 2.0**-23


def undelivered(bundle: Bundle) -> list[str]:
    """What the plan decides and the tool does not take, a line a node.

    Raises:
        UserError: a node is float whose float form the board does not have.
    """
    plan, found = bundle.plan, []
    for node in bundle.prepared.ir.graph:
        name, kind = str(node.name), node.op_type
        read = [read_encoding(node, index, plan.tensors, plan.edges) for index in range(len(node.inputs))]
        if plan.nodes[name].type == "float32":
            if kind in MISSING:
                what = f"{name} ({kind}) is float in the plan, and the board's CPU has no {kind}"
                raise UserError(what, "leave it at int8 or int16")
        elif kind in FLOAT:
            found.append(f"{name}: {kind} is computed in float on the CPU, the plan has {plan.nodes[name].type}")
        elif kind in NARROW and any(encoding is not None and encoding.dtype == "int16" for encoding in read):
            found.append(f"{name}: {kind} reads 8 bits, the plan has int16")
        bound = _lost_bound(node, bundle)
        if bound:
            found.append(f"{name}: the tool drops its upper bound {bound:g}, the plan's range goes beyond")
        low = _raised(node, bundle)
        if low:
            found.append(f"{name}: the tool raises the scale of products of {low} channels, with coarser weights")
    return found


def _lost_bound(node: ir.Node, bundle: Bundle) -> float:
    """The upper bound of a Clip inside a sum of products, where the range goes beyond it: the tool saturates there."""
    source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    encoding = bundle.plan.tensors.get(str(node.outputs[0].name))
    if not facts(node).is_clip or encoding is None or source is None or not facts(source).is_weighted:
        return 0.0
    if str(node.inputs[0].name if node.inputs[0] is not None else "") in bundle.plan.tensors:
        return 0.0  # a table of its own
    high = clip_bounds(node)[1]
    return high if np.isfinite(high) and float(encoding.scales) * encoding.qmax > high * (1 + 1e-6) else 0.0


def _raised(node: ir.Node, bundle: Bundle) -> int:
    """How many channels of a sum of products have weights that are not 0 and a factor below the tool's least one."""
    plan, found = bundle.plan, _weight(node, bundle.plan)
    if found is None or found[1].axis is None:
        return 0
    result = written_value(node, plan.tensors, bundle.target, plan.nodes)
    x, weight = (tool_scale(side) for side in (operand_encoding(node, 0, plan.tensors, plan.edges), found[1]))
    y = tool_scale(plan.tensors[str(result.name)]) if result is not None else 1.0  # accumulators leave as they are
    integers = found[1].quantize(np.asarray(constant_at(node, 1)), bundle.target.quantize_rounding)
    alive = np.moveaxis(integers, found[1].axis, 0).reshape(len(weight), -1).any(axis=1)
    return int(np.sum(alive & ((x * weight).astype(np.float64) / y < LEAST_FACTOR)))


@dataclass
class _Writer:
    graph: onnx.GraphProto
    taken: set[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[tuple[str, float], str] = field(default_factory=dict)
    horizon: bool = False

    def constant(self, kind: str, value: float) -> str:
        """Scalars are shared: scales by value, the zero point by type."""
        if (kind, value) not in self.constants:
            name = unused(f"{kind}_{len(self.constants)}", self.taken)
            array = np.asarray(value, np.float32 if kind == "scale" else np.int8)
            self.graph.initializer.append(numpy_helper.from_array(array, name))
            self.constants[kind, value] = name
        return self.constants[kind, value]

    def mark(self, tensor: str, result: str, encoding: Encoding, stem: str) -> None:
        """Nodes that give a tensor its range."""
        if encoding.axis is not None or encoding.zero_point or encoding.dtype not in ("int8", "int16"):
            raise UserError(
                f"{stem} is {encoding.dtype} with zero point {encoding.zero_point}, and the vendor's tool takes int8 "
                "or int16 with one scale and no zero point",
                "use --ranges vendor",
            )
        if encoding.dtype == "int16":
            self._marker(tensor, result, encoding, stem, quant_attrs=_ACTIVATION)
            return
        operands = [self.constant("scale", float(encoding.scales)), self.constant("zero", 0)]
        middle = unused(f"{stem}_quantized", self.taken)
        quantize, dequantize = (unused(f"{stem}_{kind}", self.taken) for kind in (Op.QUANTIZE, Op.DEQUANTIZE))
        self.nodes.append(helper.make_node(Op.QUANTIZE, [tensor, *operands], [middle], quantize))
        self.nodes.append(helper.make_node(Op.DEQUANTIZE, [middle, *operands], [result], dequantize))

    def weight(self, tensor: str, result: str, encoding: Encoding, group: int) -> None:
        """A node that gives a weight its scales."""
        assert encoding.axis is not None
        self._marker(tensor, result, encoding, tensor, quant_attrs=_WEIGHT, group=group, axis=encoding.axis)

    def _marker(self, tensor: str, result: str, encoding: Encoding, stem: str, **more: int) -> None:
        scales = np.atleast_1d(encoding.scales).astype(np.float32)
        thresholds = scales * np.float32(encoding.qmax)
        self.horizon = True
        self.nodes.append(
            helper.make_node(
                MARKER, [tensor], [result], unused(f"{stem}_{MARKER}", self.taken), domain=DOMAIN, qtype=encoding.dtype,
                scales=scales.tolist(), thresholds=thresholds.tolist(), constant=1, switch="ON", **more,
            )
        )  # fmt: skip


def with_markers(proto: onnx.ModelProto, markers: Markers, renamed: Mapping[str, str]) -> onnx.ModelProto:
    """The graph with its ranges, in the tool's form.

    Args:
        proto: opset 11, outputs in the vendor's order; not changed.
        markers: by the names of the plan.
        renamed: what tensors of the plan are called in the graph, where that is something else.

    Raises:
        UserError: an encoding that the tool cannot be given.
    """
    copy = copied(proto)
    graph = copy.graph
    outputs = {value.name for value in graph.output}
    given = [value.name for value in graph.input] + [tensor.name for tensor in graph.initializer]
    made = [name for node in graph.node for name in node.output]
    writer = _Writer(graph, {*given, *made, *(node.name for node in graph.node)})
    encodings = {renamed.get(name, name): (encoding, name) for name, encoding in markers.tensors.items()}
    # what stands for a tensor: where the node that makes it writes, and what its readers read
    written: dict[str, str] = {}
    read: dict[str, str] = {}
    for name in (*given, *made):
        if name in encodings and name in outputs:
            written[name] = unused(f"{name}_unmarked", writer.taken)
        elif name in encodings or name in markers.weights:
            read[name] = unused(f"{name}_marked", writer.taken)

    def follow(name: str) -> None:
        if name in markers.weights:
            writer.weight(name, read[name], *markers.weights[name])
        elif name in encodings:
            encoding, stem = encodings[name]
            writer.mark(written.get(name, name), read.get(name, name), encoding, stem)

    for name in given:
        follow(name)
    for node in graph.node:
        inputs = [read.get(name, name) for name in node.input]
        if node.name in markers.edges:
            writer.mark(inputs[0], node.output[0], markers.edges[node.name], node.name)
            continue
        new = onnx.NodeProto()
        new.CopyFrom(node)
        new.input[:] = inputs
        new.output[:] = [written.get(name, name) for name in node.output]
        writer.nodes.append(new)
        for name in node.output:
            follow(name)
    del graph.node[:]
    graph.node.extend(writer.nodes)
    if writer.horizon:
        copy.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return copy


def has_markers(proto: onnx.ModelProto) -> bool:
    """Whether ranges in the tool's form stand in a float graph."""
    return any(node.domain == DOMAIN and node.op_type == MARKER for node in proto.graph.node)


def without_markers(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The float graph inside: every node of a range becomes an Identity."""
    copy = copied(proto)
    graph = copy.graph
    nodes = []
    for node in graph.node:
        if node.op_type in (MARKER, Op.QUANTIZE, Op.DEQUANTIZE):
            nodes.append(helper.make_node("Identity", node.input[:1], list(node.output), node.name))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    kept = [entry for entry in copy.opset_import if entry.domain != DOMAIN]
    del copy.opset_import[:]
    copy.opset_import.extend(kept)
    used = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(constants)
    return copy
