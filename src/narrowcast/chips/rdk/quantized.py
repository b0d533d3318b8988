"""What hb_mapper computes: its ``*_quantized_model.onnx`` as an ordinary ONNX file with the same integers.

Nodes of the vendor's domain ``horizon`` say multipliers, shifts and tables in clear. Each becomes standard operators on
exact integers, so that any ONNX runtime gives what the vendor's runtime gives, at about float speed. Maps are held
channels first here and turned only where a node of the file looks at their layout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from narrowcast.base.errors import UserError
from narrowcast.base.reading import reading
from narrowcast.chips.rdk.delivery import DOMAIN
from narrowcast.chips.schema import load_target
from narrowcast.engine.integer.context import Context
from narrowcast.engine.integer.fixed import FixedPoint, scaled
from narrowcast.engine.integer.sums import ProductSum
from narrowcast.engine.integer.tables import look_up
from narrowcast.engine.integer.values import Integers
from narrowcast.graph.files import NOTES_KEY, PIXELS_KEY
from narrowcast.ops.net import Builder, Op
from narrowcast.plan.types import DTYPES, Encoding, Plan

__all__ = ["is_quantized", "to_standard"]

_OPSET = 17
_FIRST, _LAST = (0, 3, 1, 2), (0, 2, 3, 1)
#: Attributes with a first shift, a multiplier and a second shift.
_SHIFTS, _OUTPUT = ("right_shift", "scale", "out_shift"), ("accu_right_shift", "output_scale", "output_right_shift")
#: An axis of a channels-last map in the same map channels first.
_MOVED = {0: 0, 1: 2, 2: 3, 3: 1}
Array = NDArray[Any]


def is_quantized(proto: onnx.ModelProto) -> bool:
    """Whether a file holds the vendor's integer operators."""
    return any(node.domain == DOMAIN and node.op_type.startswith("HzSQ") for node in proto.graph.node)


@dataclass
class _Held:
    """A tensor of the file in the new graph.

    Attributes:
        name: in the new graph.
        first: it is a channels-last map of the file, held channels first.
        bits: of its integers; 0 for real numbers.
    """

    name: str
    first: bool
    bits: int


