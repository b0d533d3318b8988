"""An ``.espdl`` file as a model and a plan, so that the exact integer engine runs it.

The model has ONNX's layouts (NCHW, filters OIHW) and holds the file's integers as real numbers ``q * 2^e``, which the
plan's encodings turn into the same integers again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from narrowcast.base.errors import UserError
from narrowcast.base.reading import reading
from narrowcast.chips.schema import Target
from narrowcast.deploy.espdl.chains import packing_source
from narrowcast.deploy.espdl.file import EspdlFile, EspdlNode, EspdlTensor, EspdlValue
from narrowcast.deploy.espdl.layouts import (
    AXIS,
    BINARY,
    CHANNELS_LAST,
    CONVERSIONS,
    UNARY_TABLES,
    Order,
    channels_last,
    identity,
    inverse,
    reordered,
    then,
)
from narrowcast.deploy.espdl.packing import parse_layout, unpack_filter, unpack_matrix
from narrowcast.plan.types import Encoding, Placement, Plan

__all__ = ["Restored", "restore"]

_DOMAIN = "narrowcast"
_OPSET = 18
#: Attributes that ESP-DL adds to ONNX's.
_OWN_ATTRIBUTES = ("quant_type", "activation", "lut", "input1_layout", "gate_exponent", "original_op_type",
                   "int16_lut_step")  # fmt: skip


@dataclass(frozen=True)
class Restored:
    """A file as a model.

    Attributes:
        model: operators of opset 18 (and ``narrowcast::Silu``), ONNX's layouts, inputs and outputs with the file's
            names.
        plan: encodings of every tensor; made for the target that was asked for.
        orders: network input or output to the order of its axes in the file.
        tables: node name to the table that the file carries for it, -128 (or -32768) first.
    """

    model: ir.Model
    plan: Plan
    orders: dict[str, Order]
    tables: dict[str, NDArray[Any]] = field(default_factory=dict)


def restore(file: EspdlFile, target: Target) -> Restored:
    """Turn a file into a model and a plan.

    Args:
        file: from :func:`narrowcast.deploy.espdl.read_espdl`.
        target: the chip; files do not name theirs, and the chips round differently.

    Raises:
        UserError: an operator or a layout that is not known, or a file that contradicts itself.
    """
    return _Restoring(file, target).run()


@dataclass
class _Known:
    """An activation of the model under construction: its name, its shape, and its order in the file."""

    name: str
    shape: tuple[int, ...]
    order: Order


class _Restoring:
    def __init__(self, file: EspdlFile, target: Target) -> None:
        self.file, self.target = file, target
        self.known: dict[str, _Known] = {}
        self.moved: dict[tuple[str, Order], _Known] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.values: dict[str, onnx.ValueInfoProto] = {}
        self.encodings: dict[str, Encoding] = {}
        self.placements: dict[str, Placement] = {}
        self.tables: dict[str, NDArray[Any]] = {}
        readers: dict[str, list[EspdlNode]] = {}
        for node in file.nodes:
            for name in node.inputs:
                readers.setdefault(name, []).append(node)
        self.readers = readers
        self.producers = {output: node for node in file.nodes for output in node.outputs}

    def run(self) -> Restored:
        inputs = [self._input(value) for value in self.file.inputs]
        for node in self.file.nodes:
            if self._is_merged(node):
                continue
            where = f"node {node.name} ({node.op_type}) of the .espdl file"
            with reading(where, "export the model again", "is not understood"):
                self._rule(node)(node)
        missing = [value.name for value in self.file.outputs if value.name not in self.known]
        if missing:
            raise UserError(f"the .espdl file never computes its output {missing[0]}", "export the model again")
        outputs = [self._info(self.known[value.name], value.dtype) for value in self.file.outputs]
        self._prune()
        graph = helper.make_graph(
            self.nodes, self.file.graph_name or "espdl", inputs, outputs, list(self.constants.values()),
            value_info=list(self.values.values()),
        )  # fmt: skip
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_DOMAIN, 1)]
        proto = helper.make_model(graph, opset_imports=opsets, functions=[_silu()], ir_version=10)
        plan = Plan(self.target.name, self.encodings, {}, self.placements)
        names = [value.name for value in (*self.file.inputs, *self.file.outputs)]
        return Restored(ir.from_proto(proto), plan, {name: self.known[name].order for name in names}, self.tables)

    def _prune(self) -> None:
        """Drop what only packed an operand."""
        needed = {value.name for value in self.file.outputs}
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        dropped = [node for node in self.nodes if not needed.intersection(node.output)]
        self.nodes = kept[::-1]
        self.constants = {name: tensor for name, tensor in self.constants.items() if name in needed}
        gone = {name for node in dropped for name in node.output}
        self.values = {name: value for name, value in self.values.items() if name not in gone}
        self.encodings = {name: code for name, code in self.encodings.items() if name not in gone}
        for node in dropped:
            del self.placements[node.name]

    def _rule(self, node: EspdlNode) -> Callable[[EspdlNode], None]:
        rules: dict[str, Callable[[EspdlNode], None]] = {
            "Conv": self._convolution,
            "Gemm": self._fully_connected,
            "MatMul": self._matmul,
            "InsertZeros": self._insert_zeros,
            "Transpose": self._transpose,
        }
        if node.op_type in rules:
            return rules[node.op_type]
        if node.op_type in UNARY_TABLES or "lut" in node.attributes:
            return self._unary
        if node.op_type in CONVERSIONS:
            return self._conversion
        if node.op_type in BINARY:
            return self._binary
        if node.op_type in AXIS:
            return self._along_axis
        return self._pool if node.op_type in CHANNELS_LAST else self._plain

    # values

    def _input(self, value: EspdlValue) -> onnx.ValueInfoProto:
        order = channels_last(len(value.dims)) if self._feeds_channels_last(value.name) else identity(len(value.dims))
        known = _Known(value.name, reordered(value.dims, inverse(order)), order)
        self.known[value.name] = known
        self._encode(value.name, value)
        return self._info(known, value.dtype)

    def _feeds_channels_last(self, name: str) -> bool:
        for node in self.readers.get(name, []):
            if node.op_type in CHANNELS_LAST:
                return True
            if node.op_type in UNARY_TABLES | CONVERSIONS and self._feeds_channels_last(node.outputs[0]):
                return True
        return False

    def _info(self, known: _Known, dtype: str) -> onnx.ValueInfoProto:
        # the model itself is one of real numbers, whatever the file stores
        kind = TensorProto.INT64 if dtype == "int64" else TensorProto.FLOAT
        return helper.make_tensor_value_info(known.name, kind, known.shape)

    def _encode(self, name: str, value: EspdlValue) -> None:
        if value.dtype in ("int8", "int16"):
            self.encodings[name] = Encoding(value.dtype, 2.0**value.exponent)

    def _store(self, name: str, order: Order, shape: tuple[int, ...] | None = None) -> None:
        """Record a computed value of the file, whose axes the file keeps in an order; with the shape that it must
        have, where the file's own may be stale."""
        value = self.file.values.get(name)
        if value is None:
            raise ValueError(f"no shape for {name}")
        known = _Known(name, shape or reordered(value.dims, inverse(order)), order)
        self.known[name] = known
        self._encode(name, value)
        self.values[name] = self._info(known, value.dtype)

    def _ordered(self, name: str, order: Order) -> _Known:
        """An activation transposed so that the file's numbers are its transposition by ``order``."""
        known = self.known[name]
        if known.order == order:
            return known
        key = (name, order)
        if key not in self.moved:
            permutation = then(known.order, inverse(order))
            moved = _Known(f"{known.name}__{'_'.join(map(str, order))}", reordered(known.shape, permutation), order)
            self._emit("Transpose", f"{moved.name}_transpose", [known.name], [moved.name], perm=list(permutation))
            self._copy_encoding(known.name, moved)
            self.moved[key] = moved
        return self.moved[key]

    def _copy_encoding(self, source: str, known: _Known) -> None:
        if source in self.encodings:
            self.encodings[known.name] = self.encodings[source]
        self.values[known.name] = self._info(known, "float32")

    def _constant(self, name: str, order: Order | None = None) -> str:
        """A constant operand: integers with exponents become real numbers with an encoding."""
        tensor = self.file.tensors[name]
        array = tensor.array
        if order is not None and array.size > 1:
            array = array.reshape((1,) * (len(order) - array.ndim) + array.shape).transpose(inverse(order))
            name = f"{name}__{'_'.join(map(str, order))}" if order != identity(len(order)) else name
        if array.dtype.name in ("int8", "int16") and len(tensor.exponents) == 1:
            self.encodings[name] = Encoding(array.dtype.name, 2.0 ** tensor.exponents[0])
            array = (array * 2.0 ** tensor.exponents[0]).astype(np.float32)
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def _number(self, name: str, array: NDArray[Any]) -> str:
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def _emit(self, op_type: str, name: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        domain = _DOMAIN if op_type == "Silu" else ""
        self.nodes.append(helper.make_node(op_type, inputs, outputs, name=name, domain=domain, **attributes))
        value = self.file.values.get(outputs[0])
        kind = value.dtype if value is not None and value.dtype in ("int16", "float32") else "int8"
        self.placements[name] = Placement(self.target.units[0], kind, "as in the file")

    def _attributes(self, node: EspdlNode, **changed: Any) -> dict[str, Any]:
        kept = {key: value for key, value in node.attributes.items() if key not in _OWN_ATTRIBUTES}
        lists = {key: list(value) if isinstance(value, tuple) else value for key, value in kept.items()}
        return {**lists, **changed}

    def _is_merged(self, node: EspdlNode) -> bool:
        """A Softmax and the QuantizeLinear behind it are one node of a model."""
        if node.op_type != "QuantizeLinear":
            return False
        source = self.producers.get(node.inputs[0])
        return source is not None and self._quantized_by(source) is node

    def _quantized_by(self, node: EspdlNode) -> EspdlNode | None:
        readers = self.readers.get(node.outputs[0], [])
        only = len(readers) == 1 and all(node.outputs[0] != value.name for value in self.file.outputs)
        softmax = node.op_type in ("Softmax", "LogSoftmax")
        return readers[0] if softmax and only and readers[0].op_type == "QuantizeLinear" else None

    # sums of products

    def _product(self, node: EspdlNode, op_type: str, inputs: list[str], **attributes: Any) -> None:
        """A sum of products, with the Relu that the runtime does in the same step."""
        output, activation = node.outputs[0], node.text("activation", "Linear")
        if activation not in ("Linear", "Relu", ""):
            raise ValueError(f"activation {activation}")
        relu = activation == "Relu"
        inner = f"{output}__before_relu" if relu else output
        self._emit(op_type, node.name, inputs, [inner], **attributes)
        if relu:
            self._emit("Relu", f"{node.name}/Relu", [inner], [output])
            self.placements[node.name] = self.placements[f"{node.name}/Relu"]  # the sum has the type of the result
            known = self.known[output]
            self.values[inner] = self._info(_Known(inner, known.shape, known.order), "float32")

    def _weight(self, name: str, array: NDArray[Any], axis: int) -> str:
        tensor = self.file.tensors[name]
        scales = _scales(tensor, array.shape[axis])
        spread = scales if scales.size == 1 else scales.reshape([-1 if a == axis else 1 for a in range(array.ndim)])
        self._number(name, (array * spread).astype(np.float32))
        self.encodings[name] = _encoding(array.dtype.name, scales, axis)
        return name

    def _bias(self, node: EspdlNode, channels: int) -> list[str]:
        if len(node.inputs) < 3 or not node.inputs[2]:
            return []
        name = node.inputs[2]
        tensor = self.file.tensors[name]
        scales = _scales(tensor, channels)
        # float32 has 24 bits, a bias up to 40
        wide = tensor.data.size > 0 and int(np.abs(tensor.data.astype(np.int64)).max()) >= 2**24
        self._number(name, (tensor.data * scales).astype(np.float64 if wide else np.float32))
        self.encodings[name] = _encoding("int64" if tensor.data.dtype.itemsize == 8 else "int32", scales, 0)
        return [name]

    def _convolution(self, node: EspdlNode) -> None:
        tensor = self.file.tensors[node.inputs[1]]
        rank = len(tensor.dims)
        x = self._ordered(node.inputs[0], channels_last(rank))
        *window, first, second = tensor.dims
        group = node.integer("group", 1)
        depthwise = group > 1
        count, channels = (first, second) if depthwise else (second, first)
        if depthwise and group != count:
            raise ValueError(f"{group} groups of {count} channels")
        shape = (count, channels, *window)
        layout = parse_layout(tensor.layout)
        if layout is None:
            stored = tensor.array
            last = (rank - 2, rank - 1) if depthwise else (rank - 1, rank - 2)
            weight = stored.transpose(*last, *range(rank - 2))
        else:
            weight = unpack_filter(tensor.data, shape, layout.lanes, depthwise)
        inputs = [x.name, self._weight(node.inputs[1], weight, 0), *self._bias(node, count)]
        self._store(node.outputs[0], channels_last(rank))
        self._product(node, "Conv", inputs, **self._attributes(node))

    def _fully_connected(self, node: EspdlNode) -> None:
        tensor = self.file.tensors[node.inputs[1]]
        rank = len(self.known[node.inputs[0]].shape)
        x = self._ordered(node.inputs[0], identity(rank))
        channels, count = tensor.dims[-2:]
        layout = parse_layout(tensor.layout)
        if layout is None:
            weight = tensor.data.reshape(channels, count).T
        else:
            weight = unpack_filter(tensor.data, (count, channels, 1, 1), layout.lanes)[:, :, 0, 0]
        inputs = [x.name, self._weight(node.inputs[1], weight, 0), *self._bias(node, count)]
        self._store(node.outputs[0], identity(rank))
        self._product(node, "Gemm", inputs, transB=1)

    def _matmul(self, node: EspdlNode) -> None:
        first = node.inputs[0]
        known = self.known.get(first)
        left = self._constant(first) if known is None else self._ordered(first, identity(len(known.shape))).name
        if node.inputs[1] in self.file.tensors:
            tensor = self.file.tensors[node.inputs[1]]
            layout = parse_layout(tensor.layout)
            matrix = tensor.array if layout is None else unpack_matrix(tensor.data, tensor.dims, layout.lanes)
            right = self._weight(node.inputs[1], matrix, matrix.ndim - 1)
        else:
            right = self._right_operand(node)
        self._store(node.outputs[0], identity(len(self.file.values[node.outputs[0]].dims)))
        self._product(node, "MatMul", [left, right])

    def _right_operand(self, node: EspdlNode) -> str:
        """A computed right operand, which the file packs by nodes of its own; undo it."""
        packed = self._ordered(node.inputs[1], identity(len(self.known[node.inputs[1]].shape)))
        if node.text("input1_layout") == "native_kn" or len(packed.shape) < 2:
            return packed.name
        lanes = 8 if node.text("quant_type") == "S16" else 16
        shapes = {name: reordered(known.shape, known.order) for name, known in self.known.items()}
        source = packing_source(self.file, self.producers, node.inputs[1], shapes, lanes)
        if source is not None:
            return self._ordered(source, identity(len(packed.shape))).name
        *batch, rows, columns = packed.shape
        full, stem = columns // lanes * lanes, f"{node.name}/unpack"
        while f"{stem}_flat_output" in self.file.values:
            stem += "_again"
        flat = self._reshaped(packed.name, (*batch, rows * columns), f"{stem}_flat")
        axes = len(batch)
        parts = []
        if full:
            blocks = self._cut(flat, axes, 0, full * rows, f"{stem}_blocks")
            split = self._reshaped(blocks, (*batch, full // lanes, rows, lanes), f"{stem}_split")
            turned = self._permuted(split, (*range(axes), axes + 1, axes, axes + 2), f"{stem}_turned")
            parts.append(self._reshaped(turned, (*batch, rows, full), f"{stem}_aligned"))
        if columns > full:
            rest = self._cut(flat, axes, full * rows, columns * rows, f"{stem}_rest")
            matrix = self._reshaped(rest, (*batch, columns - full, rows), f"{stem}_matrix")
            parts.append(self._permuted(matrix, (*range(axes), axes + 1, axes), f"{stem}_remainder"))
        if len(parts) == 1:
            return parts[0]
        return self._helper("Concat", parts, packed.shape, f"{stem}_whole", axis=axes + 1)

    def _helper(self, op_type: str, inputs: list[str], shape: tuple[int, ...], name: str, **attributes: Any) -> str:
        self._emit(op_type, name, inputs, [f"{name}_output"], **attributes)
        known = _Known(f"{name}_output", shape, identity(len(shape)))
        self._copy_encoding(inputs[0], known)
        self.known[known.name] = known
        return known.name

    def _reshaped(self, source: str, shape: tuple[int, ...], name: str) -> str:
        sizes = self._number(f"{name}_shape", np.asarray(shape, np.int64))
        return self._helper("Reshape", [source, sizes], shape, name)

    def _permuted(self, source: str, order: Order, name: str) -> str:
        shape = reordered(self.known[source].shape, order)
        return self._helper("Transpose", [source], shape, name, perm=list(order))

    def _cut(self, source: str, axis: int, start: int, end: int, name: str) -> str:
        shape = list(self.known[source].shape)
        shape[axis] = end - start
        numbers = [
            self._number(f"{name}_{kind}", np.asarray([number], np.int64))
            for kind, number in (("start", start), ("end", end), ("axis", axis))
        ]
        return self._helper("Slice", [source, *numbers], tuple(shape), name)

    def _insert_zeros(self, node: EspdlNode) -> None:
        """Zeros between the pixels: a transposed depthwise convolution with a single one."""
        rank = len(self.known[node.inputs[0]].shape)
        x = self._ordered(node.inputs[0], channels_last(rank))
        window = rank - 2
        strides, padding = (list(node.integers(key)) for key in ("stride", "output_padding"))
        ones = self._number(f"{node.name}/one", np.ones((x.shape[1], 1, *[1] * window), np.float32))
        self.encodings[ones] = Encoding("int8", 1.0)
        self._store(node.outputs[0], channels_last(rank))
        self._emit(
            "ConvTranspose", node.name, [x.name, ones], [node.outputs[0]], group=x.shape[1], kernel_shape=[1] * window,
            strides=(strides * window)[:window] or [1] * window,
            output_padding=(padding * window)[:window] or [0] * window,
        )  # fmt: skip

    # the rest

    def _unary(self, node: EspdlNode) -> None:
        op_type = node.text("original_op_type") or node.op_type
        op_type = "Silu" if op_type == "Swish" else op_type
        table = self.file.tensors.get(node.text("lut"))
        if table is not None:
            self.tables[node.name] = table.data
        x = self.known[node.inputs[0]]
        operands = [self._constant(name) if name else "" for name in node.inputs[1:] if name != node.text("lut")]
        self._store(node.outputs[0], x.order)
        self._emit(op_type, node.name, [x.name, *operands], [node.outputs[0]], **self._attributes(node))

    def _conversion(self, node: EspdlNode) -> None:
        """A value in another encoding is the same numbers."""
        x = self.known[node.inputs[0]]
        self._store(node.outputs[0], x.order)
        self._emit("Identity", node.name, [x.name], [node.outputs[0]])

    def _binary(self, node: EspdlNode) -> None:
        rank = len(self.file.values[node.outputs[0]].dims)
        computed = [self.known[name] for name in node.inputs if name in self.known]
        whole = [known for known in computed if len(known.shape) == rank]
        order = whole[0].order if len(whole) == len(computed) and whole else identity(rank)
        names = []
        for name in node.inputs:
            if name not in self.known:
                names.append(self._constant(name, order))
            else:
                own = order if len(self.known[name].shape) == rank else identity(len(self.known[name].shape))
                names.append(self._ordered(name, own).name)
        self._store(node.outputs[0], order)
        self._emit(node.op_type, node.name, names, [node.outputs[0]], **self._attributes(node))

    def _along_axis(self, node: EspdlNode) -> None:
        names = [name for name in node.inputs if name in self.known]
        order = self.known[names[0]].order
        axis = order[node.integer("axis", 0 if node.op_type != "Softmax" else -1) % len(order)]
        inputs = [
            self._ordered(name, order).name
            if name in self.known
            else self._constant(name, order if node.op_type == "Concat" else None)
            for name in node.inputs
        ]
        quantize = self._quantized_by(node)
        outputs = quantize.outputs if quantize is not None else node.outputs
        for output in outputs:
            self._store(output, order)
        self._emit(node.op_type, node.name, inputs, list(outputs), **self._attributes(node, axis=axis))

    def _pool(self, node: EspdlNode) -> None:
        order = channels_last(len(self.known[node.inputs[0]].shape))
        x = self._ordered(node.inputs[0], order)
        operands = [self._constant(name) if name else "" for name in node.inputs[1:]]
        self._store(node.outputs[0], order)
        attributes = self._attributes(node, **_as_the_runtime_reads(node))
        self._emit(node.op_type, node.name, [x.name, *operands], [node.outputs[0]], **attributes)

    def _transpose(self, node: EspdlNode) -> None:
        """The file's transposition and the one from the model's order into the file's, as one.

        ESP-PPQ states the shape before the transposition for those that it inserted.
        """
        x = self.known[node.inputs[0]]
        rank = len(x.shape)
        permutation = tuple(axis % rank for axis in node.integers("perm")) or tuple(reversed(range(rank)))
        whole = then(x.order, permutation)
        self._store(node.outputs[0], identity(rank), reordered(x.shape, whole))
        self._emit("Transpose", node.name, [x.name], [node.outputs[0]], perm=list(whole))

    def _plain(self, node: EspdlNode) -> None:
        """An operator that sees shapes: everything in the file's own order."""
        inputs = []
        for name in node.inputs:
            if name in self.known:
                inputs.append(self._ordered(name, identity(len(self.known[name].shape))).name)
            else:
                inputs.append(self._constant(name) if name else "")
        for output in node.outputs:
            self._store(output, identity(len(self.file.values[output].dims)))
        self._emit(node.op_type, node.name, inputs, list(node.outputs), **self._attributes(node))


def _as_the_runtime_reads(node: EspdlNode) -> dict[str, Any]:
    """What the runtime computes where it does not read an attribute of a file, whoever wrote it.

    Raises:
        ValueError: it computes what no ONNX operator does.
    """
    if node.op_type == "SpaceToDepth" or (node.op_type == "DepthToSpace" and node.text("mode", "DCR") != "CRD"):
        raise ValueError("the runtime orders its channels otherwise")
    if node.op_type == "AveragePool":
        return {"ceil_mode": 0, "count_include_pad": 1}
    if node.op_type != "Resize":
        return {"ceil_mode": 0} if "ceil_mode" in node.attributes else {}
    if node.text("mode", "nearest") == "nearest":
        return {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    aligned = node.text("coordinate_transformation_mode") == "align_corners"
    return {"coordinate_transformation_mode": "align_corners" if aligned else "half_pixel"}


def _scales(tensor: EspdlTensor, channels: int) -> NDArray[np.float64]:
    if len(tensor.exponents) not in (1, channels):
        raise ValueError(f"{len(tensor.exponents)} exponents of {tensor.name} for {channels} channels")
    return np.exp2(np.asarray(tensor.exponents, np.float64))


def _encoding(dtype: str, scales: NDArray[np.float64], axis: int) -> Encoding:
    if scales.size == 1:
        return Encoding(dtype, float(scales[0]))
    return Encoding(dtype, tuple(map(float, scales)), 0, axis)


def _silu() -> onnx.FunctionProto:
    """``x * sigmoid(x)`` under the name that the engine knows."""
    nodes = [helper.make_node("Sigmoid", ["x"], ["gate"]), helper.make_node("Mul", ["x", "gate"], ["y"])]
    return helper.make_function(_DOMAIN, "Silu", ["x"], ["y"], nodes, [helper.make_opsetid("", _OPSET)])
