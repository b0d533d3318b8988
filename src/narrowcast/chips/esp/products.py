"""Sums of products: Conv, ConvTranspose, Gemm, MatMul, with packed weights, written and read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.chips.esp.assembly import Assembly, Chain, Stored, exponents
from narrowcast.chips.esp.file import (
    AttributeValue,
    EspdlNode,
    EspdlTensor,
    Order,
    channels_last,
    filter_layout,
    identity,
    pack_filter,
    pack_matrix,
    packed_lanes,
    reordered,
    unpack_filter,
    unpack_matrix,
)
from narrowcast.chips.esp.moving import explicit_pads, window_attribute
from narrowcast.chips.esp.restoring import Fact, Family, Known, Restoring
from narrowcast.chips.schema import Target
from narrowcast.engine.integer import bias_integers, constant_integers
from narrowcast.ops.net import constant_at, constant_of, dims, input_at, only_reader
from narrowcast.plan.drafting import operand_encoding
from narrowcast.plan.types import Encoding, Plan

__all__ = ["PRODUCTS", "fused_relu"]


def _lanes(dtype: str) -> int:
    """Output channels of a block of a packed filter."""
    return 16 if dtype == "int8" else 8


# what they have in common


def fused_relu(assembly: Assembly, node: ir.Node) -> ir.Node | None:
    """The Relu that the runtime does in the same step as a sum of products, if there is one."""
    value = node.outputs[0]
    relu = only_reader(value) if str(value.name) not in assembly.plan.tensors else None
    chained = relu is not None and relu.op_type == "Relu" and (node.op_type, "Relu") in assembly.target.fusions
    return relu if chained else None


class _Sum:
    """A sum of products that is being written.

    Attributes:
        value: that it writes, behind its Relu.
        wanted: encoding of that.
        activation: on the way.
    """

    def __init__(self, assembly: Assembly, node: ir.Node) -> None:
        self.assembly, self.node, self.name = assembly, node, str(node.name)
        relu = fused_relu(assembly, node)
        self.value = node.outputs[0] if relu is None else relu.outputs[0]
        self.wanted = assembly.encoding(self.value, node)
        self.activation = "Linear" if relu is None else "Relu"

    def operand(self, index: int, order: Order | None = None) -> Stored:
        """A computed operand; in the model's order by default."""
        stored = self.assembly.alike(self.node, index, self.wanted)
        return self.assembly.ordered(stored, order or identity(len(stored.shape)))

    def weights(self) -> tuple[str, Encoding, NDArray[np.int64]]:
        """Name, encoding and integers of the constant right operand."""
        value, array = input_at(self.node, 1), self.assembly.constant(self.node, 1)
        name = "" if value is None else str(value.name)
        encoding = self.assembly.plan.tensors.get(name)
        if encoding is None or array is None:
            raise UserError(f"the plan has no encoding for {name}, the weight of {self.name}", "make the plan again")
        if encoding.dtype != self.wanted.dtype:
            types = f"{encoding.dtype} weights and {self.wanted.dtype} results"
            raise UserError(f"{self.name} has {types}", "make the plan again")
        return name, encoding, constant_integers(array, encoding, self.assembly.target)

    def bias(self, channels: int) -> EspdlTensor | None:
        """The bias, if there is one."""
        value, plan = input_at(self.node, 2), self.assembly.plan
        if value is None:
            return None
        name, array = str(value.name), constant_of(value)
        if array is None or name not in plan.tensors:
            raise UserError(f"{self.name}: its bias is computed or has no encoding", "make the plan again")
        spread, kind = np.broadcast_to(array.reshape(-1), (channels,)), plan.nodes[self.name].type
        integers = bias_integers(spread, plan.tensors[name], self.assembly.target, kind)
        stored = integers.astype(np.int64 if self.wanted.dtype == "int16" else np.int32)
        return EspdlTensor(name, (channels,), stored, exponents(plan.tensors[name], name), "UNK")


