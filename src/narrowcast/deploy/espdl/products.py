"""Sums of products in the file: Conv, ConvTranspose, Gemm, MatMul, with packed weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.deploy.espdl.assembly import Assembly, Stored, exponents
from narrowcast.deploy.espdl.file import AttributeValue, EspdlTensor
from narrowcast.deploy.espdl.layouts import channels_last, identity, reordered
from narrowcast.deploy.espdl.packing import filter_layout, pack_filter, pack_matrix
from narrowcast.graph.windows import windows
from narrowcast.lower.integer import bias_integers, constant_integers
from narrowcast.ops.net import constant_of, dims
from narrowcast.plan.drafting import operand_encoding
from narrowcast.plan.types import Encoding

__all__ = [
    "Chain", "add_convolution", "add_fully_connected", "add_matmul", "add_transposed_convolution", "explicit_pads",
    "fused_relu",
]  # fmt: skip


def fused_relu(assembly: Assembly, node: ir.Node) -> ir.Node | None:
    """The Relu that the runtime does in the same step as a sum of products, if there is one."""
    output = node.outputs[0]
    users = list(output.uses())
    chained = len(users) == 1 and (node.op_type, users[0].node.op_type) in assembly.target.fusions
    inner = str(output.name) not in assembly.plan.tensors and not output.is_graph_output()
    return users[0].node if chained and inner and users[0].node.op_type == "Relu" else None


def _output(assembly: Assembly, node: ir.Node) -> tuple[ir.Value, Encoding, str]:
    """The value that a sum of products writes, its encoding, and the activation on the way."""
    relu = fused_relu(assembly, node)
    value = node.outputs[0] if relu is None else relu.outputs[0]
    return value, assembly.encoding(value, node), "Linear" if relu is None else "Relu"


def _weight_encoding(assembly: Assembly, node: ir.Node, wanted: Encoding) -> Encoding:
    name = str(node.inputs[1].name) if node.inputs[1] is not None else ""
    encoding = assembly.plan.tensors.get(name)
    if encoding is None:
        raise UserError(f"the plan has no encoding for {name}, the weight of {node.name}", "make the plan again")
    if encoding.dtype != wanted.dtype:
        raise UserError(f"{node.name} has {encoding.dtype} weights and {wanted.dtype} results", "make the plan again")
    return encoding


def _input(assembly: Assembly, node: ir.Node, index: int, wanted: Encoding) -> Stored:
    stored = assembly.operand(node, index)
    if stored.encoding is None or stored.encoding.dtype != wanted.dtype:
        kind = "float32" if stored.encoding is None else stored.encoding.dtype
        raise UserError(f"{node.name} reads {kind} and writes {wanted.dtype}", "make the plan again")
    return stored


def _lanes(encoding: Encoding) -> int:
    return 16 if encoding.dtype == "int8" else 8


def _bias(assembly: Assembly, node: ir.Node, channels: int, kind: Encoding) -> EspdlTensor | None:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return None
    array, encoding = constant_of(value), assembly.plan.tensors.get(str(value.name))
    if array is None or encoding is None:
        raise UserError(f"{node.name}: its bias is computed or has no encoding", "make the plan again")
    integers = bias_integers(
        np.broadcast_to(array.reshape(-1), (channels,)),
        encoding,
        assembly.target,
        assembly.plan.nodes[str(node.name)].type,
    )
    stored = integers.astype(np.int64 if kind.dtype == "int16" else np.int32)
    name = str(value.name)
    return EspdlTensor(name, (channels,), stored, exponents(encoding, name), "UNK")


@dataclass(frozen=True)
class _Weights:
    """Constants of a convolution.

    Attributes:
        name: of the filter.
        integers: the filter, (N, C / group, ...).
        encoding: of the filter, per tensor or per output channel.
        bias: (N,), or ``None``.
        group: into how many parts the channels fall.
    """

    name: str
    integers: NDArray[np.int64]
    encoding: Encoding
    bias: EspdlTensor | None = None
    group: int = 1

    def stored(self, assembly: Assembly) -> list[str]:
        """Their names in the file: the filter packed, with logical dims HWCN, or HWNC of a depthwise one."""
        lanes, spatial, depthwise = _lanes(self.encoding), self.integers.ndim - 2, self.group > 1
        window = tuple(range(2, self.integers.ndim))
        dims = reordered(self.integers.shape, (*window, 0, 1) if depthwise else (*window, 1, 0))
        data = pack_filter(self.integers.astype(self.encoding.dtype), lanes, depthwise)
        layout = filter_layout(len(self.integers), spatial, lanes)
        filters = EspdlTensor(self.name, dims, data, exponents(self.encoding, self.name), layout)
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
        return _Weights(f"{self.name}__{index}", self.integers[own], encoding, bias)


def _window(node: ir.Node, name: str, count: int, default: int) -> tuple[int, ...]:
    return tuple(int(size) for size in node.attributes.get_ints(name, []) or [default] * count)


def explicit_pads(
    node: ir.Node, kernel: tuple[int, ...], sizes: tuple[int, ...], outputs: tuple[int, ...]
) -> tuple[int, ...]:
    """Padding at the begin of every axis, then at the ends; ``auto_pad`` and ``ceil_mode``, which the runtime does
    not read, are part of it.

    Args:
        node: a Conv or pool.
        kernel: its window.
        sizes: of the input's spatial axes.
        outputs: of the output's.
    """
    each = windows(node, sizes, outputs, kernel)
    return (*(w.begin for w in each), *(max(w.end, w.needed_end) for w in each))


def _integers(assembly: Assembly, node: ir.Node, encoding: Encoding) -> NDArray[np.int64]:
    array = assembly.constant(node, 1)
    if array is None:
        raise UserError(f"{node.name} has no weights", "mend the model")
    return constant_integers(array, encoding, assembly.target)


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
        x = _repeated(assembly, name, x, count // group)
    inputs = [x.name, *weights.stored(assembly)]
    assembly.emit("Conv", name, inputs, [output.name], group=count if group > 1 else 1, **attributes)


def _repeated(assembly: Assembly, name: str, x: Stored, times: int) -> Stored:
    """A channels-last tensor with every channel several times."""
    shape = (x.shape[0], x.shape[1] * times, *x.shape[2:])
    indices = assembly.plain(f"{name}/channels", np.repeat(np.arange(x.shape[1]), times))
    result = assembly.declare(Stored(assembly.fresh(f"{name}/repeated"), shape, x.order, x.encoding))
    node = assembly.fresh_node(f"{name}/Gather")
    assembly.emit("Gather", node, [x.name, indices], [result.name], axis=len(shape) - 1)
    return result


def _convolve_groups(
    assembly: Assembly, name: str, x: Stored, weights: _Weights, output: Stored, **attributes: AttributeValue
) -> None:
    """Split, a Conv a group, Concat."""
    group, last = weights.group, len(x.shape) - 1

    def part(whole: Stored, index: int, kind: str) -> Stored:
        shape = (whole.shape[0], whole.shape[1] // group, *whole.shape[2:])
        fresh = assembly.fresh(f"{name}/{kind}_{index}")
        return assembly.declare(Stored(fresh, shape, whole.order, whole.encoding))

    pieces = [part(x, index, "input") for index in range(group)]
    results = [part(output, index, "output") for index in range(group)]
    sizes = assembly.numbers(f"{name}/groups", [x.shape[1] // group] * group)
    split, join = (assembly.fresh_node(f"{name}/{kind}") for kind in ("Split", "Concat"))
    assembly.emit("Split", split, [x.name, sizes], [piece.name for piece in pieces], axis=last)
    for index, (piece, result) in enumerate(zip(pieces, results, strict=True)):
        node = assembly.fresh_node(f"{name}_{index}")
        _convolve(assembly, node, piece, weights.part(index), result, **attributes)
    assembly.emit("Concat", join, [result.name for result in results], [output.name], axis=last)


def add_convolution(assembly: Assembly, node: ir.Node) -> None:
    """Conv."""
    value, wanted, activation = _output(assembly, node)
    encoding = _weight_encoding(assembly, node, wanted)
    integers = _integers(assembly, node, encoding)
    kernel, count = integers.shape[2:], integers.ndim - 2
    x = assembly.ordered(_input(assembly, node, 0, wanted), channels_last(integers.ndim))
    bias, group = _bias(assembly, node, len(integers), wanted), node.attributes.get_int("group", 1)
    weights = _Weights(str(node.inputs[1].name), integers, encoding, bias, group)
    _convolve(
        assembly, str(node.name), x, weights, assembly.result(value, channels_last(integers.ndim), wanted),
        activation=activation, kernel_shape=kernel, dilations=_window(node, "dilations", count, 1),
        pads=explicit_pads(node, kernel, x.shape[2:], dims(node.outputs[0])[2:]),
        strides=_window(node, "strides", count, 1),
    )  # fmt: skip


def add_transposed_convolution(assembly: Assembly, node: ir.Node) -> None:
    """ConvTranspose: zeros between the pixels, then a Conv with the mirrored filter."""
    value, wanted, activation = _output(assembly, node)
    encoding = _weight_encoding(assembly, node, wanted)
    integers = _integers(assembly, node, encoding)  # (C, N / group, ...)
    count, kernel = integers.ndim - 2, integers.shape[2:]
    x = assembly.ordered(_input(assembly, node, 0, wanted), channels_last(integers.ndim))
    group = node.attributes.get_int("group", 1)
    mirrored = np.flip(integers, tuple(range(2, integers.ndim)))
    mirrored = mirrored.reshape(group, -1, *integers.shape[1:]).swapaxes(1, 2)  # (group, N / group, C / group, ...)
    mirrored = mirrored.reshape(-1, *mirrored.shape[2:])
    strides, dilations = _window(node, "strides", count, 1), _window(node, "dilations", count, 1)
    pads, extra = _transposed_pads(node, x.shape[2:], kernel)
    if encoding.axis is not None:
        encoding = replace(encoding, axis=0)
    bias = _bias(assembly, node, len(mirrored), wanted)
    weights = _Weights(f"{node.inputs[1].name}__mirrored", mirrored, encoding, bias, group)
    spread = tuple((size - 1) * stride + 1 + e for size, stride, e in zip(x.shape[2:], strides, extra, strict=True))
    zeros = Stored(assembly.fresh(f"{node.name}/spread"), (*x.shape[:2], *spread), x.order, x.encoding)
    assembly.declare(zeros)
    name = assembly.fresh_node(f"{node.name}/InsertZeros")
    assembly.emit("InsertZeros", name, [x.name], [zeros.name], stride=strides, output_padding=extra)
    _convolve(
        assembly, str(node.name), zeros, weights, assembly.result(value, channels_last(integers.ndim), wanted),
        activation=activation, kernel_shape=kernel, dilations=dilations, pads=pads, strides=(1,) * count,
    )  # fmt: skip


def _transposed_pads(
    node: ir.Node, sizes: tuple[int, ...], kernel: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding of the Conv that does a ConvTranspose's work, and zeros behind the last pixel."""
    count = len(kernel)
    strides, dilations = _window(node, "strides", count, 1), _window(node, "dilations", count, 1)
    pads = _window(node, "pads", 2 * count, 0)
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        raise UserError(f"{node.name}: ConvTranspose with auto_pad", "export it with explicit pads")
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    begins = [r - p for r, p in zip(reach, pads[:count], strict=True)]
    ends = [r - p for r, p in zip(reach, pads[count:], strict=True)]
    outputs = dims(node.outputs[0])[2:]
    extra = []
    for axis in range(count):
        natural = (sizes[axis] - 1) * strides[axis] + 1 + begins[axis] + ends[axis] - reach[axis]
        extra.append(outputs[axis] - natural)
    if min([*begins, *ends, *extra]) < 0:
        raise UserError(f"{node.name}: ConvTranspose with padding beyond its kernel", "use less padding and a Slice")
    return (*begins, *ends), tuple(extra)


