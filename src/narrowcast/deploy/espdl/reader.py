"""Read ``.espdl``: header, flatbuffer, tensors."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from flatbuffers import number_types
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.base.reading import reading
from narrowcast.deploy.espdl.schema import (
    DATA_TYPES,
    HEADER_BYTES,
    LAYOUT_PREFIX,
    MAGIC,
    AttributeSlot,
    AttributeType,
    DimensionSlot,
    DimensionValueSlot,
    GraphSlot,
    ModelSlot,
    NodeSlot,
    OperatorSetSlot,
    PairSlot,
    TensorSlot,
    TensorTypeSlot,
    TypeSlot,
    ValueSlot,
)
from narrowcast.deploy.espdl.tables import Reading, root
from narrowcast.deploy.espdl.types import AttributeValue, EspdlFile, EspdlNode, EspdlTensor, EspdlValue

__all__ = ["decode_espdl", "read_espdl"]


class _NewerSchema(ValueError):
    """Something in the file that this version of the schema does not have."""


def read_espdl(path: str | Path) -> EspdlFile:
    """Read a file of ESP-DL's format EDL2, ours or Espressif's.

    Args:
        path: of the ``.espdl`` file.

    Raises:
        UserError: no such file, or one that is truncated, encrypted, damaged, of another format or of a newer schema.
    """
    with reading(path, "check the path"):
        data = Path(path).read_bytes()
    return decode_espdl(data, str(path))


def decode_espdl(data: bytes, name: str = "the model") -> EspdlFile:
    """Decode the bytes of a file; see :func:`read_espdl`.

    Args:
        data: the whole file.
        name: for messages.
    """
    payload = _payload(data, name)
    with reading(name, "copy or export it again"):
        return _decoded(payload, name, len(data))


def _decoded(payload: bytes, name: str, size: int) -> EspdlFile:
    try:
        model = root(payload)
        if model.fields > len(ModelSlot):
            raise _NewerSchema(f"its root table has {model.fields} fields, {len(ModelSlot)} are known")
        graph = model.child(ModelSlot.GRAPH)
        if graph is None:
            raise ValueError("no graph")
        return _file(model, graph, size)
    except _NewerSchema as error:
        raise UserError(f"{name} has a newer schema than EDL2 of 2023 ({error})", "update narrowcast") from error


def _payload(data: bytes, name: str) -> bytes:
    magic = data[:4]
    if magic in (b"PDL1", b"PDL2", b"PDL3"):
        raise UserError(f"{name} is a pack of several models", "give the single .espdl files")
    if magic == b"EDL1":
        raise UserError(f"{name} has the old format EDL1", "export it again with ESP-PPQ 1.0 or newer")
    if magic[:3] == b"EDL" and magic != MAGIC:
        raise UserError(f"{name} has the newer format {magic.decode('latin-1')}", "update narrowcast")
    if magic != MAGIC:
        raise UserError(f"{name} is no .espdl file", "it must start with EDL2")
    if len(data) < HEADER_BYTES:
        raise UserError(f"{name} is truncated: {len(data)} bytes", "copy or export it again")
    _, encrypted, length, _ = struct.unpack("<4I", data[:HEADER_BYTES])
    if encrypted:
        raise UserError(f"{name} is encrypted", "export it without encryption")
    if len(data) - HEADER_BYTES < length or length < 8:
        missing = HEADER_BYTES + max(length, 8) - len(data)
        raise UserError(f"{name} is truncated: {missing} bytes are missing", "copy or export it again")
    return data[HEADER_BYTES : HEADER_BYTES + length]


def _file(model: Reading, graph: Reading, size: int) -> EspdlFile:
    if graph.fields > len(GraphSlot):
        raise _NewerSchema(f"its graph has {graph.fields} fields, {len(GraphSlot)} are known")
    inputs, outputs = (tuple(map(_value, graph.children(slot))) for slot in (GraphSlot.INPUT, GraphSlot.OUTPUT))
    values = {value.name: value for value in map(_value, graph.children(GraphSlot.VALUE_INFO)) if value.name}
    values |= {value.name: value for value in (*inputs, *outputs)}
    imports = [entry for entry in model.children(ModelSlot.OPSET_IMPORT) if not entry.text(OperatorSetSlot.DOMAIN)]
    opsets = [entry.integer(OperatorSetSlot.VERSION, number_types.Int64Flags) for entry in imports]
    producer = f"{model.text(ModelSlot.PRODUCER_NAME)} {model.text(ModelSlot.PRODUCER_VERSION)}".strip()
    return EspdlFile(
        graph_name=graph.text(GraphSlot.NAME),
        nodes=tuple(map(_node, graph.children(GraphSlot.NODE))),
        inputs=inputs,
        outputs=outputs,
        values=values,
        tensors=_tensors(graph, GraphSlot.INITIALIZER),
        test_inputs=_tensors(graph, GraphSlot.TEST_INPUTS_VALUE),
        test_outputs=_tensors(graph, GraphSlot.TEST_OUTPUTS_VALUE),
        metadata={e.text(PairSlot.KEY): e.text(PairSlot.VALUE) for e in model.children(ModelSlot.METADATA_PROPS)},
        producer=producer,
        opset=max(opsets, default=0),
        bytes=size,
    )


def _node(table: Reading) -> EspdlNode:
    name = table.text(NodeSlot.NAME)
    attributes = {entry.text(AttributeSlot.NAME): _attribute(entry) for entry in table.children(NodeSlot.ATTRIBUTE)}
    return EspdlNode(
        name,
        table.text(NodeSlot.OP_TYPE),
        table.texts(NodeSlot.INPUT),
        table.texts(NodeSlot.OUTPUT),
        attributes,
    )


def _attribute(table: Reading) -> AttributeValue:
    kind = table.integer(AttributeSlot.ATTR_TYPE)
    if kind == AttributeType.FLOAT:
        return table.real(AttributeSlot.F)
    if kind == AttributeType.INT:
        return table.integer(AttributeSlot.I, number_types.Int64Flags)
    if kind == AttributeType.STRING:
        text = table.array(AttributeSlot.S, "u1")
        return "" if text is None else text.tobytes().decode()
    if kind == AttributeType.TENSOR:
        child = table.child(AttributeSlot.T)
        if child is None:
            raise ValueError("an attribute without its tensor")
        return _tensor(child)
    if kind == AttributeType.FLOATS:
        floats = table.array(AttributeSlot.FLOATS, "<f4")
        return () if floats is None else tuple(map(float, floats))
    if kind == AttributeType.INTS:
        integers = table.array(AttributeSlot.INTS, "<i8")
        return () if integers is None else tuple(map(int, integers))
    if kind == AttributeType.STRINGS:
        return table.texts(AttributeSlot.STRINGS)
    raise _NewerSchema(f"attribute type {kind}")


def _integers(values: NDArray[Any] | None) -> tuple[int, ...]:
    return () if values is None else tuple(map(int, values))


def _dtype(code: int) -> np.dtype[Any]:
    if code not in DATA_TYPES:
        raise _NewerSchema(f"element type {code}")
    return DATA_TYPES[code]


def _tensors(graph: Reading, slot: int) -> dict[str, EspdlTensor]:
    tensors = map(_tensor, graph.children(slot))
    return {tensor.name: tensor for tensor in tensors}


def _tensor(table: Reading) -> EspdlTensor:
    name, dims = table.text(TensorSlot.NAME), _integers(table.array(TensorSlot.DIMS, "<i8"))
    if table.fields > len(TensorSlot):
        raise _NewerSchema(f"tensor {name} has {table.fields} fields")
    if table.integer(TensorSlot.DATA_LOCATION):
        raise ValueError(f"tensor {name} is stored in another file")
    layout = table.text(TensorSlot.DOC_STRING)
    return EspdlTensor(
        name=name,
        dims=dims,
        data=_data(table, name, dims),
        exponents=_integers(table.array(TensorSlot.EXPONENTS, "<i8")),
        layout=layout.removeprefix(LAYOUT_PREFIX) if layout.startswith(LAYOUT_PREFIX) else "",
    )


def _data(table: Reading, name: str, dims: tuple[int, ...]) -> NDArray[Any]:
    """The numbers, which may be in raw bytes or in one of the typed fields."""
    dtype = _dtype(table.integer(TensorSlot.DATA_TYPE))
    count = int(np.prod(dims, dtype=np.int64))
    raw = table.array(TensorSlot.RAW_DATA, "u1", 16)
    if raw is not None:
        if count < 0 or raw.size < count * dtype.itemsize:
            raise ValueError(f"tensor {name} has {raw.size} bytes for {dims} of {dtype.name}")
        return raw[: count * dtype.itemsize].view(dtype)
    typed = (
        (TensorSlot.FLOAT_DATA, "<f4"), (TensorSlot.INT32_DATA, "<i4"), (TensorSlot.INT64_DATA, "<i8"),
        (TensorSlot.DOUBLE_DATA, "<f8"), (TensorSlot.UINT64_DATA, "<u8"),
    )  # fmt: skip
    for slot, kind in typed:
        values = table.array(slot, kind)
        if values is not None and values.size >= count:
            return values[:count].astype(dtype)
    if count == 0:
        return np.zeros(0, dtype)
    raise ValueError(f"tensor {name} has no data")


def _value(table: Reading) -> EspdlValue:
    name, exponents = table.text(ValueSlot.NAME), _integers(table.array(ValueSlot.EXPONENTS, "<i8"))
    kind = table.child(ValueSlot.TYPE)
    tensor = kind.child(TypeSlot.VALUE) if kind is not None else None
    if kind is None or tensor is None:
        return EspdlValue(name, "float32", (), exponents)
    if kind.integer(TypeSlot.KIND, number_types.Uint8Flags) != 1:
        raise ValueError(f"value {name} is no tensor")
    shape = tensor.child(TensorTypeSlot.SHAPE)
    dims = tuple(_dimension(entry, name) for entry in shape.children(0)) if shape is not None else ()
    return EspdlValue(name, _dtype(tensor.integer(TensorTypeSlot.ELEM_TYPE)).name, dims, exponents)


def _dimension(table: Reading, name: str) -> int:
    value = table.child(DimensionSlot.VALUE)
    if value is None or value.integer(DimensionValueSlot.KIND, number_types.Int8Flags) != 1:
        raise ValueError(f"value {name} has an unknown size")
    return value.integer(DimensionValueSlot.NUMBER, number_types.Int64Flags)