def _read_sum(restoring: Restoring, node: EspdlNode, order: Order, inputs: list[str], **attributes: object) -> None:
    """A sum of products in a model, with the Relu that the runtime does in the same step."""
    output, activation = node.outputs[0], node.text("activation", "Linear")
    restoring.store(output, order)
    if activation not in ("Linear", "Relu", ""):
        raise ValueError(f"activation {activation}")
    relu = activation == "Relu"
    inner = f"{output}__before_relu" if relu else output
    restoring.emit(node.op_type, node.name, inputs, [inner], **attributes)
    if relu:
        restoring.emit("Relu", f"{node.name}/Relu", [inner], [output])
        # the sum has the type of the result
        restoring.placements[node.name] = restoring.placements[f"{node.name}/Relu"]
        restoring.values[inner] = restoring.describe(Known(inner, restoring.known[output].shape, order))


def _encoding(tensor: EspdlTensor, dtype: str, channels: int, axis: int) -> Encoding:
    """Of a tensor with one exponent, or one a channel."""
    if len(tensor.exponents) not in (1, channels):
        raise ValueError(f"{len(tensor.exponents)} exponents of {tensor.name} for {channels} channels")
    scales = tuple(2.0**exponent for exponent in tensor.exponents)
    return Encoding(dtype, scales[0]) if len(scales) == 1 else Encoding(dtype, scales, 0, axis)


def _read_weight(restoring: Restoring, name: str, array: NDArray[Any], axis: int) -> str:
    encoding = _encoding(restoring.file.tensors[name], array.dtype.name, array.shape[axis], axis)
    restoring.encodings[name] = encoding
    return restoring.number(name, (array * encoding.broadcast(array.ndim)).astype(np.float32))


def _read_bias(restoring: Restoring, node: EspdlNode, channels: int) -> list[str]:
    if len(node.inputs) < 3 or not node.inputs[2]:
        return []
    tensor = restoring.file.tensors[node.inputs[2]]
    encoding = _encoding(tensor, "int64" if tensor.data.dtype.itemsize == 8 else "int32", channels, 0)
    restoring.encodings[tensor.name] = encoding
    # float32 has 24 bits, a bias up to 40
    wide = tensor.data.size > 0 and int(np.abs(tensor.data.astype(np.int64)).max()) >= 2**24
    values = (tensor.data * encoding.broadcast(1)).astype(np.float64 if wide else np.float32)
    return [restoring.number(tensor.name, values)]


# convolutions


@dataclass(frozen=True)
class _Weights:
    """Constants of a convolution.

    Attributes:
        name: of the filter.
        encoding: of the filter, per tensor or per output channel.
        integers: the filter, (N, C / group, ...).
        bias: (N,), or ``None``.
        group: into how many parts the channels fall.
    """

    name: str
    encoding: Encoding
    integers: NDArray[np.int64]
    bias: EspdlTensor | None = None
    group: int = 1

    def stored(self, assembly: Assembly) -> list[str]:
        """Their names in the file: the filter packed, with logical dims HWCN, or HWNC of a depthwise one."""
        lanes, rank, depthwise = _lanes(self.encoding.dtype), self.integers.ndim, self.group > 1
        sizes = reordered(self.integers.shape, (*range(2, rank), *((0, 1) if depthwise else (1, 0))))
        data = pack_filter(self.integers.astype(self.encoding.dtype), lanes, depthwise)
        layout = filter_layout(len(self.integers), rank - 2, lanes)
        filters = EspdlTensor(self.name, sizes, data, exponents(self.encoding, self.name), layout)
        return [assembly.add_tensor(tensor) for tensor in (filters, self.bias) if tensor is not None]

    def part(self, index: int) -> _Weights:
        """Those of one group, which is a convolution by itself."""
        each = len(self.integers) // self.group
        own, encoding, bias = slice(index * each, (index + 1) * each), self.encoding, self.bias
        if isinstance(encoding.scale, tuple):
            encoding = replace(encoding, scale=encoding.scale[own])
        if bias is not None:
            scales = bias.exponents if len(bias.exponents) == 1 else bias.exponents[own]
            bias = replace(bias, name=f"{bias.name}__{index}", dims=(each,), data=bias.data[own], exponents=scales)
        return _Weights(f"{self.name}__{index}", encoding, self.integers[own], bias)


