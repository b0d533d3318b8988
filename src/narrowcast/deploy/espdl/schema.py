"""The wire format of ``.espdl``: slots of the flatbuffer tables, types, and the header.

Slots are the positions of fields in their table, from 0 (a union takes two). Written from the format's published
facts; the flatbuffers package only supplies the primitives.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

__all__ = [
    "ATTRIBUTE_TYPES",
    "DATA_TYPES",
    "HEADER_BYTES",
    "LAYOUT_PREFIX",
    "MAGIC",
    "AttributeSlot",
    "AttributeType",
    "DimensionSlot",
    "DimensionValueSlot",
    "GraphSlot",
    "ModelSlot",
    "NodeSlot",
    "OperatorSetSlot",
    "PairSlot",
    "TensorSlot",
    "TensorTypeSlot",
    "TypeSlot",
    "ValueSlot",
]

MAGIC = b"EDL2"
#: magic, encryption flag, payload length, zero: four little-endian words.
HEADER_BYTES = 16
#: A tensor's documentation string says how its bytes are laid out.
LAYOUT_PREFIX = "layout ==> "


class ModelSlot(IntEnum):
    """Root table."""

    IR_VERSION = 0
    OPSET_IMPORT = 1
    PRODUCER_NAME = 2
    PRODUCER_VERSION = 3
    DOMAIN = 4
    MODEL_VERSION = 5
    DOC_STRING = 6
    GRAPH = 7
    METADATA_PROPS = 8
    FUNCTIONS = 9


class GraphSlot(IntEnum):
    """Graph."""

    NODE = 0
    NAME = 1
    INITIALIZER = 2
    DOC_STRING = 3
    INPUT = 4
    OUTPUT = 5
    VALUE_INFO = 6
    QUANTIZATION_ANNOTATION = 7
    TEST_INPUTS_VALUE = 8
    TEST_OUTPUTS_VALUE = 9


class NodeSlot(IntEnum):
    """Node."""

    INPUT = 0
    OUTPUT = 1
    NAME = 2
    OP_TYPE = 3
    DOMAIN = 4
    ATTRIBUTE = 5
    DOC_STRING = 6


class AttributeSlot(IntEnum):
    """Attribute of a node; F and I hold a struct of one number."""

    NAME = 0
    REF_ATTR_NAME = 1
    DOC_STRING = 2
    ATTR_TYPE = 3
    F = 4
    I = 5  # noqa: E741
    S = 6
    T = 7
    G = 8
    TP = 9
    FLOATS = 10
    INTS = 11
    STRINGS = 12
    TENSORS = 13
    GRAPHS = 14
    TYPE_PROTOS = 15


class TensorSlot(IntEnum):
    """Constant tensor; RAW_DATA is a vector of structs of 16 bytes, aligned to 16."""

    DIMS = 0
    DATA_TYPE = 1
    FLOAT_DATA = 2
    INT32_DATA = 3
    STRING_DATA = 4
    INT64_DATA = 5
    NAME = 6
    DOC_STRING = 7
    RAW_DATA = 8
    EXTERNAL_DATA = 9
    DATA_LOCATION = 10
    DOUBLE_DATA = 11
    UINT64_DATA = 12
    EXPONENTS = 13


class ValueSlot(IntEnum):
    """Shape, type and exponents of a value."""

    NAME = 0
    TYPE = 1
    DOC_STRING = 2
    EXPONENTS = 3


class TypeSlot(IntEnum):
    """Type; KIND is the union's tag, 1 for a tensor."""

    KIND = 0
    VALUE = 1
    DENOTATION = 2


class TensorTypeSlot(IntEnum):
    """Element type and shape; the shape's only field is a vector of dimensions."""

    ELEM_TYPE = 0
    SHAPE = 1


class DimensionSlot(IntEnum):
    """One dimension."""

    VALUE = 0
    DENOTATION = 1


class DimensionValueSlot(IntEnum):
    """Kind: 0 unknown, 1 a number, 2 a name."""

    KIND = 0
    NUMBER = 1
    NAME = 2


class PairSlot(IntEnum):
    """String to string."""

    KEY = 0
    VALUE = 1


class OperatorSetSlot(IntEnum):
    """Operator set."""

    DOMAIN = 0
    VERSION = 1


class AttributeType(IntEnum):
    """Which field of an attribute holds its value."""

    UNDEFINED = 0
    FLOAT = 1
    INT = 2
    STRING = 3
    TENSOR = 4
    GRAPH = 5
    FLOATS = 6
    INTS = 7
    STRINGS = 8
    TENSORS = 9
    GRAPHS = 10


#: Those that this package reads and writes.
ATTRIBUTE_TYPES = (
    AttributeType.FLOAT, AttributeType.INT, AttributeType.STRING, AttributeType.TENSOR, AttributeType.FLOATS,
    AttributeType.INTS, AttributeType.STRINGS,
)  # fmt: skip

#: Element types; they differ from ONNX from 11 on. Strings (8) are left out: no tensor of a network has them.
DATA_TYPES: dict[int, np.dtype] = {
    1: np.dtype("<f4"),
    2: np.dtype("u1"),
    3: np.dtype("i1"),
    4: np.dtype("<u2"),
    5: np.dtype("<i2"),
    6: np.dtype("<i4"),
    7: np.dtype("<i8"),
    9: np.dtype("?"),
    10: np.dtype("<f2"),
    11: np.dtype("<f8"),
    12: np.dtype("<u4"),
    13: np.dtype("<u8"),
}
