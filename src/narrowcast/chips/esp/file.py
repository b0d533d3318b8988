"""What an ``.espdl`` file holds, as plain data, and as rows for a person; and how it lays numbers out.

That is the order of a tensor's axes, and the packed order of filters. An order says for every axis of the file's tensor
which axis of the model's tensor it holds: ``(0, 2, 3, 1)`` is a model's NCHW stored as NHWC.

Of a filter (N, C, ...) with N output channels, ESP-DL's vector units read the first ``N // lanes * lanes`` channels in
blocks of ``lanes``, as (N/lanes) H W C lanes; the rest follows as N H W C, or as C H W N of a depthwise filter (C is
1). ``lanes`` is 16 for 8-bit activations and 8 for 16-bit ones. A fully connected layer is a 1x1 convolution.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class EspdlTensor:
    """A constant of a file.

    Attributes:
        name: of the value.
        dims: as the file states them; for packed filters these are logical (HWCN, HWNC, WCN, ...), not the order of
            the numbers.
        data: the numbers in the order of the file, flat, without padding.
        exponents: log2 of the scale, none, one, or one per output channel.
        layout: what the file says, e.g. ``"(N/16)HWC16"``; empty or ``"UNK"`` for numbers in the order of the dims.
    """

    name: str
    dims: tuple[int, ...]
    data: NDArray[Any]
    exponents: tuple[int, ...] = ()
    layout: str = ""

    @property
    def array(self) -> NDArray[Any]:
        """The numbers shaped as the dims; meaningful when they are not packed."""
        return self.data.reshape(self.dims)


AttributeValue = float | int | str | tuple[float, ...] | tuple[int, ...] | tuple[str, ...] | EspdlTensor


@dataclass(frozen=True)
class EspdlValue:
    """An activation: element type (``"int8"``, ``"float32"``, ...), shape in the file's layout, exponents."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    exponents: tuple[int, ...] = ()

    @property
    def exponent(self) -> int:
        """log2 of the scale."""
        return self.exponents[0] if self.exponents else 0


@dataclass(frozen=True)
class EspdlNode:
    """An operator; inputs and outputs are names, an absent input is empty."""

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)

    def integer(self, name: str, default: int = 0) -> int:
        """An integer attribute."""
        value = self.attributes.get(name, default)
        if not isinstance(value, int):
            raise TypeError(f"{name} of {self.name} is no integer")
        return value

    def text(self, name: str, default: str = "") -> str:
        """A string attribute."""
        return str(self.attributes.get(name, default))

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of integers, empty when absent."""
        value = self.attributes.get(name, ())
        return tuple(int(number) for number in value) if isinstance(value, tuple) else ()


@dataclass(frozen=True)
class EspdlFile:
    """A whole file.

    Attributes:
        graph_name: of the graph.
        nodes: in execution order.
        inputs: of the network.
        outputs: of the network.
        values: every activation by name, inputs and outputs among them.
        tensors: every constant by name.
        test_inputs: integers for the inputs, by name, in the file's layout.
        test_outputs: the integers that the chip must give for them.
        metadata: text by key.
        producer: name and version of the program that wrote the file.
        opset: ONNX operator set, 0 when the file does not say.
        bytes: size of the file.
    """

    graph_name: str
    nodes: tuple[EspdlNode, ...]
    inputs: tuple[EspdlValue, ...]
    outputs: tuple[EspdlValue, ...]
    values: Mapping[str, EspdlValue]
    tensors: Mapping[str, EspdlTensor]
    test_inputs: Mapping[str, EspdlTensor] = field(default_factory=dict)
    test_outputs: Mapping[str, EspdlTensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    producer: str = ""
    opset: int = 0
    bytes: int = 0

    def array(self, name: str) -> np.ndarray[Any, np.dtype[Any]]:
        """A constant that is not packed, e.g. the shape that a Reshape takes."""
        return self.tensors[name].array


@dataclass(frozen=True)
class NodeRow:
    """One node.

    Attributes:
        name: of the node.
        op_type: ESP-DL's operator.
        type: number type of the kernel: ``"S8"``, ``"S16"``, ``"F32"``, ``"W8A16"``.
        shape: of the first output, in the file's layout.
        exponents: of the computed inputs and the outputs, e.g. ``"-6 -> -3"``.
        weight_layout: of the packed filter, empty without one.
        weight_exponents: ``"-8"``, or ``"-9..-7 (64)"`` for 64 channels.
        bytes: of constants that only this node reads; a shared table counts at its first node.
        details: attributes that decide what it computes, e.g. ``"kernel 3x3, stride 2, Relu"``.
    """

    name: str
    op_type: str
    type: str
    shape: str
    exponents: str
    weight_layout: str
    weight_exponents: str
    bytes: int
    details: str


@dataclass(frozen=True)
class ValueRow:
    """A network input or output: shape in the file's layout and the exponent of its integers."""

    direction: str
    name: str
    dtype: str
    shape: str
    exponent: int


