"""Serialize an :class:`EspdlFile`: flatbuffer and header. The same file gives the same bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import numpy as np
from flatbuffers import Builder
from numpy.typing import NDArray

from narrowcast.deploy.espdl.schema import (
    DATA_TYPES,
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
from narrowcast.deploy.espdl.types import AttributeValue, EspdlFile, EspdlNode, EspdlTensor, EspdlValue

__all__ = ["encode_espdl"]

_CODES = {dtype: code for code, dtype in DATA_TYPES.items()}
#: Version of the schema's own enumeration (IR_VERSION_2023_12_22).
_IR_VERSION = 1
_ALIGNMENT = 16


def encode_espdl(file: EspdlFile) -> bytes:
    """The bytes of a file.

    Args:
        file: what to write; its ``bytes`` are ignored.

    Returns:
        EDL2 header and flatbuffer; every tensor's data starts at a multiple of 16, as the chip's vector loads need.
    """
    payload = _Encoder(sum(tensor.data.nbytes for tensor in file.tensors.values())).model(file)
    payload += b"\0" * (-len(payload) % _ALIGNMENT)
    return MAGIC + struct.pack("<3I", 0, len(payload), 0) + payload


class _Encoder:
    def __init__(self, size: int) -> None:
        self.builder = Builder(size + (1 << 16))
        self.written: dict[Hashable, int] = {}

    def model(self, file: EspdlFile) -> bytes:
        """The whole flatbuffer."""
        graph = self._graph(file)
        metadata = self._tables(self._pair(key, file.metadata[key]) for key in sorted(file.metadata))
        domain = self._text("")
        opset = self._table(2, {
            OperatorSetSlot.DOMAIN: self._offset(OperatorSetSlot.DOMAIN, domain),
            OperatorSetSlot.VERSION: self._int64(OperatorSetSlot.VERSION, file.opset),
        })  # fmt: skip
        opsets = self._tables([opset])
        name, _, version = file.producer.partition(" ")
        producer, producer_version = self._text(name), self._text(version)
        root = self._table(len(ModelSlot), {
            ModelSlot.IR_VERSION: self._int32(ModelSlot.IR_VERSION, _IR_VERSION),
            ModelSlot.OPSET_IMPORT: self._offset(ModelSlot.OPSET_IMPORT, opsets),
            ModelSlot.PRODUCER_NAME: self._offset(ModelSlot.PRODUCER_NAME, producer),
            ModelSlot.PRODUCER_VERSION: self._offset(ModelSlot.PRODUCER_VERSION, producer_version),
            ModelSlot.GRAPH: self._offset(ModelSlot.GRAPH, graph),
            ModelSlot.METADATA_PROPS: self._offset(ModelSlot.METADATA_PROPS, metadata),
        })  # fmt: skip
        self.builder.Finish(root)
        return bytes(self.builder.Output())

    # primitives

    def _shared(self, key: Hashable, make: Callable[[], int]) -> int:
        """Equal parts are written once; many nodes and values are described alike."""
        if key not in self.written:
            self.written[key] = make()
        return self.written[key]

    def _text(self, text: str) -> int:
        return int(self.builder.CreateSharedString(text))

    def _tables(self, offsets: Iterable[int]) -> int:
        """A vector of tables or strings."""
        items = list(offsets)
        self.builder.StartVector(4, len(items), 4)
        for item in reversed(items):
            self.builder.PrependUOffsetTRelative(item)
        return int(self.builder.EndVector())

    def _numbers(self, values: Iterable[int] | Iterable[float], dtype: str) -> int:
        array = np.asarray(list(values), dtype)
        if array.size == 0:
            self.builder.StartVector(array.itemsize, 0, array.itemsize)
            return int(self.builder.EndVector())
        return int(self.builder.CreateNumpyVector(array))

    def _blocks(self, data: NDArray[Any]) -> int:
        """A vector of structs of 16 bytes, in one copy instead of one call per byte."""
        raw = np.ascontiguousarray(data).tobytes()
        raw += b"\0" * (-len(raw) % _ALIGNMENT)
        builder = self.builder
        builder.StartVector(_ALIGNMENT, len(raw) // _ALIGNMENT, _ALIGNMENT)
        builder.head = builder.head - len(raw)
        builder.Bytes[builder.head : builder.head + len(raw)] = raw
        return int(builder.EndVector())

    def _offset(self, slot: int, offset: int) -> Callable[[], None]:
        return lambda: self.builder.PrependUOffsetTRelativeSlot(slot, offset, 0)

    def _int32(self, slot: int, value: int) -> Callable[[], None]:
        return lambda: self.builder.PrependInt32Slot(slot, value, 0)

    def _int64(self, slot: int, value: int) -> Callable[[], None]:
        return lambda: self.builder.PrependInt64Slot(slot, value, 0)

    def _table(self, slots: int, fields: Mapping[Any, Callable[[], None]]) -> int:
        self.builder.StartObject(slots)
        for put in fields.values():
            put()
        return int(self.builder.EndObject())

    # tables

    def _pair(self, key: str, value: str) -> int:
        names = self._text(key), self._text(value)
        return self._table(2, {slot: self._offset(slot, names[slot]) for slot in PairSlot})

    def _graph(self, file: EspdlFile) -> int:
        parts = {
            GraphSlot.INITIALIZER: self._tables([self._tensor(tensor) for tensor in file.tensors.values()]),
            GraphSlot.TEST_INPUTS_VALUE: self._tables([self._tensor(tensor) for tensor in file.test_inputs.values()]),
            GraphSlot.TEST_OUTPUTS_VALUE: self._tables([self._tensor(tensor) for tensor in file.test_outputs.values()]),
            GraphSlot.NODE: self._tables([self._node(node) for node in file.nodes]),
            GraphSlot.INPUT: self._tables([self._value(value) for value in file.inputs]),
            GraphSlot.OUTPUT: self._tables([self._value(value) for value in file.outputs]),
            GraphSlot.VALUE_INFO: self._tables([self._value(value) for value in file.values.values()]),
            GraphSlot.NAME: self._text(file.graph_name),
        }
        return self._table(len(GraphSlot), {slot: self._offset(slot, parts[slot]) for slot in sorted(parts)})

    def _tensor(self, tensor: EspdlTensor) -> int:
        parts = {
            TensorSlot.RAW_DATA: self._blocks(tensor.data),
            TensorSlot.DIMS: self._shared(("dims", tensor.dims), lambda: self._numbers(tensor.dims, "<i8")),
            TensorSlot.EXPONENTS: self._exponents(tensor.exponents),
            TensorSlot.NAME: self._text(tensor.name),
        }
        if tensor.layout:
            parts[TensorSlot.DOC_STRING] = self._text(LAYOUT_PREFIX + tensor.layout)
        fields = {slot: self._offset(slot, parts[slot]) for slot in sorted(parts)}
        fields[TensorSlot.DATA_TYPE] = self._int32(TensorSlot.DATA_TYPE, _code(tensor.data.dtype.name))
        return self._table(len(TensorSlot), fields)

    def _value(self, value: EspdlValue) -> int:
        kind = self._shared(("type", value.dtype, value.dims), lambda: self._type(value.dtype, value.dims))
        name, exponents = self._text(value.name), self._exponents(value.exponents)
        return self._table(len(ValueSlot), {
            ValueSlot.NAME: self._offset(ValueSlot.NAME, name),
            ValueSlot.TYPE: self._offset(ValueSlot.TYPE, kind),
            ValueSlot.EXPONENTS: self._offset(ValueSlot.EXPONENTS, exponents),
        })  # fmt: skip

    def _exponents(self, exponents: tuple[int, ...]) -> int:
        return self._shared(("exponents", exponents), lambda: self._numbers(exponents, "<i8"))

    def _type(self, dtype: str, dims: tuple[int, ...]) -> int:
        dimensions = self._tables([self._dimension(size) for size in dims])
        shape = self._table(1, {0: self._offset(0, dimensions)})
        tensor = self._table(len(TensorTypeSlot), {
            TensorTypeSlot.SHAPE: self._offset(TensorTypeSlot.SHAPE, shape),
            TensorTypeSlot.ELEM_TYPE: self._int32(TensorTypeSlot.ELEM_TYPE, _code(dtype)),
        })  # fmt: skip
        return self._table(len(TypeSlot), {
            TypeSlot.VALUE: self._offset(TypeSlot.VALUE, tensor),
            TypeSlot.KIND: lambda: self.builder.PrependUint8Slot(TypeSlot.KIND, 1, 0),
        })  # fmt: skip

    def _dimension(self, size: int) -> int:
        return self._shared(("dimension", size), lambda: self._new_dimension(size))

    def _new_dimension(self, size: int) -> int:
        value = self._table(len(DimensionValueSlot), {
            DimensionValueSlot.NUMBER: self._int64(DimensionValueSlot.NUMBER, size),
            DimensionValueSlot.KIND: lambda: self.builder.PrependInt8Slot(DimensionValueSlot.KIND, 1, 0),
        })  # fmt: skip
        return self._table(len(DimensionSlot), {DimensionSlot.VALUE: self._offset(DimensionSlot.VALUE, value)})

    def _node(self, node: EspdlNode) -> int:
        attributes = [self._attribute(name, node.attributes[name]) for name in sorted(node.attributes)]
        parts = {
            NodeSlot.ATTRIBUTE: self._tables(attributes),
            NodeSlot.INPUT: self._tables([self._text(name) for name in node.inputs]),
            NodeSlot.OUTPUT: self._tables([self._text(name) for name in node.outputs]),
            NodeSlot.NAME: self._text(node.name),
            NodeSlot.OP_TYPE: self._text(node.op_type),
        }
        return self._table(len(NodeSlot), {slot: self._offset(slot, parts[slot]) for slot in sorted(parts)})

    def _attribute(self, name: str, value: AttributeValue) -> int:
        if isinstance(value, EspdlTensor):
            return self._new_attribute(name, value)
        return self._shared(("attribute", name, repr(value)), lambda: self._new_attribute(name, value))

    def _new_attribute(self, name: str, value: AttributeValue) -> int:
        kind, put = self._payload(value)
        label = self._text(name)
        return self._table(len(AttributeSlot), {
            AttributeSlot.NAME: self._offset(AttributeSlot.NAME, label),
            AttributeSlot.F: put,
            AttributeSlot.ATTR_TYPE: self._int32(AttributeSlot.ATTR_TYPE, kind),
        })  # fmt: skip

    def _payload(self, value: AttributeValue) -> tuple[AttributeType, Callable[[], None]]:
        """What an attribute holds: its type, and what puts it into the attribute's table."""
        builder = self.builder
        if isinstance(value, float):
            return AttributeType.FLOAT, lambda: self._inline(AttributeSlot.F, builder.PrependFloat32, value)
        if isinstance(value, int):
            return AttributeType.INT, lambda: self._inline(AttributeSlot.I, builder.PrependInt64, value)
        if isinstance(value, str):
            text = self._numbers(value.encode(), "u1")
            return AttributeType.STRING, self._offset(AttributeSlot.S, text)
        if isinstance(value, EspdlTensor):
            return AttributeType.TENSOR, self._offset(AttributeSlot.T, self._tensor(value))
        if value and all(isinstance(item, str) for item in value):
            texts = self._tables([self._text(str(item)) for item in value])
            return AttributeType.STRINGS, self._offset(AttributeSlot.STRINGS, texts)
        numbers = [item for item in value if not isinstance(item, str)]
        if any(isinstance(item, float) for item in numbers):
            return AttributeType.FLOATS, self._offset(AttributeSlot.FLOATS, self._numbers(numbers, "<f4"))
        return AttributeType.INTS, self._offset(AttributeSlot.INTS, self._numbers(numbers, "<i8"))

    def _inline(self, slot: int, prepend: Callable[[Any], None], value: float) -> None:
        """A struct of one number, which lies inside its table."""
        prepend(value)
        self.builder.PrependStructSlot(slot, self.builder.Offset(), 0)


def _code(dtype: str) -> int:
    code = _CODES.get(np.dtype(dtype).newbyteorder("<"), _CODES.get(np.dtype(dtype)))
    if code is None:
        raise TypeError(f"an .espdl file has no element type {dtype}")
    return code