def add_fully_connected(assembly: Assembly, node: ir.Node) -> None:
    """Gemm: its weights are those of a 1x1 convolution."""
    attributes = node.attributes
    alpha, beta = attributes.get_float("alpha", 1.0), attributes.get_float("beta", 1.0)
    if alpha != 1.0 or beta != 1.0 or attributes.get_int("transA", 0):
        raise UserError(f"{node.name}: Gemm with alpha, beta or transA", "fold them into the weights")
    value, wanted, activation = _output(assembly, node)
    encoding = _weight_encoding(assembly, node, wanted)
    integers = _integers(assembly, node, encoding)
    matrix = integers if attributes.get_int("transB", 0) else integers.T
    x = assembly.ordered(_input(assembly, node, 0, wanted), identity(2))
    bias = _bias(assembly, node, len(matrix), wanted)
    weights = _Weights(str(node.inputs[1].name), matrix[:, :, None, None], encoding, bias)
    inputs = [x.name, *weights.stored(assembly)]
    output = assembly.result(value, identity(2), wanted)
    assembly.emit(
        "Gemm", str(node.name), inputs, [output.name], activation=activation, alpha=1.0, beta=1.0, transB=0
    )  # fmt: skip


def add_matmul(assembly: Assembly, node: ir.Node) -> None:
    """MatMul, by a constant or by another activation; the runtime reads the right operand as a packed filter."""
    value, wanted, activation = _output(assembly, node)
    fixed = assembly.constant(node, 0) if constant_of(node.inputs[0]) is not None else None
    if fixed is None:
        stored = _input(assembly, node, 0, wanted)
        left = assembly.ordered(stored, identity(len(stored.shape))).name
    else:
        code = operand_encoding(node, 0, assembly.plan.tensors, assembly.plan.edges)
        left = assembly.encoded(str(node.inputs[0].name), constant_integers(fixed, code, assembly.target), code)
    if constant_of(node.inputs[1]) is not None:
        encoding = _weight_encoding(assembly, node, wanted)
        integers = _integers(assembly, node, encoding).astype(encoding.dtype)
        name, lanes = str(node.inputs[1].name), _lanes(encoding)
        layout = filter_layout(integers.shape[-1], 2, lanes)
        data = pack_matrix(integers, lanes)
        right = assembly.add_tensor(EspdlTensor(name, integers.shape, data, exponents(encoding, name), layout))
    else:
        stored = _input(assembly, node, 1, wanted)
        right = _packed(assembly, assembly.ordered(stored, identity(len(stored.shape))), _lanes(wanted), str(node.name))
    output = assembly.result(value, identity(len(dims(value))), wanted)
    assembly.emit("MatMul", str(node.name), [left, right], [output.name], activation=activation)


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