@dataclass(frozen=True)
class Description:
    """A whole file.

    Attributes:
        values: inputs, then outputs.
        nodes: in execution order.
        operators: operator to the number of its nodes, most frequent first.
        bytes: of the file.
        constant_bytes: of weights, biases, tables and other constants.
        weight_bytes: of packed filters alone.
        largest_activation: bytes of the largest tensor between nodes.
        test_vector: whether the file carries test values.
        metadata: text by key.
        producer: program that wrote it, empty when the file does not say.
    """

    values: tuple[ValueRow, ...]
    nodes: tuple[NodeRow, ...]
    operators: dict[str, int]
    bytes: int
    constant_bytes: int
    weight_bytes: int
    largest_activation: int
    test_vector: bool
    metadata: dict[str, str]
    producer: str


_ITEM_BYTES = {"int8": 1, "uint8": 1, "bool": 1, "int16": 2, "uint16": 2, "float16": 2, "int64": 8, "float64": 8}


def describe(file: EspdlFile) -> Description:
    """What a person wants to know about a file.

    Args:
        file: from :func:`narrowcast.chips.esp.codec.read_espdl`.
    """
    seen: set[str] = set()
    operators = Counter(node.op_type for node in file.nodes)
    values = [("input", value) for value in file.inputs] + [("output", value) for value in file.outputs]
    sizes = [math.prod(value.dims) * _ITEM_BYTES.get(value.dtype, 4) for value in file.values.values()]
    return Description(
        values=tuple(ValueRow(kind, v.name, v.dtype, _shape(v.dims), v.exponent) for kind, v in values),
        nodes=tuple(_row(file, node, seen) for node in file.nodes),
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        bytes=file.bytes,
        constant_bytes=sum(tensor.data.nbytes for tensor in file.tensors.values()),
        weight_bytes=sum(tensor.data.nbytes for tensor in file.tensors.values() if "C" in tensor.layout),
        largest_activation=max(sizes, default=0),
        test_vector=bool(file.test_outputs),
        metadata=dict(file.metadata),
        producer=file.producer,
    )


def _shape(dims: tuple[int, ...]) -> str:
    return "x".join(map(str, dims)) or "-"


def _row(file: EspdlFile, node: EspdlNode, seen: set[str]) -> NodeRow:
    constants = [file.tensors[name] for name in (*node.inputs, node.text("lut")) if name in file.tensors]
    packed = next((tensor for tensor in constants if "C" in tensor.layout), None)
    new = [tensor for tensor in constants if tensor.name not in seen]
    seen |= {tensor.name for tensor in constants}
    first = file.values.get(node.outputs[0]) if node.outputs else None
    return NodeRow(
        name=node.name,
        op_type=node.op_type,
        type=node.text("quant_type", "-"),
        shape=_shape(first.dims) if first is not None else "-",
        exponents=f"{_exponents_of(file, node.inputs)} -> {_exponents_of(file, node.outputs)}",
        weight_layout=packed.layout if packed is not None else "",
        weight_exponents=_span(packed.exponents or (0,)) if packed is not None else "",
        bytes=sum(tensor.data.nbytes for tensor in new),
        details=_details(node),
    )


def _exponents_of(file: EspdlFile, names: tuple[str, ...]) -> str:
    found = [file.values[name] for name in names if name in file.values]
    texts = [str(value.exponent) if value.dtype.startswith("int") else "float" for value in found]
    return ", ".join(dict.fromkeys(texts)) or "-"


def _span(exponents: tuple[int, ...]) -> str:
    low, high = min(exponents), max(exponents)
    return str(low) if low == high else f"{low}..{high} ({len(exponents)})"


def _details(node: EspdlNode) -> str:
    """Kernel, and what is not as usual."""
    parts = []
    if node.integers("kernel_shape"):
        parts.append(f"kernel {_shape(node.integers('kernel_shape'))}")
    for label, key in (("stride", "strides"), ("dilation", "dilations")):
        numbers = node.integers(key)
        if set(numbers) - {1}:
            parts.append(f"{label} {_shape(numbers if len(set(numbers)) > 1 else numbers[:1])}")
    if node.integer("group", 1) > 1:
        parts.append(f"{node.integer('group')} groups")
    if node.text("activation") not in ("", "Linear"):
        parts.append(node.text("activation"))
    for key in ("axis", "perm", "mode", "lut"):
        value = node.attributes.get(key)
        if value is not None:
            parts.append(f"{key} {' '.join(map(str, value)) if isinstance(value, tuple) else value}")
    return ", ".join(parts)