def to_standard(proto: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """The file in standard operators.

    Args:
        proto: as hb_mapper wrote it, all shapes known.
        source: its name, for messages.

    Returns:
        Opset 17. Inputs are float32: pixels 0..255 where the file takes bytes less 128, else as in the file. Outputs
        are float32, as the board's dequantize nodes give them.

    Raises:
        UserError: an operator that this reader does not know.
    """
    return _Reader(proto, source).read()


class _Reader:
    def __init__(self, proto: onnx.ModelProto, source: str) -> None:
        graph = proto.graph
        self.graph, self.source = graph, source
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        values = [*graph.input, *graph.output, *graph.value_info]
        self.shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}
        self.builder = Builder(_OPSET, [v.name for v in (*graph.input, *graph.output)])
        target = load_target("bayes-e")
        self.context = Context(self.builder, ir.Graph([], [], nodes=[]), Plan(target.name, {}, {}, {}), target)
        self.held: dict[str, _Held] = {}
        self.color = ""
        self.node = onnx.NodeProto()
        self.attributes: dict[str, Any] = {}

    def read(self) -> onnx.ModelProto:
        """All of it."""
        inputs = [self._input(value) for value in self.graph.input if value.name not in self.constants]
        for node in self.graph.node:
            self.node = node
            self.attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
            rule = (_RULES if node.domain == DOMAIN else _STANDARD).get(node.op_type)
            if rule is None and node.domain == DOMAIN:
                raise UserError(
                    f"{self.source}: {node.name} is a {node.op_type}, which this reader does not know",
                    "please report the model",
                )
            where = f"{self.source}: {node.name} ({node.op_type})"
            with reading(where, "compile the model again", "is not understood"):
                (rule or _copied)(self)
        outputs = []
        for value in self.graph.output:
            self.builder.add(Op.IDENTITY, [self.plain(value.name)], output=value.name)
            outputs.append(helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, self.shapes[value.name]))
        body = helper.make_graph(self.builder.nodes, self.graph.name or "model", inputs, outputs,
                                 self.builder.initializers)  # fmt: skip
        made = helper.make_model(body, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
        helper.set_model_props(made, {NOTES_KEY: self._note()} | ({PIXELS_KEY: self.color} if self.color else {}))
        return onnx.shape_inference.infer_shapes(made)

    def _note(self) -> str:
        """What the file holds."""
        count = Counter(node.op_type for node in self.graph.node if node.domain == DOMAIN)
        wide = sum(held.bits == 16 for held in self.held.values())
        plain = sorted({n.op_type for n in self.graph.node if n.domain != DOMAIN and not self.held[n.output[0]].bits})
        floats = f"; in float on the CPU: {', '.join(plain)}" if plain else ""
        kinds = ", ".join(f"{number} {name}" for name, number in count.most_common())
        return f"integers of hb_mapper: {kinds}; {wide} tensors of 16 bits{floats}"

    def _input(self, value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
        name = value.name
        self.held[name] = _Held(name, False, 0)
        if value.type.tensor_type.elem_type == onnx.TensorProto.INT8:  # bytes less 128
            self.held[name] = _Held(self.builder.arithmetic(Op.SUB, name, 128.0, f"{name}_centred"), False, 8)
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, self.shapes[name])

    def plain(self, name: str) -> str:
        """A tensor in the file's own layout."""
        held = self.held.get(name)
        if held is None:
            if name not in self.constants:
                raise UserError(f"{self.source}: {name} is read before it is written", "export the model again")
            array = self.constants[name]
            kind = array.dtype if array.dtype in (np.int64, np.bool_) else np.float32
            return self.builder.constant(array, kind)
        if not held.first:
            return held.name
        return self.builder.add(Op.TRANSPOSE, [held.name], f"{held.name}.last", perm=list(_LAST))

    def map(self, name: str) -> str:
        """A channels-last map of the file, channels first."""
        held = self.held.get(name)
        if held is not None and held.first:
            return held.name
        plain = self.plain(name)
        if len(self._shape(name)) != 4:
            raise UserError(f"{self.source}: {self.node.name} reads {name}, which is no map", "export the model again")
        return self.builder.add(Op.TRANSPOSE, [plain], f"{plain}.first", perm=list(_FIRST))

    def operand(self, index: int, first: bool) -> str:
        """An input in the layout in which the node is computed."""
        name = self.node.input[index]
        return self.map(name) if first and len(self._shape(name)) == 4 else self.plain(name)

    def bits(self, index: int) -> int:
        """Of an input's integers."""
        name = self.node.input[index]
        if name in self.constants:
            return 16 if self.constants[name].dtype == np.int16 else 8
        return self.held[name].bits or 8

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.constants[name].shape) if name in self.constants else self.shapes[name]

    @property
    def is_map(self) -> bool:
        """Whether the node is computed channels first: it says that its maps are channels last."""
        return self.attributes.get("data_format") == b"NHWC" and len(self.shapes[self.node.output[0]]) == 4

    @property
    def follows_map(self) -> bool:
        """Whether a node that only says axes can follow its inputs, all held channels first."""
        computed = [self.held[name] for name in self.node.input if name in self.held]
        return bool(computed) and all(held.first for held in computed)

    def store(self, name: str, first: bool, bits: int, index: int = 0) -> None:
        """The node's output."""
        self.held[self.node.output[index]] = _Held(name, first, bits)

    def fresh(self) -> str:
        """A name for the node's output."""
        return self.builder.fresh(f"{self.node.output[0]}_integers")

    def numbers(self, key: str) -> NDArray[np.int64]:
        """An attribute: () where all entries are one."""
        values = np.asarray(self.attributes[key], np.int64)
        return np.asarray(values.flat[0]) if np.all(values == values.flat[0]) else values

    def axes(self, first: bool) -> tuple[int, ...]:
        """How one number a channel broadcasts against the node's output."""
        rank = len(self.shapes[self.node.output[0]])
        return tuple(-1 if axis == (1 if first else rank - 1) else 1 for axis in range(rank))

    def times(self, x: str, factor: Array, first: bool) -> str:
        """A float64 tensor times one number, or one a channel."""
        shaped = factor.reshape(self.axes(first)) if factor.ndim else factor
        return self.builder.arithmetic(Op.MUL, x, shaped, self.node.name, np.float64)

    def constant(self, index: int) -> Array:
        """An input that must be constant."""
        name = self.node.input[index]
        if name not in self.constants:
            raise UserError(f"{self.source}: {self.node.name}: its input {name} is computed", "export the model again")
        return np.asarray(self.constants[name])

    def multiply(self, x: str, keys: tuple[str, str, str], bits: int, first: bool, *, half: bool, double: bool,
                 bounds: tuple[int, int] | None = None) -> None:  # fmt: skip
        """Through first shift, multiplier and second shift, named by ``keys``; the result is the node's output."""
        fixed = FixedPoint(*(self.numbers(key) for key in keys))
        output, axes = self.fresh(), self.axes(first)
        limits = bounds or _limits(bits)
        scaled(self.builder, x, fixed, limits, output, half=half, is_double=double, axes=axes)
        self.store(output, first, bits)


