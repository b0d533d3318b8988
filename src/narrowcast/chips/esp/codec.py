"""The bytes of ``.espdl``: a header and a flatbuffer, read and written by one table of fields.

Written from the format's published facts; the flatbuffers package only supplies the primitives. The same file gives
the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flatbuffers import Builder, number_types
from flatbuffers.table import Table
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.base.reading import reading
from narrowcast.chips.esp.file import AttributeValue, EspdlFile, EspdlNode, EspdlTensor, EspdlValue

__all__ = ["decode_espdl", "encode_espdl", "read_espdl"]

#: In front of the flatbuffer: magic, encryption flag, payload length, zero; four little-endian words.
_MAGIC, _HEADER_BYTES = b"EDL2", 16
#: A tensor's documentation string says how its bytes are laid out.
_LAYOUT = "layout ==> "
#: Version of the schema's own enumeration (IR_VERSION_2023_12_22).
_IR_VERSION = 1
_ALIGNMENT = 16

#: The fields of every table: name to slot and kind, in the order in which they are put into it.
#:
#: Slots are positions from 0; a union takes two, of which the first is its tag. A kind is a number, ``one`` number in
#: a struct, text, another table, or in brackets a vector of those; a block is a struct of 16 bytes, aligned to 16.
#: What is neither read nor written has no kind.
_SCHEMA: dict[str, dict[str, tuple[int, str]]] = {
    "Model": {
        "ir_version": (0, "int32"), "opset_import": (1, "[OperatorSet]"), "producer_name": (2, "text"),
        "producer_version": (3, "text"), "domain": (4, ""), "model_version": (5, ""), "doc_string": (6, ""),
        "graph": (7, "Graph"), "metadata_props": (8, "[Pair]"), "functions": (9, ""),
    },
    "Graph": {
        "node": (0, "[Node]"), "name": (1, "text"), "initializer": (2, "[Tensor]"), "doc_string": (3, ""),
        "input": (4, "[Value]"), "output": (5, "[Value]"), "value_info": (6, "[Value]"),
        "quantization_annotation": (7, ""), "test_inputs_value": (8, "[Tensor]"), "test_outputs_value": (9, "[Tensor]"),
    },
    "Node": {
        "input": (0, "[text]"), "output": (1, "[text]"), "name": (2, "text"), "op_type": (3, "text"), "domain": (4, ""),
        "attribute": (5, "[Attribute]"), "doc_string": (6, ""),
    },
    "Attribute": {
        "name": (0, "text"), "ref_attr_name": (1, ""), "doc_string": (2, ""), "f": (4, "one float32"),
        "i": (5, "one int64"), "s": (6, "[u1]"), "t": (7, "Tensor"), "g": (8, ""), "tp": (9, ""),
        "floats": (10, "[<f4]"), "ints": (11, "[<i8]"), "strings": (12, "[text]"), "tensors": (13, ""),
        "graphs": (14, ""), "type_protos": (15, ""), "attr_type": (3, "int32"),
    },
    "Tensor": {
        "dims": (0, "[<i8]"), "float_data": (2, "[<f4]"), "int32_data": (3, "[<i4]"), "string_data": (4, ""),
        "int64_data": (5, "[<i8]"), "name": (6, "text"), "doc_string": (7, "text"), "raw_data": (8, "[block]"),
        "external_data": (9, ""), "data_location": (10, "int32"), "double_data": (11, "[<f8]"),
        "uint64_data": (12, "[<u8]"), "exponents": (13, "[<i8]"), "data_type": (1, "int32"),
    },
    "Value": {"name": (0, "text"), "type": (1, "Type"), "doc_string": (2, ""), "exponents": (3, "[<i8]")},
    "Type": {"value": (1, "TensorType"), "kind": (0, "uint8"), "denotation": (2, "")},
    "TensorType": {"shape": (1, "Shape"), "elem_type": (0, "int32")},
    "Shape": {"dim": (0, "[Dimension]")},
    "Dimension": {"value": (0, "DimensionValue"), "denotation": (1, "")},
    "DimensionValue": {"number": (1, "int64"), "kind": (0, "int8"), "name": (2, "")},
    "Pair": {"key": (0, "text"), "value": (1, "text")},
    "OperatorSet": {"domain": (0, "text"), "version": (1, "int64")},
}  # fmt: skip
#: Tables that have grown with the versions of the schema.
_GROWING = ("Model", "Graph", "Tensor")
#: Fields whose equal contents are written once; many nodes and values are described alike.
_SHARED = ("dims", "exponents", "type", "dim", "attribute")
_NUMBERS = {
    "int8": number_types.Int8Flags, "uint8": number_types.Uint8Flags, "int32": number_types.Int32Flags,
    "int64": number_types.Int64Flags, "float32": number_types.Float32Flags,
}  # fmt: skip

#: Element types; they differ from ONNX from 11 on. Strings (8) are left out: no tensor of a network has them.
_DATA_TYPES: dict[int, np.dtype[Any]] = {
    code: np.dtype(name)
    for code, name in (
        (1, "<f4"), (2, "u1"), (3, "i1"), (4, "<u2"), (5, "<i2"), (6, "<i4"), (7, "<i8"), (9, "?"), (10, "<f2"),
        (11, "<f8"), (12, "<u4"), (13, "<u8"),
    )
}  # fmt: skip
_CODES = {dtype: code for code, dtype in _DATA_TYPES.items()}
#: Attribute types, and the field that holds the value.
_ATTRIBUTES = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints", 8: "strings"}
#: Where the numbers of a tensor are that has no raw data.
_TYPED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")

Content = Mapping[str, Any]


class _NewerSchema(ValueError):
    """Something in the file that this version of the schema does not have."""


# flatbuffer tables as dictionaries


def _read(buffer: bytes, kind: str, position: int) -> dict[str, Any]:
    """The fields that a table has, by name; numbers in vectors are views of the buffer.

    Raises:
        ValueError, IndexError, struct.error: an offset that leaves the buffer.
    """
    if not 4 <= position <= len(buffer) - 4:
        raise ValueError("an offset leaves the file")
    table = Table(buffer, position)
    vtable = position - table.Get(number_types.SOffsetTFlags, position)
    count, known = table.Get(number_types.VOffsetTFlags, vtable) // 2 - 2, len(_SCHEMA[kind])
    if kind in _GROWING and count > known:
        raise _NewerSchema(f"its {kind.lower()} has {count} fields, {known} are known")
    found = {}
    for name, (slot, what) in _SCHEMA[kind].items():
        offset = table.Offset(4 + 2 * slot) if what else 0
        if offset:
            found[name] = _field(table, what, offset)
    return found


def _field(table: Table, what: str, offset: int) -> Any:
    if what[0] != "[":
        number = _NUMBERS.get(what.removeprefix("one "))
        return _item(table, what, offset + table.Pos) if number is None else table.Get(number, offset + table.Pos)
    inner = what[1:-1]
    start, count = int(table.Vector(offset)), int(table.VectorLen(offset))
    dtype = np.dtype("V16" if inner == "block" else "u4" if inner in _SCHEMA or inner == "text" else inner)
    if not 0 <= start <= len(table.Bytes) - count * dtype.itemsize:
        raise ValueError("a vector leaves the file")
    if inner == "block":
        return np.frombuffer(table.Bytes, "u1", count * _ALIGNMENT, start)
    if inner in _SCHEMA or inner == "text":
        return [_item(table, inner, start + 4 * index) for index in range(count)]
    return np.frombuffer(table.Bytes, dtype, count, start)


def _item(table: Table, what: str, place: int) -> Any:
    """Text or a table."""
    return table.String(place).decode() if what == "text" else _read(table.Bytes, what, table.Indirect(place))


class _Writer:
    """Dictionaries as tables of one flatbuffer; a field's content is written in the dictionary's order."""

    def __init__(self, size: int) -> None:
        self.builder = Builder(size + (1 << 16))
        self.written: dict[Hashable, int] = {}

    def whole(self, kind: str, content: Content) -> bytes:
        """The buffer with this table as its root."""
        self.builder.Finish(self._table(kind, content))
        return bytes(self.builder.Output())

    def _table(self, kind: str, content: Content) -> int:
        fields = _SCHEMA[kind]
        made = {name: self._made(name, fields[name][1], value) for name, value in content.items()}
        self.builder.StartObject(len(fields))
        for name, (slot, what) in fields.items():
            if name in made:
                self._put(slot, what, made[name])
        return int(self.builder.EndObject())

    def _put(self, slot: int, what: str, value: Any) -> None:
        if what in _NUMBERS:
            self.builder.PrependSlot(_NUMBERS[what], slot, value, 0)
        elif what.startswith("one "):  # a struct lies inside its table
            self.builder.Prepend(_NUMBERS[what.removeprefix("one ")], value)
            self.builder.PrependStructSlot(slot, self.builder.Offset(), 0)
        else:
            self.builder.PrependUOffsetTRelativeSlot(slot, value, 0)

    def _made(self, name: str, what: str, value: Any) -> Any:
        """Where something was written; a number as it is."""
        if name not in _SHARED or what[1:-1] in _SCHEMA:  # of a vector of tables these are shared, one by one
            return self._new(name, what, value)
        key = (name, _key(value))
        if key not in self.written:
            self.written[key] = self._new(name, what, value)
        return self.written[key]

    def _new(self, name: str, what: str, value: Any) -> Any:
        if what in _SCHEMA:
            return self._table(what, value)
        if what == "text":
            return int(self.builder.CreateSharedString(value))
        if what == "[block]":
            return self._blocks(value)
        if what[0] != "[":
            return value
        if what[1:-1] in _SCHEMA or what == "[text]":
            items = [self._made(name, what[1:-1], item) for item in value]
            self.builder.StartVector(4, len(items), 4)
            for item in reversed(items):
                self.builder.PrependUOffsetTRelative(item)
            return int(self.builder.EndVector())
        return int(self.builder.CreateNumpyVector(np.asarray(tuple(value), what[1:-1])))

    def _blocks(self, data: NDArray[Any]) -> int:
        """A vector of structs of 16 bytes, in one copy instead of one call per byte."""
        raw = np.ascontiguousarray(data).tobytes()
        raw += b"\0" * (-len(raw) % _ALIGNMENT)
        builder = self.builder
        builder.StartVector(_ALIGNMENT, len(raw) // _ALIGNMENT, _ALIGNMENT)
        builder.head = builder.head - len(raw)
        builder.Bytes[builder.head : builder.head + len(raw)] = raw
        return int(builder.EndVector())


def _key(value: Any) -> Hashable:
    """What equal contents have in common."""
    if isinstance(value, Mapping):
        return tuple((name, _key(entry)) for name, entry in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(_key, value))
    return value.tobytes() if isinstance(value, np.ndarray) else repr(value)


# the file as dictionaries


def encode_espdl(file: EspdlFile) -> bytes:
    """The bytes of a file.

    Args:
        file: what to write; its ``bytes`` are ignored.

    Returns:
        EDL2 header and flatbuffer; every tensor's data starts at a multiple of 16, as the chip's vector loads need.
    """
    name, _, version = file.producer.partition(" ")
    content = {
        "graph": {
            "initializer": list(map(_tensor_content, file.tensors.values())),
            "test_inputs_value": list(map(_tensor_content, file.test_inputs.values())),
            "test_outputs_value": list(map(_tensor_content, file.test_outputs.values())),
            "node": list(map(_node_content, file.nodes)),
            "input": list(map(_value_content, file.inputs)),
            "output": list(map(_value_content, file.outputs)),
            "value_info": list(map(_value_content, file.values.values())),
            "name": file.graph_name,
        },
        "metadata_props": [{"key": key, "value": file.metadata[key]} for key in sorted(file.metadata)],
        "opset_import": [{"domain": "", "version": file.opset}],
        "producer_name": name,
        "producer_version": version,
        "ir_version": _IR_VERSION,
    }
    payload = _Writer(sum(tensor.data.nbytes for tensor in file.tensors.values())).whole("Model", content)
    payload += b"\0" * (-len(payload) % _ALIGNMENT)
    return _MAGIC + struct.pack("<3I", 0, len(payload), 0) + payload


def _tensor_content(tensor: EspdlTensor) -> Content:
    content = {"raw_data": tensor.data, "dims": tensor.dims, "exponents": tensor.exponents, "name": tensor.name}
    layout = {"doc_string": _LAYOUT + tensor.layout} if tensor.layout else {}
    return {**content, **layout, "data_type": _code(tensor.data.dtype.name)}


def _code(dtype: str) -> int:
    code = _CODES.get(np.dtype(dtype).newbyteorder("<"), _CODES.get(np.dtype(dtype)))
    if code is None:
        raise TypeError(f"an .espdl file has no element type {dtype}")
    return code


def _value_content(value: EspdlValue) -> Content:
    sizes = [{"value": {"number": size, "kind": 1}} for size in value.dims]
    tensor = {"shape": {"dim": sizes}, "elem_type": _code(value.dtype)}
    return {"type": {"value": tensor, "kind": 1}, "name": value.name, "exponents": value.exponents}


def _node_content(node: EspdlNode) -> Content:
    attributes = [_attribute_content(name, node.attributes[name]) for name in sorted(node.attributes)]
    return {
        "attribute": attributes, "input": node.inputs, "output": node.outputs, "name": node.name,
        "op_type": node.op_type,
    }  # fmt: skip


def _attribute_content(name: str, value: AttributeValue) -> Content:
    content: Any = value
    if isinstance(value, (float, int)):
        kind = 1 if isinstance(value, float) else 2
    elif isinstance(value, str):
        kind, content = 3, tuple(value.encode())
    elif isinstance(value, EspdlTensor):
        kind, content = 4, _tensor_content(value)
    elif value and all(isinstance(item, str) for item in value):
        kind = 8
    else:
        kind = 6 if any(isinstance(item, float) for item in value) else 7
    return {_ATTRIBUTES[kind]: content, "name": name, "attr_type": kind}


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
        try:
            return _file(_read(payload, "Model", int.from_bytes(payload[:4], "little")), len(data))
        except _NewerSchema as error:
            raise UserError(f"{name} has a newer schema than EDL2 of 2023 ({error})", "update narrowcast") from error


def _payload(data: bytes, name: str) -> bytes:
    magic = data[:4]
    if magic in (b"PDL1", b"PDL2", b"PDL3"):
        raise UserError(f"{name} is a pack of several models", "give the single .espdl files")
    if magic == b"EDL1":
        raise UserError(f"{name} has the old format EDL1", "export it again with ESP-PPQ 1.0 or newer")
    if magic[:3] == b"EDL" and magic != _MAGIC:
        raise UserError(f"{name} has the newer format {magic.decode('latin-1')}", "update narrowcast")
    if magic != _MAGIC:
        raise UserError(f"{name} is no .espdl file", "it must start with EDL2")
    if len(data) < _HEADER_BYTES:
        raise UserError(f"{name} is truncated: {len(data)} bytes", "copy or export it again")
    _, encrypted, length, _ = struct.unpack("<4I", data[:_HEADER_BYTES])
    if encrypted:
        raise UserError(f"{name} is encrypted", "export it without encryption")
    if len(data) - _HEADER_BYTES < length or length < 8:
        missing = _HEADER_BYTES + max(length, 8) - len(data)
        raise UserError(f"{name} is truncated: {missing} bytes are missing", "copy or export it again")
    return data[_HEADER_BYTES : _HEADER_BYTES + length]


def _file(model: Content, size: int) -> EspdlFile:
    if "graph" not in model:
        raise ValueError("no graph")
    graph = model["graph"]
    inputs, outputs, others = (tuple(map(_value, graph.get(name, ()))) for name in ("input", "output", "value_info"))
    tensors, test_inputs, test_outputs = (
        {tensor.name: tensor for tensor in map(_tensor, graph.get(name, ()))}
        for name in ("initializer", "test_inputs_value", "test_outputs_value")
    )
    opsets = [entry.get("version", 0) for entry in model.get("opset_import", ()) if not entry.get("domain")]
    return EspdlFile(
        graph_name=graph.get("name", ""),
        nodes=tuple(map(_node, graph.get("node", ()))),
        inputs=inputs,
        outputs=outputs,
        values={value.name: value for value in (*others, *inputs, *outputs) if value.name},
        tensors=tensors,
        test_inputs=test_inputs,
        test_outputs=test_outputs,
        metadata={entry.get("key", ""): entry.get("value", "") for entry in model.get("metadata_props", ())},
        producer=f"{model.get('producer_name', '')} {model.get('producer_version', '')}".strip(),
        opset=max(opsets, default=0),
        bytes=size,
    )


def _node(table: Content) -> EspdlNode:
    attributes = {entry.get("name", ""): _attribute(entry) for entry in table.get("attribute", ())}
    inputs, outputs = (tuple(table.get(name, ())) for name in ("input", "output"))
    return EspdlNode(table.get("name", ""), table.get("op_type", ""), inputs, outputs, attributes)


def _attribute(table: Content) -> AttributeValue:
    kind = table.get("attr_type", 0)
    if kind not in _ATTRIBUTES:
        raise _NewerSchema(f"attribute type {kind}")
    value = table.get(_ATTRIBUTES[kind])
    if kind == 4:
        if value is None:
            raise ValueError("an attribute without its tensor")
        return _tensor(value)
    if kind == 3:
        return "" if value is None else bytes(value).decode()
    if kind in (1, 2):
        return value or (0.0 if kind == 1 else 0)  # an absent number is 0
    return () if value is None else tuple(value if kind == 8 else value.tolist())


def _integers(table: Content, name: str) -> tuple[int, ...]:
    return tuple(table[name].tolist()) if name in table else ()


def _dtype(code: int) -> np.dtype[Any]:
    if code not in _DATA_TYPES:
        raise _NewerSchema(f"element type {code}")
    return _DATA_TYPES[code]


def _tensor(table: Content) -> EspdlTensor:
    name, dims, layout = table.get("name", ""), _integers(table, "dims"), table.get("doc_string", "")
    if table.get("data_location"):
        raise ValueError(f"tensor {name} is stored in another file")
    layout = layout.removeprefix(_LAYOUT) if layout.startswith(_LAYOUT) else ""
    return EspdlTensor(name, dims, _data(table, name, dims), _integers(table, "exponents"), layout)


def _data(table: Content, name: str, dims: tuple[int, ...]) -> NDArray[Any]:
    """The numbers, which may be in raw bytes or in one of the typed fields."""
    dtype = _dtype(table.get("data_type", 0))
    count = int(np.prod(dims, dtype=np.int64))
    raw = table.get("raw_data")
    if raw is not None:
        if count < 0 or raw.size < count * dtype.itemsize:
            raise ValueError(f"tensor {name} has {raw.size} bytes for {dims} of {dtype.name}")
        return np.asarray(raw[: count * dtype.itemsize].view(dtype))
    for values in (table[field] for field in _TYPED if field in table):
        if values.size >= count:
            return np.asarray(values[:count].astype(dtype))
    if count == 0:
        return np.zeros(0, dtype)
    raise ValueError(f"tensor {name} has no data")


def _value(table: Content) -> EspdlValue:
    name, exponents = table.get("name", ""), _integers(table, "exponents")
    kind = table.get("type")
    if kind is None or "value" not in kind:
        return EspdlValue(name, "float32", (), exponents)
    if kind.get("kind", 0) != 1:
        raise ValueError(f"value {name} is no tensor")
    dims = tuple(_dimension(entry.get("value", {}), name) for entry in kind["value"].get("shape", {}).get("dim", ()))
    return EspdlValue(name, _dtype(kind["value"].get("elem_type", 0)).name, dims, exponents)


def _dimension(value: Content, name: str) -> int:
    if value.get("kind", 0) != 1:
        raise ValueError(f"value {name} has an unknown size")
    return int(value.get("number", 0))