class Chain:
    """Nodes on tensors in the model's own order, named after one node."""

    def __init__(self, assembly: Assembly, stem: str) -> None:
        self.assembly, self.stem = assembly, stem

    def _result(self, source: Stored, shape: tuple[int, ...]) -> Stored:
        name = self.assembly.fresh(f"{self.stem}_output")
        return self.assembly.declare(Stored(name, shape, identity(len(shape)), source.encoding))

    def _emit(self, op_type: str, inputs: list[str], output: Stored, **attributes: int | tuple[int, ...]) -> Stored:
        name = self.assembly.fresh_node(f"{self.stem}_{op_type}")
        self.assembly.emit(op_type, name, inputs, [output.name], **attributes)
        return output

    def reshape(self, source: Stored, shape: tuple[int, ...]) -> Stored:
        sizes = self.assembly.numbers(f"{self.stem}_shape", shape)
        return self._emit("Reshape", [source.name, sizes], self._result(source, shape), allowzero=0)

    def transpose(self, source: Stored, permutation: tuple[int, ...]) -> Stored:
        output = self._result(source, reordered(source.shape, permutation))
        return self._emit("Transpose", [source.name], output, perm=permutation)

    def cut(self, source: Stored, axis: int, start: int, end: int) -> Stored:
        shape = tuple(end - start if index == axis else size for index, size in enumerate(source.shape))
        parts = (("start", start), ("end", end), ("axis", axis), ("step", 1))
        numbers = [self.assembly.numbers(f"{self.stem}_{kind}", [number]) for kind, number in parts]
        return self._emit("Slice", [source.name, *numbers], self._result(source, shape))

    def join(self, first: Stored, second: Stored, axis: int) -> Stored:
        sizes = list(first.shape)
        sizes[axis] += second.shape[axis]
        return self._emit("Concat", [first.name, second.name], self._result(first, tuple(sizes)), axis=axis)