def _limits(bits: int) -> tuple[int, int]:
    return DTYPES[f"int{bits}"]


def _integers(reader: _Reader, index: int, first: bool) -> Integers:
    name, bits = reader.operand(index, first), reader.bits(index)
    shape = reader._shape(reader.node.input[index])
    shape = tuple(shape[axis] for axis in _FIRST) if first and len(shape) == 4 else shape
    return Integers(name, Encoding(f"int{bits}", 1.0), shape, *_limits(bits))


def _product(reader: _Reader) -> None:
    """Conv and ConvTranspose with everything that is fused into them."""
    a, node, builder = reader.attributes, reader.node, reader.builder
    transposed = "Transpose" in node.op_type
    order = (0, 3, 1, 2)
    weight = reader.constant(1).astype(np.int32).transpose(order)
    bias = reader.constant(2).astype(np.int64) if len(node.input) > 2 and a.get("use_bias", 1) else None
    shifted = reader.constant(3) if len(node.input) > 3 and node.input[3] in reader.constants else None
    left = np.asarray(a.get("b_left_shift", [0]), np.int64) if shifted is None else shifted.astype(np.int64)
    bias = None if bias is None else bias << left
    keys = ("kernel_shape", "pads", "strides", "dilations", "group", "output_padding")
    geometry = {key: a[key] for key in keys if key in a}
    shape = reader.shapes[node.output[0]]
    kind = "ConvTranspose" if transposed else Op.CONV

    def emit(x: str, w: str, b: str | None) -> str:
        return builder.add(kind, [x, w] if b is None else [x, w, b], node.name, **geometry)

    x = _integers(reader, 0, True)
    total = ProductSum(
        reader.context, node.name, emit, x, weight, 1 if transposed else 0, bias, np.ones(()),
        tuple(shape[axis] for axis in _FIRST), 1,
    )  # fmt: skip
    names = ("accu_right_shift", "y_quant_scale", "y_right_shift") if transposed else _SHIFTS
    bits = int(a.get("output_bit", 8))
    output = reader.fresh()
    if bits == 32 or names[1] not in a:
        total.quantized(Encoding("int32", 1.0), *DTYPES["int32"], output)
        reader.store(output, True, 32)
        return
    low, high = _limits(bits)
    bounds = (max(low, 0) if a.get("activation") == b"relu" else low, high)
    if a.get("use_sumin"):
        _fused_addition(reader, total, bits, bounds)
        return
    fixed = FixedPoint(*(reader.numbers(key) for key in names))
    total.through(fixed, bounds, output, half=False)
    reader.store(output, True, bits)