Order = tuple[int, ...]

_BLOCKED = re.compile(r"\(?N/?(\d+)\)?(H?W)C\1(_UNALIGNED)?")


def identity(rank: int) -> Order:
    """The model's own order."""
    return tuple(range(rank))


def channels_last(rank: int) -> Order:
    """N, then the window's axes, then the channels; the model's own order below three axes."""
    return (0, *range(2, rank), 1) if rank > 2 else identity(rank)


def inverse(order: Order) -> Order:
    """The permutation that undoes another."""
    return tuple(order.index(axis) for axis in range(len(order)))


def then(first: Order, second: Order) -> Order:
    """The permutation that a transposition by ``first`` and then one by ``second`` amount to."""
    return tuple(first[axis] for axis in second)


def reordered(shape: Sequence[int], order: Order) -> tuple[int, ...]:
    """A shape after transposition by an order."""
    return tuple(int(shape[axis]) for axis in order)


def moves_nothing(shape: Sequence[int], order: Order) -> bool:
    """Whether transposing a tensor of that shape leaves its elements where they are in memory: only axes of length
    one change places."""
    kept = [axis for axis in order if shape[axis] != 1]
    return kept == sorted(kept)


def packed_lanes(text: str) -> int | None:
    """What a tensor's layout text means: channels of a block, 0 for a filter without blocks (plain C targets), and
    ``None`` when the numbers lie in the order of the dims.

    Raises:
        ValueError: a layout that is not known.
    """
    match = _BLOCKED.fullmatch(text)
    if match:
        return int(match.group(1))
    if text in ("NHWC", "HWCN", "NWC", "WCN"):
        return 0
    if text in ("", "UNK", "NCHW", "NCW"):
        return None
    raise ValueError(f"layout {text}")


def filter_layout(channels: int, spatial: int, lanes: int) -> str:
    """The text for a packed filter.

    Args:
        channels: output channels.
        spatial: 1 or 2 axes.
        lanes: of a block.
    """
    window = "HW"[2 - spatial :]
    return f"(N/{lanes}){window}C{lanes}" + ("_UNALIGNED" if channels % lanes else "")


def pack_filter(weight: NDArray[Any], lanes: int, depthwise: bool = False) -> NDArray[Any]:
    """A filter in the order of the file.

    Args:
        weight: shape (N, C, H, W) or (N, C, W).
        lanes: channels of a block; 0 for the order of plain C targets.
        depthwise: one input channel per output channel; C must be 1.

    Returns:
        The same numbers, flat.
    """
    last = np.moveaxis(weight, 1, -1)  # N H W C
    full = len(weight) // lanes * lanes if lanes else 0
    blocks = last[:full].reshape(-1, max(lanes, 1), *last.shape[1:])
    rest = last[full:]
    if depthwise:
        rest = np.moveaxis(rest, (0, -1), (-1, 0))
    return np.concatenate([np.moveaxis(blocks, 1, -1).ravel(), rest.ravel()])


def unpack_filter(data: NDArray[Any], shape: tuple[int, ...], lanes: int, depthwise: bool = False) -> NDArray[Any]:
    """The inverse of :func:`pack_filter`.

    Args:
        data: flat.
        shape: (N, C, H, W) or (N, C, W).
        lanes: as it was packed.
        depthwise: as it was packed.
    """
    count, channels, *window = shape
    full = count // lanes * lanes if lanes else 0
    size = full * channels * int(np.prod(window))
    blocks = data[:size].reshape(-1, *window, channels, max(lanes, 1))
    aligned = np.moveaxis(blocks, -1, 1).reshape(full, *window, channels)
    if depthwise:
        rest = np.moveaxis(data[size:].reshape(channels, *window, count - full), (0, -1), (-1, 0))
    else:
        rest = data[size:].reshape(count - full, *window, channels)
    return np.moveaxis(np.concatenate([aligned, rest]), -1, 1)


def pack_matrix(matrix: NDArray[Any], lanes: int) -> NDArray[Any]:
    """The constant right operand of a MatMul, shape (..., C, N): each matrix as a 1x1 filter; flat."""
    columns, rows = matrix.shape[-1], matrix.shape[-2]
    matrices = matrix.reshape(-1, rows, columns)
    return np.concatenate([pack_filter(one.T[:, :, None, None], lanes) for one in matrices])


def unpack_matrix(data: NDArray[Any], shape: tuple[int, ...], lanes: int) -> NDArray[Any]:
    """The inverse of :func:`pack_matrix`."""
    rows, columns = shape[-2:]
    matrices = data.reshape(-1, rows * columns)
    unpacked = [unpack_filter(one, (columns, rows, 1, 1), lanes)[:, :, 0, 0].T for one in matrices]
    return np.stack(unpacked).reshape(shape)
