"""What is in an ``.espdl`` file, as rows for a person."""

from __future__ import annotations

from dataclasses import dataclass

from narrowcast.deploy.espdl.types import AttributeValue, EspdlFile, EspdlNode, EspdlTensor

__all__ = ["Description", "NodeRow", "ValueRow", "describe"]


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
        file: from :func:`narrowcast.deploy.espdl.read_espdl`.
    """
    seen: set[str] = set()
    rows = tuple(_row(file, node, seen) for node in file.nodes)
    operators: dict[str, int] = {}
    for node in file.nodes:
        operators[node.op_type] = operators.get(node.op_type, 0) + 1
    ordered = dict(sorted(operators.items(), key=lambda item: (-item[1], item[0])))
    values = [("input", value) for value in file.inputs] + [("output", value) for value in file.outputs]
    sizes = [_count(value.dims) * _ITEM_BYTES.get(value.dtype, 4) for value in file.values.values()]
    packed = [tensor.data.nbytes for tensor in file.tensors.values() if "C" in tensor.layout]
    return Description(
        values=tuple(ValueRow(kind, v.name, v.dtype, _shape(v.dims), v.exponent) for kind, v in values),
        nodes=rows,
        operators=ordered,
        bytes=file.bytes,
        constant_bytes=sum(tensor.data.nbytes for tensor in file.tensors.values()),
        weight_bytes=sum(packed),
        largest_activation=max(sizes, default=0),
        test_vector=bool(file.test_outputs),
        metadata=dict(file.metadata),
        producer=file.producer,
    )


def _count(dims: tuple[int, ...]) -> int:
    count = 1
    for size in dims:
        count *= size
    return count


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
        weight_exponents=_span(packed) if packed is not None else "",
        bytes=sum(tensor.data.nbytes for tensor in new),
        details=_details(node),
    )


def _exponents_of(file: EspdlFile, names: tuple[str, ...]) -> str:
    found = [file.values[name] for name in names if name in file.values]
    texts = [str(value.exponent) if value.dtype.startswith("int") else "float" for value in found]
    return ", ".join(dict.fromkeys(texts)) or "-"


def _span(tensor: EspdlTensor) -> str:
    exponents = tensor.exponents or (0,)
    if min(exponents) == max(exponents):
        return str(exponents[0])
    return f"{min(exponents)}..{max(exponents)} ({len(exponents)})"


def _details(node: EspdlNode) -> str:
    parts = []
    for label, key, usual in (
        ("kernel", "kernel_shape", ()),
        ("stride", "strides", (1,)),
        ("dilation", "dilations", (1,)),
    ):
        numbers = node.integers(key)
        if numbers and (not usual or set(numbers) != set(usual)):
            parts.append(
                f"{label} {'x'.join(map(str, numbers if len(set(numbers)) > 1 or not usual else numbers[:1]))}"
            )
    if node.integer("group", 1) > 1:
        parts.append(f"{node.integer('group')} groups")
    if node.text("activation") not in ("", "Linear"):
        parts.append(node.text("activation"))
    for key in ("axis", "perm", "mode", "lut"):
        if key in node.attributes:
            parts.append(f"{key} {_text(node.attributes[key])}")
    return ", ".join(parts)


def _text(value: AttributeValue) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