def _fused_addition(reader: _Reader, total: ProductSum, bits: int, bounds: tuple[int, int]) -> None:
    """An Add behind a convolution: the other operand, in steps of the accumulator, is added before the shifts."""
    builder, node = reader.builder, reader.node
    index = next(i for i in range(3, len(node.input)) if node.input[i] in reader.held)
    other = builder.cast(reader.operand(index, True), "double", node.name)
    factor = reader.numbers("e_scale") * np.exp2(reader.numbers("e_shift").astype(np.float64))
    other = builder.add(Op.FLOOR, [reader.times(other, factor, True)], node.name)
    accumulator = builder.cast(total.accumulator(), "double", node.name)
    summed = builder.add(Op.ADD, [accumulator, other], node.name)
    reader.multiply(summed, _SHIFTS, bits, True, half=False, double=True, bounds=bounds)


def _sum(reader: _Reader) -> None:
    """Add and Sub of two activations."""
    first, node, builder = reader.is_map, reader.node, reader.builder
    terms = []
    for index, key in enumerate(("x_shift", "e_scale")):
        name = builder.cast(reader.operand(index, first), "double", node.name)
        numbers = reader.numbers(key).astype(np.float64)
        left = reader.numbers("e_shift") if "e_shift" in reader.attributes else np.zeros(())
        factor = np.exp2(numbers) if index == 0 else numbers * np.exp2(left.astype(np.float64))
        terms.append(reader.times(name, factor, first))
    total = builder.add(Op.SUB if "Sub" in node.op_type else Op.ADD, terms, node.name)
    reader.multiply(total, _OUTPUT, int(reader.attributes["output_bit"]), first, half=True, double=True)


def _multiplied(reader: _Reader) -> None:
    first, builder = reader.is_map, reader.builder
    sides = [builder.cast(reader.operand(index, first), "double", reader.node.name) for index in (0, 1)]
    total = builder.add(Op.MUL, sides, reader.node.name)
    reader.multiply(total, _OUTPUT, int(reader.attributes["output_bit"]), first, half=True, double=True)


def _matrix(reader: _Reader) -> None:
    node, builder = reader.node, reader.builder
    x, y = _integers(reader, 0, False), _integers(reader, 1, False)

    def emit(left: str, right: str, bias: str | None) -> str:
        return builder.add(Op.MATMUL, [left, right], node.name)

    shape = reader.shapes[node.output[0]]
    last = len(shape) - 1
    total = ProductSum(reader.context, node.name, emit, x, y, None, None, np.ones(()), shape, last, x.shape[-1])
    bits, output = int(reader.attributes["output_bit"]), reader.fresh()
    if bits == 32:
        total.quantized(Encoding("int32", 1.0), *DTYPES["int32"], output)
    else:
        fixed = FixedPoint(*(reader.numbers(key) for key in _SHIFTS))
        total.through(fixed, _limits(bits), output, half=True)
    reader.store(output, False, bits)


def _requantized(reader: _Reader) -> None:
    first, bits = reader.is_map, int(reader.attributes["bits"])
    shift, scale = reader.numbers("output_right_shift"), reader.numbers("output_scale")
    fixed, output = FixedPoint(np.zeros((), np.int64), scale, shift), reader.fresh()
    scaled(reader.builder, reader.operand(0, first), fixed, _limits(bits), output, half=True, axes=reader.axes(first))
    reader.store(output, first, bits)