def _convolve(
    assembly: Assembly, name: str, x: Stored, weights: _Weights, output: Stored, **attributes: AttributeValue
) -> None:
    """A Conv with any number of groups.

    The runtime has 1 group, or as many as input and output channels. A depthwise filter with several outputs a channel
    reads each channel several times; other groups are convolutions of their own.
    """
    group, (count, depth) = weights.group, weights.integers.shape[:2]
    if group > 1 and depth > 1:
        _convolve_groups(assembly, name, x, weights, output, **attributes)
        return
    if group > 1 and count > group:
        indices = assembly.plain(f"{name}/channels", np.repeat(np.arange(group), count // group))
        names, shape = (f"{name}/Gather", f"{name}/repeated"), (x.shape[0], count, *x.shape[2:])
        x = assembly.extra("Gather", names, [x.name, indices], x, shape, x.order, axis=len(shape) - 1)
    inputs = [x.name, *weights.stored(assembly)]
    assembly.emit("Conv", name, inputs, [output.name], group=count if group > 1 else 1, **attributes)


def _convolve_groups(
    assembly: Assembly, name: str, x: Stored, weights: _Weights, output: Stored, **attributes: AttributeValue
) -> None:
    """Split, a Conv a group, Concat."""
    group, last = weights.group, len(x.shape) - 1

    def part(whole: Stored, index: int, kind: str) -> Stored:
        shape = (whole.shape[0], whole.shape[1] // group, *whole.shape[2:])
        return assembly.declare(replace(whole, name=assembly.fresh(f"{name}/{kind}_{index}"), shape=shape))

    pieces = [part(x, index, "input") for index in range(group)]
    results = [part(output, index, "output") for index in range(group)]
    sizes = assembly.numbers(f"{name}/groups", [x.shape[1] // group] * group)
    split, join = (assembly.fresh_node(f"{name}/{kind}") for kind in ("Split", "Concat"))
    assembly.emit("Split", split, [x.name, sizes], [piece.name for piece in pieces], axis=last)
    for index, (piece, result) in enumerate(zip(pieces, results, strict=True)):
        node = assembly.fresh_node(f"{name}_{index}")
        _convolve(assembly, node, piece, weights.part(index), result, **attributes)
    assembly.emit("Concat", join, [result.name for result in results], [output.name], axis=last)


def _write_convolution(assembly: Assembly, node: ir.Node) -> None:
    total = _Sum(assembly, node)
    weights = _Weights(*total.weights())
    kernel, order = weights.integers.shape[2:], channels_last(weights.integers.ndim)
    x = total.operand(0, order)
    weights = replace(weights, bias=total.bias(len(weights.integers)), group=node.attributes.get_int("group", 1))
    _convolve(
        assembly, total.name, x, weights, assembly.result(total.value, order, total.wanted),
        activation=total.activation, kernel_shape=kernel, dilations=window_attribute(node, "dilations", len(kernel), 1),
        pads=explicit_pads(node, kernel, x.shape[2:]), strides=window_attribute(node, "strides", len(kernel), 1),
    )  # fmt: skip


def _unpack(tensor: EspdlTensor, shape: tuple[int, ...], depthwise: bool = False) -> NDArray[Any]:
    """A filter of that shape, (N, C / group, ...)."""
    lanes = packed_lanes(tensor.layout)
    if lanes is not None:
        return unpack_filter(tensor.data, shape, lanes, depthwise)
    count, channels, *window = shape
    stored = tensor.data.reshape(*window, *((count, channels) if depthwise else (channels, count)))
    return np.moveaxis(stored, (-2, -1), (0, 1) if depthwise else (1, 0))


def _read_convolution(restoring: Restoring, node: EspdlNode) -> None:
    tensor = restoring.file.tensors[node.inputs[1]]
    rank, group = len(tensor.dims), node.integer("group", 1)
    depthwise = group > 1
    x = restoring.ordered(node.inputs[0], channels_last(rank))
    *window, first, second = tensor.dims
    count, channels = (first, second) if depthwise else (second, first)
    if depthwise and group != count:
        raise ValueError(f"{group} groups of {count} channels")
    weight = _unpack(tensor, (count, channels, *window), depthwise)
    inputs = [x.name, _read_weight(restoring, tensor.name, weight, 0), *_read_bias(restoring, node, count)]
    _read_sum(restoring, node, channels_last(rank), inputs, **restoring.attributes(node))


def _write_transposed(assembly: Assembly, node: ir.Node) -> None:
    """ConvTranspose: zeros between the pixels, then a Conv with the mirrored filter."""
    total = _Sum(assembly, node)
    name, encoding, integers = total.weights()  # (C, N / group, ...)
    order, kernel = channels_last(integers.ndim), integers.shape[2:]
    x, group = total.operand(0, order), node.attributes.get_int("group", 1)
    mirrored = np.flip(integers, tuple(range(2, integers.ndim)))
    mirrored = mirrored.reshape(group, -1, *integers.shape[1:]).swapaxes(1, 2)  # (group, N / group, C / group, ...)
    mirrored = mirrored.reshape(-1, *mirrored.shape[2:])
    strides, dilations = (window_attribute(node, key, len(kernel), 1) for key in ("strides", "dilations"))
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    pads, extra = _transposed_pads(node, x.shape[2:], strides, reach)
    if encoding.axis is not None:
        encoding = replace(encoding, axis=0)
    weights = _Weights(f"{name}__mirrored", encoding, mirrored, total.bias(len(mirrored)), group)
    spread = tuple((size - 1) * stride + 1 + e for size, stride, e in zip(x.shape[2:], strides, extra, strict=True))
    names, shape = (f"{node.name}/InsertZeros", f"{node.name}/spread"), (*x.shape[:2], *spread)
    zeros = assembly.extra("InsertZeros", names, [x.name], x, shape, x.order, stride=strides, output_padding=extra)
    _convolve(
        assembly, total.name, zeros, weights, assembly.result(total.value, order, total.wanted),
        activation=total.activation, kernel_shape=kernel, dilations=dilations, pads=pads, strides=(1,) * len(kernel),
    )  # fmt: skip


def _transposed_pads(
    node: ir.Node, sizes: tuple[int, ...], strides: tuple[int, ...], reach: list[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding of the Conv that does a ConvTranspose's work, and zeros behind the last pixel."""
    count = len(reach)
    pads = window_attribute(node, "pads", 2 * count, 0)
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        raise UserError(f"{node.name}: ConvTranspose with auto_pad", "export it with explicit pads")
    begins, ends = ([r - p for r, p in zip(reach, part, strict=True)] for part in (pads[:count], pads[count:]))
    extra = []
    for axis, outputs in enumerate(dims(node.outputs[0])[2:]):
        natural = (sizes[axis] - 1) * strides[axis] + 1 + begins[axis] + ends[axis] - reach[axis]
        extra.append(outputs - natural)
    if min([*begins, *ends, *extra]) < 0:
        raise UserError(f"{node.name}: ConvTranspose with padding beyond its kernel", "use less padding and a Slice")
    return (*begins, *ends), tuple(extra)


def _read_insert_zeros(restoring: Restoring, node: EspdlNode) -> None:
    """Zeros between the pixels: a transposed depthwise convolution with a single one."""
    rank = len(restoring.known[node.inputs[0]].shape)
    x, window = restoring.ordered(node.inputs[0], channels_last(rank)), rank - 2
    strides, padding = (list(node.integers(key)) for key in ("stride", "output_padding"))
    ones = restoring.number(f"{node.name}/one", np.ones((x.shape[1], 1, *[1] * window), np.float32))
    restoring.encodings[ones] = Encoding("int8", 1.0)
    restoring.store(node.outputs[0], channels_last(rank))
    restoring.emit(
        "ConvTranspose", node.name, [x.name, ones], [node.outputs[0]], group=x.shape[1], kernel_shape=[1] * window,
        strides=(strides * window)[:window] or [1] * window,
        output_padding=(padding * window)[:window] or [0] * window,
    )  # fmt: skip


# matrices


def _write_gemm(assembly: Assembly, node: ir.Node) -> None:
    """Gemm: its weights are those of a 1x1 convolution."""
    given = node.attributes
    if given.get_float("alpha", 1.0) != 1.0 or given.get_float("beta", 1.0) != 1.0 or given.get_int("transA", 0):
        raise UserError(f"{node.name}: Gemm with alpha, beta or transA", "fold them into the weights")
    total = _Sum(assembly, node)
    name, encoding, integers = total.weights()
    matrix = integers if given.get_int("transB", 0) else integers.T
    x = total.operand(0)
    weights = _Weights(name, encoding, matrix[:, :, None, None], total.bias(len(matrix)))
    inputs = [x.name, *weights.stored(assembly)]
    outputs = [assembly.result(total.value, identity(2), total.wanted).name]
    assembly.emit("Gemm", total.name, inputs, outputs, activation=total.activation, alpha=1.0, beta=1.0, transB=0)


def _read_gemm(restoring: Restoring, node: EspdlNode) -> None:
    tensor = restoring.file.tensors[node.inputs[1]]
    order = identity(len(restoring.known[node.inputs[0]].shape))
    x = restoring.ordered(node.inputs[0], order)
    channels, count = tensor.dims[-2:]
    weight = _unpack(tensor, (count, channels, 1, 1))[:, :, 0, 0]
    inputs = [x.name, _read_weight(restoring, tensor.name, weight, 0), *_read_bias(restoring, node, count)]
    _read_sum(restoring, node, order, inputs, transB=1)


def _write_matmul(assembly: Assembly, node: ir.Node) -> None:
    """MatMul, by a constant or by another activation; the runtime reads the right operand as a packed filter."""
    total, fixed = _Sum(assembly, node), constant_at(node, 0)
    if fixed is None:
        left = total.operand(0).name
    else:
        code = operand_encoding(node, 0, assembly.plan.tensors, assembly.plan.edges)
        left = assembly.encoded(str(node.inputs[0].name), constant_integers(fixed, code, assembly.target), code)
    lanes = _lanes(total.wanted.dtype)
    if constant_at(node, 1) is not None:
        name, encoding, integers = total.weights()
        layout, data = filter_layout(integers.shape[-1], 2, lanes), pack_matrix(integers.astype(encoding.dtype), lanes)
        right = assembly.add_tensor(EspdlTensor(name, integers.shape, data, exponents(encoding, name), layout))
    else:
        right = _packed(assembly, total.operand(1), lanes, total.name)
    output = assembly.result(total.value, identity(len(dims(total.value))), total.wanted)
    assembly.emit("MatMul", total.name, [left, right], [output.name], activation=total.activation)


def _packed(assembly: Assembly, matrix: Stored, lanes: int, stem: str) -> str:
    """Nodes that put a computed (..., C, N) into the order of a packed 1x1 filter, with the same shape."""
    *batch, rows, columns = matrix.shape
    axes, full = len(batch), columns // lanes * lanes
    chain = Chain(assembly, f"{stem}/pack")
    if full == columns:
        blocks = chain.reshape(matrix, (*batch, rows, columns // lanes, lanes))
        turned = chain.transpose(blocks, (*range(axes), axes + 1, axes, axes + 2))
        return chain.reshape(turned, matrix.shape).name
    turned = chain.transpose(matrix, (*range(axes), axes + 1, axes))  # (..., N, C)
    if full:
        blocks = chain.reshape(chain.cut(turned, axes, 0, full), (*batch, full // lanes, lanes, rows))
        aligned = chain.reshape(chain.transpose(blocks, (*range(axes), axes, axes + 2, axes + 1)), (*batch, full, rows))
        turned = chain.join(aligned, chain.cut(turned, axes, full, columns), axes)
    return chain.reshape(turned, matrix.shape).name


def _read_matmul(restoring: Restoring, node: EspdlNode) -> None:
    left, right = node.inputs[:2]
    known = restoring.known.get(left)
    first = restoring.constant(left) if known is None else restoring.ordered(left, identity(len(known.shape))).name
    if right in restoring.file.tensors:
        tensor = restoring.file.tensors[right]
        lanes = packed_lanes(tensor.layout)
        matrix = tensor.array if lanes is None else unpack_matrix(tensor.data, tensor.dims, lanes)
        second = _read_weight(restoring, right, matrix, matrix.ndim - 1)
    else:
        second = _unpacked(restoring, node)
    order = identity(len(restoring.file.values[node.outputs[0]].dims))
    _read_sum(restoring, node, order, [first, second])


def _unpacked(restoring: Restoring, node: EspdlNode) -> str:
    """A computed right operand, whose numbers the runtime takes for those of packed filters."""
    packed = restoring.ordered(node.inputs[1], identity(len(restoring.known[node.inputs[1]].shape)))
    if node.text("input1_layout") == "native_kn" or len(packed.shape) < 2:
        return packed.name
    *batch, rows, columns = packed.shape
    places = unpack_matrix(np.arange(rows * columns), (rows, columns), 8 if node.text("quant_type") == "S16" else 16)
    stem, last = f"{node.name}/unpack", identity(len(batch) + 1)
    while any(name.startswith(stem) for name in (*restoring.file.values, *restoring.file.tensors)):
        stem += "_"
    flat, shape = (
        restoring.number(f"{stem}_{key}", np.asarray(sizes, np.int64))
        for key, sizes in (("flat", (*batch, rows * columns)), ("shape", packed.shape))
    )
    flattened, taken = (restoring.own(packed, f"{stem}/{key}", (*batch, rows * columns), last) for key in "ab")
    whole = restoring.own(packed, f"{stem}/whole", packed.shape, packed.order)
    restoring.emit("Reshape", f"{stem}_flatten", [packed.name, flat], [flattened.name])
    indices = restoring.number(f"{stem}_places", places.ravel())
    restoring.emit("Gather", f"{stem}_take", [flattened.name, indices], [taken.name], axis=len(batch))
    restoring.emit("Reshape", f"{stem}_shape", [taken.name, shape], [whole.name])
    return whole.name


# versions of the runtime


def _per_channel(node: ir.Node, plan: Plan | None, target: Target) -> bool:
    if constant_at(node, 1) is None:
        return False
    encoding = plan.tensors.get(str(node.inputs[1].name)) if plan is not None else None
    return node.op_type in target.weight.per_channel if encoding is None else encoding.axis is not None


_PER_CHANNEL = Fact(
    _per_channel,
    "ESP-DL before 2026-04-15 computes per-channel weights with wrong scales",
    "update ESP-DL to 3.3",
    since=(3, 3),
)
_PACKED_OPERAND = Fact(
    lambda node, plan, target: constant_at(node, 1) is None,
    "newer ESP-DL may expect the right operand unpacked (native_kn)",
    "compare a test vector on the board",
    until=(3, 3),
    severity="warning",
)

PRODUCTS = (
    Family(("Conv",), _read_convolution, _write_convolution, "last", (_PER_CHANNEL,)),
    Family(("ConvTranspose",), Restoring.take_last, _write_transposed, "last", (_PER_CHANNEL,)),
    Family(("InsertZeros",), _read_insert_zeros, axes="last"),
    Family(("Gemm",), _read_gemm, _write_gemm, facts=(_PER_CHANNEL,)),
    Family(("MatMul",), _read_matmul, _write_matmul, facts=(_PER_CHANNEL, _PACKED_OPERAND)),
)
