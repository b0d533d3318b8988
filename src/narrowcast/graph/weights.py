"""Large weights are held once, however many graphs name them.

A graph in memory names such a weight by its content, as ONNX names data in another file; copies of the graph, and
serialized ones, are then small. Sessions are given the arrays themselves. Files get the data back: :func:`with_data`.
"""

from __future__ import annotations

import hashlib
import mmap
import tempfile
from collections.abc import Iterator
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from narrowcast.ops.net import copied

__all__ = ["HeldTensor", "held_arrays", "hold", "hold_weights", "rest", "with_data", "without_weights"]

#: Bytes from which a constant of floats is held; ONNX computes shapes from whole numbers, which so stay in the graph.
LEAST_BYTES = 1 << 18
_LOCATION = "narrowcast-weight/"


class _Held:
    """An array that lives as long as somebody holds it, in a file without a name.

    The system keeps of it in memory what is in use; where no file can be made, memory holds all of it.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        self._map: mmap.mmap | None = None
        try:
            with tempfile.TemporaryFile() as file:
                file.write(array.data)
                file.flush()
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self.array: NDArray[Any] = np.frombuffer(self._map, array.dtype).reshape(array.shape)
        except OSError:
            self.array = array

    def rest(self) -> None:
        """Let the memory go until the values are read again."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


_known: WeakValueDictionary[str, _Held] = WeakValueDictionary()


def _keep(array: NDArray[Any]) -> tuple[str, _Held]:
    """The one copy of an array, and the name of its content."""
    array = np.ascontiguousarray(array)
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(memoryview(array.reshape(-1).view(np.uint8)))  # type: ignore[arg-type]
    key = digest.hexdigest()
    held = _known.get(key)
    if held is None:
        held = _known[key] = _Held(array)
    return key, held


class HeldTensor(ir.ExternalTensor):  # type: ignore[misc]  # onnx_ir comes without types
    """A constant of a graph whose values are held; immutable as all constants are."""

    def __init__(self, array: NDArray[Any], name: str | None) -> None:
        key, self._held = _keep(array)
        kind = ir.DataType.from_numpy(array.dtype)
        super().__init__(_LOCATION + key, None, None, kind, shape=ir.Shape(array.shape), name=name)

    def numpy(self) -> NDArray[Any]:
        """The values; not to be changed."""
        return self._held.array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self._held.array if dtype is None else self._held.array.astype(dtype)

    def tobytes(self) -> bytes:
        """The values as ONNX stores them."""
        return self._held.array.tobytes()


def hold_weights(model: ir.Model) -> None:
    """Let large constants be held, and let go of the messages that the graph was read from; in place."""
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and str(tensor.location).startswith(_LOCATION):
            array = _known[str(tensor.location).removeprefix(_LOCATION)].array
        else:
            array = tensor.numpy()
        large = array.nbytes >= LEAST_BYTES and array.dtype.kind == "f"
        value.const_value = HeldTensor(array, name) if large else ir.tensor(np.array(array), name=name)


def hold(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[Any, ...]]:
    """A small copy of a model with its data in memory, and what keeps its large weights alive.

    Args:
        model: large constants lose their data in place.
    """
    kept = []
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.raw_data) >= LEAST_BYTES:
            key, held = _keep(numpy_helper.to_array(tensor))
            kept.append(held)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=_LOCATION + key)
    small = onnx.ModelProto()
    small.ParseFromString(model.SerializeToString())  # a message never gives memory back, only a new one is small
    return small, tuple(kept)


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A small model that is valid where this one is: inputs stand for its large constants, whose data is checked."""
    large = {tensor.name for tensor in model.graph.initializer if len(tensor.raw_data) >= LEAST_BYTES}
    if not large:
        return model
    small = onnx.ModelProto()
    _copy_fields(model, small, "graph")
    _copy_fields(model.graph, small.graph, "initializer")
    inputs = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.name not in large:
            small.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            small.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return small


def _copy_fields(source: Any, target: Any, left_out: str) -> None:
    for field, value in source.ListFields():
        if field.name == left_out:
            continue
        if isinstance(value, (str, bytes, int, float)):
            setattr(target, field.name, value)
        elif hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        else:
            getattr(target, field.name).CopyFrom(value)


def held_arrays(model: onnx.ModelProto | bytes) -> Iterator[tuple[str, NDArray[Any]]]:
    """Names and values of the constants of a model, or of a serialized one, whose data is held."""
    if isinstance(model, bytes):
        model = onnx.load_from_string(model) if _LOCATION.encode() in model else onnx.ModelProto()
    yield from ((name, held.array) for name, held in _held(model))


def _held(model: onnx.ModelProto) -> Iterator[tuple[str, _Held]]:
    for tensor in model.graph.initializer:
        location = tensor.external_data[0].value if tensor.data_location == TensorProto.EXTERNAL else ""
        if location.startswith(_LOCATION):
            yield tensor.name, _known[location.removeprefix(_LOCATION)]


def with_data(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with all its data inside: itself where nothing of it is held, else a copy."""
    held = dict(_held(model))
    if not held:
        return model
    copy = copied(model)
    for tensor in copy.graph.initializer:
        if tensor.name in held:
            del tensor.external_data[:]
            tensor.ClearField("data_location")
            tensor.raw_data = held[tensor.name].array.tobytes()
            held[tensor.name].rest()
    return copy


def rest(model: onnx.ModelProto) -> None:
    """Let the memory of a model's held weights go until they are read again."""
    for held in dict(_held(model)).values():
        held.rest()