def _average(reader: _Reader) -> None:
    """GlobalAveragePool, ReduceMean and ReduceSum."""
    a, builder, node = reader.attributes, reader.builder, reader.node
    shape, is_pool = reader._shape(node.input[0]), "Global" in node.op_type
    first = len(shape) == 4 and (is_pool or reader.held[node.input[0]].first)
    listed = [1, 2] if is_pool else np.atleast_1d(a.get("axis", a.get("axes", 1))).tolist()
    axes = [_MOVED[axis] if first else axis for axis in listed]
    name = builder.cast(reader.operand(0, first), "double", node.name)
    keep = len(reader.shapes[node.output[0]]) == len(shape)
    total = builder.reduced(Op.REDUCE_SUM, name, sorted(axes), node.name, keep)
    keys = _OUTPUT if is_pool else ("accu_right_shift", "scale", "out_shift")
    reader.multiply(total, keys, int(a["output_bit"]), first and keep, half=True, double=True)


def _average_pool(reader: _Reader) -> None:
    """``(sum * floor(2^scale / window)) >> scale``, padding counted."""
    a, builder, node = reader.attributes, reader.builder, reader.node
    window, shift = int(np.prod(a["kernel_shape"])), int(a["scale"])
    geometry = {"kernel_shape": a["kernel_shape"], "strides": a["strides"], "pads": a["pads"]}
    mean = builder.add("AveragePool", [reader.operand(0, True)], node.name, **geometry, count_include_pad=1)
    total = builder.add(Op.ROUND, [builder.arithmetic(Op.MUL, mean, float(window), node.name)], node.name)
    share = ((1 << shift) // window) / (1 << shift)
    name = builder.add(Op.FLOOR, [builder.arithmetic(Op.MUL, total, share, node.name)], node.name)
    reader.store(name, True, reader.bits(0))


def _max_pool(reader: _Reader) -> None:
    a, node = reader.attributes, reader.node
    geometry = {key: a[key] for key in ("kernel_shape", "strides", "pads", "ceil_mode", "dilations") if key in a}
    kind = "GlobalMaxPool" if "Global" in node.op_type else "MaxPool"
    name = reader.builder.add(kind, [reader.operand(0, True)], node.name, **geometry)
    reader.store(name, True, reader.bits(0))


def _largest(reader: _Reader) -> None:
    node, axis = reader.node, int(np.atleast_1d(reader.attributes["axis"])[0])
    first = len(reader._shape(node.input[0])) == 4 and reader.held[node.input[0]].first
    axes = [_MOVED[axis] if first else axis]
    keep = len(reader.shapes[node.output[0]]) == len(reader._shape(node.input[0]))
    name = reader.builder.reduced(Op.REDUCE_MAX, reader.operand(0, first), axes, node.name, keep)
    reader.store(name, first and keep, reader.bits(0))


def _table(reader: _Reader) -> None:
    first, node = reader.is_map, reader.node
    table, output = np.roll(reader.constant(1).astype(np.int64), -128), reader.fresh()
    _look_up(reader, table, first, output, 8, node.input[0])


def _look_up(reader: _Reader, table: Array, first: bool, output: str, bits: int, source: str) -> None:
    shape = reader._shape(source)
    shape = tuple(shape[axis] for axis in _FIRST) if first else shape
    look_up(reader.context, reader.operand(0, first), table, shape, output)
    reader.store(output, first, bits)


def _wide_table(reader: _Reader) -> None:
    """16 bits: two lines outside, six tables of 64 points between bounds, each interpolated with 8 bits."""
    x = np.arange(-32768, 32768, dtype=np.int64)
    scale, bias, left, right, bound = (
        np.asarray(reader.attributes[key], np.int64) for key in ("scale", "bias", "left_shift", "right_shift", "bound")
    )
    if reader.attributes.get("symmetry_mode", b"NONE") != b"NONE":
        raise UserError(f"{reader.source}: {reader.node.name} is a symmetric table", "please report the model")
    part = np.searchsorted(bound[:7], x)
    line = x * scale[part] + (bias[part] << left[part])
    line = np.where(right[part] > 0, (line + (1 << np.maximum(right[part] - 1, 0))) >> right[part], line)
    points = np.asarray(reader.attributes["table_param"], np.int64).reshape(6, 64)
    inner = np.clip(part - 1, 0, 5)
    index = np.clip(line >> 8, 0, 62)
    low, high = points[inner, index], points[inner, index + 1]
    curve = (low * 256 + (high - low) * (line - (index << 8)) + 128) >> 8
    bits = int(reader.attributes["output_bit"])
    table = np.clip(np.where((part == 0) | (part == 7), line, curve), *_limits(bits))
    _look_up(reader, np.roll(table, -32768), reader.is_map, reader.fresh(), bits, reader.node.input[0])


def _enlarged(reader: _Reader) -> None:
    a, node, builder = reader.attributes, reader.node, reader.builder
    if a.get("mode") != b"nearest":
        raise UserError(f"{reader.source}: {node.name} enlarges by {a.get('mode')!r}", "please report the model")
    factors = builder.constant(np.asarray([1, 1, *a["scale"]], np.float32))
    rule = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    reader.store(builder.add("Resize", [reader.operand(0, True), "", factors], node.name, **rule), True, reader.bits(0))


def _resized(reader: _Reader) -> None:
    """Bilinear, half a pixel, by a factor of two: quarters, half of them rounded up."""
    a, node, builder = reader.attributes, reader.node, reader.builder
    before, after = reader._shape(node.input[0])[1:3], tuple(a["sizes"])
    if a.get("align_mode") != b"center" or after != tuple(2 * size for size in before):
        raise UserError(f"{reader.source}: {node.name} resizes {before} to {after}", "please report the model")
    factors = builder.constant(np.asarray([1, 1, 2, 2], np.float32))
    rule = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    grid = builder.add("Resize", [reader.operand(0, True), "", factors], node.name, **rule)
    grid = builder.add(Op.FLOOR, [builder.arithmetic(Op.ADD, grid, 0.5, node.name)], node.name)
    reader.store(grid, True, reader.bits(0))


def _padded(reader: _Reader) -> None:
    a, node, builder = reader.attributes, reader.node, reader.builder
    widths = np.asarray(a["pads"], np.int64).reshape(2, -1)
    first = reader.is_map
    widths = widths[:, list(_FIRST)] if first else widths
    inputs = [reader.operand(0, first), builder.shape(widths.reshape(-1).tolist())]
    inputs += [builder.constant(float(reader.constant(1).reshape(-1)[0]))] if a["mode"] == b"constant" else []
    reader.store(builder.add("Pad", inputs, node.name, mode=a["mode"].decode()), first, reader.bits(0))


def _blocks(reader: _Reader) -> None:
    """DepthToSpace and SpaceToDepth."""
    a, node = reader.attributes, reader.node
    size = a.get("blocksize") or a["block_height"]
    more = {"mode": a["mode"].decode()} if "mode" in a else {}
    name = reader.builder.add(node.op_type[2:], [reader.operand(0, True)], node.name, blocksize=int(size), **more)
    reader.store(name, True, reader.bits(0))


def _slopes(reader: _Reader) -> None:
    """PRelu: what is below 0 through a slope of 16 bits a channel and a multiplier."""
    builder, node = reader.builder, reader.node
    x, slope = reader.operand(0, True), reader.constant(1).astype(np.float64)
    slope = slope.transpose(_FIRST) if slope.ndim == 4 else slope
    product = builder.arithmetic(Op.MUL, builder.cast(x, "double", node.name), slope, node.name, np.float64)
    fixed = FixedPoint(*(reader.numbers(key) for key in ("accu_right_shift", "negative_scale", "negative_right_shift")))
    below, bits = builder.fresh(f"{node.output[0]}_below"), reader.bits(0)
    scaled(builder, product, fixed, _limits(bits), below, half=True, is_double=True)
    if (int(reader.numbers("positive_scale")), int(reader.numbers("positive_right_shift"))) != (1, 0):
        raise UserError(f"{reader.source}: {node.name} scales what is above 0", "please report the model")
    above = builder.add("Greater", [x, builder.constant(0.0)], node.name)
    reader.store(builder.add(Op.WHERE, [above, x, below], node.name), True, bits)


def _quantize(reader: _Reader) -> None:
    """``clip(round(x / scale))``; half to even."""
    bits, builder, node = int(reader.attributes["bits"]), reader.builder, reader.node
    x = builder.arithmetic(Op.DIV, reader.plain(node.input[0]), reader.constant(1).reshape(-1)[0], node.name)
    low, high = (builder.constant(float(bound)) for bound in _limits(bits))
    reader.store(builder.add(Op.CLIP, [builder.add(Op.ROUND, [x], node.name), low, high], node.name), False, bits)


def _dequantize(reader: _Reader) -> None:
    node = reader.node
    first = reader.held[node.input[0]].first
    scale, rank = reader.constant(1).reshape(-1), len(reader.shapes[node.output[0]])
    axis = int(reader.attributes.get("axis", 1))
    shape = [1] * rank
    if scale.size > 1:
        shape[_MOVED[axis] if first else axis] = -1
    factor = scale.reshape(shape) if scale.size > 1 else scale[0]
    wide = [reader.builder.constant(float(bound)) for bound in (-(2**53), 2**53)]  # else folded into the weights before
    x = reader.builder.cast(reader.operand(0, first), "float", node.name)
    x = reader.builder.add(Op.CLIP, [x, *wide], node.name)
    reader.store(reader.builder.arithmetic(Op.MUL, x, factor, node.name), first, 0)


def _preprocess(reader: _Reader) -> None:
    """Mean and scale of an image as a convolution of single pixels."""
    a = reader.attributes
    reader.color = {b"RGB_128": "rgb", b"BGR_128": "bgr", b"GRAY_128": "gray"}.get(a.get("input_type", b""), "")
    if not reader.color:
        what = f"{reader.source}: its image arrives as {a.get('input_type')!r}"
        raise UserError(what, "compile with input_type_rt rgb")
    a |= {"kernel_shape": [1, 1], "group": int(a["channel_group"])}
    _product(reader)


def _turned(reader: _Reader) -> None:
    """Transpose; between the two layouts it is only another way of looking at a map."""
    name, perm = reader.node.input[0], tuple(reader.attributes["perm"])
    held = reader.held[name]
    if held.first and perm == _FIRST:
        reader.store(held.name, False, held.bits)
    elif not held.first and perm == _LAST:
        reader.store(held.name, True, held.bits)
    else:
        turned = reader.builder.add(Op.TRANSPOSE, [reader.plain(name)], reader.node.name, perm=list(perm))
        reader.store(turned, False, held.bits)


def _joined(reader: _Reader) -> None:
    first, axis = reader.follows_map, int(reader.attributes["axis"])
    names = [reader.operand(index, first) for index in range(len(reader.node.input))]
    name = reader.builder.add("Concat", names, reader.node.name, axis=_MOVED[axis] if first else axis)
    reader.store(name, first, max(reader.bits(index) for index in range(len(names))))


def _divided(reader: _Reader) -> None:
    first, axis = reader.follows_map, int(reader.attributes.get("axis", 0))
    sizes = reader.attributes.get("split") or reader.constant(1).tolist()
    outputs = [reader.builder.fresh(f"{name}_part") for name in reader.node.output]
    inputs = [reader.operand(0, first), reader.builder.shape(sizes)]
    axis = _MOVED[axis] if first else axis
    reader.builder.append(helper.make_node("Split", inputs, outputs, f"{reader.node.name}_split", axis=axis))
    for index, name in enumerate(outputs):
        reader.store(name, first, reader.bits(0), index)


def _elementwise(reader: _Reader) -> None:
    """Max, Min, Relu: the same in both layouts."""
    first = reader.follows_map and all(name in reader.held for name in reader.node.input)
    names = [reader.operand(index, first) for index in range(len(reader.node.input))]
    reader.store(reader.builder.add(reader.node.op_type, names, reader.node.name), first, reader.bits(0))


def _with_axes(reader: _Reader) -> None:
    """Operators whose axes became an input after opset 11."""
    node = reader.node
    others = {key: value for key, value in reader.attributes.items() if key != "axes"}
    inputs = [reader.plain(name) for name in node.input]
    inputs += [reader.builder.shape(reader.attributes["axes"])] if "axes" in reader.attributes else []
    reader.store(reader.builder.add(node.op_type, inputs, node.name, **others), False, _kept_bits(reader))


def _softmax(reader: _Reader) -> None:
    """Before opset 13 all axes from ``axis`` on were one."""
    shape, axis = reader._shape(reader.node.input[0]), int(reader.attributes.get("axis", 1))
    if all(size == 1 for size in shape[axis % len(shape) + 1 :]):
        _copied(reader)
        return
    builder, node = reader.builder, reader.node
    flat = builder.add("Flatten", [reader.plain(node.input[0])], node.name, axis=axis)
    shares = builder.add(node.op_type, [flat], node.name, axis=-1)
    reader.store(builder.add(Op.RESHAPE, [shares, builder.shape(shape)], node.name), False, 0)


def _copied(reader: _Reader) -> None:
    """An operator of ONNX in the file's own layout."""
    node = onnx.NodeProto()
    node.CopyFrom(reader.node)
    node.input[:] = [reader.plain(name) if name else "" for name in reader.node.input]
    node.output[:] = [reader.builder.fresh(f"{name}_plain") for name in reader.node.output]
    reader.builder.append(node)
    for index, name in enumerate(node.output):
        reader.store(name, False, _kept_bits(reader), index)


def _kept_bits(reader: _Reader) -> int:
    name = reader.node.input[0] if reader.node.input else ""
    return reader.held[name].bits if name in reader.held else 0


Rule = Callable[[_Reader], None]
_RULES: dict[str, Rule] = {
    "HzQuantize": _quantize,
    "HzDequantize": _dequantize,
    "HzRequantize": _requantized,
    "HzSQuantizedConv": _product,
    "HzSQuantizedConvTranspose": _product,
    "HzSQuantizedMatmul": _matrix,
    "HzSQuantizedPreprocess": _preprocess,
    "HzSElementwiseAdd": _sum,
    "HzSElementwiseSub": _sum,
    "HzSElementwiseMul": _multiplied,
    "HzLut": _table,
    "HzLut2Layer": _wide_table,
    "HzSQuantizedGlobalAveragePool": _average,
    "HzSQuantizedReduceMean": _average,
    "HzSQuantizedReduceSum": _average,
    "HzQuantizedAveragePool": _average_pool,
    "HzQuantizedMaxPool": _max_pool,
    "HzQuantizedGlobalMaxPool": _max_pool,
    "HzQuantizedReduceMax": _largest,
    "HzQuantizedResizeUpsample": _enlarged,
    "HzQuantizedRoiResize": _resized,
    "HzPad": _padded,
    "HzDepthToSpace": _blocks,
    "HzSpaceToDepth": _blocks,
    "HzSPRelu": _slopes,
}
_STANDARD: dict[str, Rule] = {
    "Concat": _joined,
    "Max": _elementwise,
    "Min": _elementwise,
    "Softmax": _softmax,
    "Split": _divided,
    "Transpose": _turned,
    **dict.fromkeys(("ReduceSum", "Squeeze", "Unsqueeze"), _with_axes),
}
