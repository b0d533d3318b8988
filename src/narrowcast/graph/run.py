"""Run a float or QDQ graph with onnxruntime.

Large weights are held once, however many graphs name them. A graph in memory names such a weight by its content, as
ONNX names data in another file; copies of the graph, and serialized ones, are then small. Sessions are given the arrays
themselves. Files get the data back: :func:`with_data`.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from narrowcast.ops.net import copied

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
#: Gives freed memory back to the system, where the C library has to be asked (glibc).
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None


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
    for value in model.graph.initializers.values():
        hold_constant(value)


def hold_constant(value: ir.Value) -> None:
    """Let a constant be held if it is large; see :func:`hold_weights`."""
    tensor = value.const_value
    if isinstance(tensor, HeldTensor):
        return
    if isinstance(tensor, ir.ExternalTensor) and str(tensor.location).startswith(_LOCATION):
        array = _known[str(tensor.location).removeprefix(_LOCATION)].array
    else:
        array = tensor.numpy()
    large = array.nbytes >= LEAST_BYTES and array.dtype.kind == "f"
    value.const_value = HeldTensor(array, value.name) if large else ir.tensor(np.array(array), name=value.name)


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
    _give_back()
    copy = copied(model)
    for tensor in copy.graph.initializer:
        if tensor.name in held:
            del tensor.external_data[:]
            tensor.ClearField("data_location")
            tensor.raw_data = held[tensor.name].array.tobytes()
            held[tensor.name].rest()
    return copy


def _give_back() -> None:
    """Let go of memory that is not in use, before much is needed.

    What other graphs have read of held weights is seldom needed beside those of the next one. What the C library keeps
    of freed messages was up to twice the weights of a network.
    """
    for held in list(_known.values()):
        held.rest()
    if _TRIM is not None:
        _TRIM(0)


def rest(model: onnx.ModelProto) -> None:
    """Let the memory of a model's held weights go until they are read again."""
    for held in dict(_held(model)).values():
        held.rest()


#: Its Windows builds may send usage data; nothing that this program does leaves the machine.
onnxruntime.disable_telemetry_events()
_LEVELS = {
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
#: Bytes of weights stored as integers from which a session at "basic" computes the real ones anew in every run.
_MANY_BYTES = 1 << 24


class Runner:
    """An onnxruntime session on the CPU for a graph with one input.

    Args:
        model: a model or the path of one.
        threads: intra-op threads; 0 lets onnxruntime choose (all cores).
        level: graph optimization, ``"none"``, ``"basic"`` (keeps every tensor of the graph) or ``"all"``.
    """

    def __init__(self, model: onnx.ModelProto | str | Path, threads: int = 0, level: str = "all") -> None:
        self.session = open_session(model, threads, level)
        (image,) = self.session.get_inputs()
        self.input_name: str = image.name
        self.input_shape: tuple[int, ...] = tuple(image.shape)
        outputs = self.session.get_outputs()
        self.output_names: list[str] = [output.name for output in outputs]
        self.output_shapes: list[tuple[int, ...]] = [tuple(output.shape) for output in outputs]

    def run(self, tensor: NDArray[np.float32], names: Sequence[str] | None = None) -> dict[str, NDArray[np.generic]]:
        """Run one input and return the outputs (all, or those named) by name."""
        wanted = list(names) if names is not None else self.output_names
        if not wanted:  # onnxruntime reads an empty list as all outputs
            return {}
        return dict(zip(wanted, self.session.run(wanted, {self.input_name: tensor}), strict=True))


def open_session(
    model: onnx.ModelProto | bytes | str | Path,
    threads: int,
    level: str,
    options: onnxruntime.SessionOptions | None = None,
) -> onnxruntime.InferenceSession:
    """A session on the CPU, for graphs that :class:`Runner` is too narrow for; no other place makes one.

    onnxruntime runs QuantizeLinear and DequantizeLinear where a plan put them and nowhere else. Two pairs in a row are
    a requantization of the plan, which it would drop even at "basic"; and it would quantize the float weights of a node
    whose neighbours are quantized.

    Args:
        model: a model, its bytes, or the path of one.
        threads, level: as :class:`Runner` takes them.
        options: further options of onnxruntime, to which those above are added.
    """
    _give_back()
    options = options or onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = _LEVELS[level]
    options.log_severity_level = 4  # what fails is raised
    options.add_session_config_entry("session.disable_double_qdq_remover", "1")
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    held = list(held_arrays(model)) if isinstance(model, (onnx.ModelProto, bytes)) else []
    names, values = [name for name, _ in held], [onnxruntime.OrtValue.ortvalue_from_numpy(array) for _, array in held]
    options.add_external_initializers(names, values)  # their data is not in the file
    for name, value in zip(names, values, strict=True):
        options.add_initializer(name, value)  # and is shared, not copied
    unfolded = []
    if level == "basic" and isinstance(model, onnx.ModelProto) and _stored_bytes(model) >= _MANY_BYTES:
        unfolded = ["ConstantFolding"]  # four to eight times the memory, for as long as the session lives
        options.enable_cpu_mem_arena = False
        model = _constants_first(model)
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    del model
    session = onnxruntime.InferenceSession(
        source if isinstance(source, bytes) else str(source),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=unfolded,
    )
    session.weights = values  # it knows where they lie, not that they have to stay
    return session


def _stored_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the constants stored in 8 and 16 bits."""
    small = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16)
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer if tensor.data_type in small)


def _constants_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose first nodes are those that compute constants.

    onnxruntime goes from the outputs backwards and takes a node's latest input first. So what activations need runs
    before the constant that they meet, and one constant is in memory at a time.
    """
    known = {tensor.name for tensor in model.graph.initializer}
    constant: list[onnx.NodeProto] = []
    others: list[onnx.NodeProto] = []
    for node in model.graph.node:
        fixed = known.issuperset(name for name in node.input if name)
        (constant if fixed else others).append(node)
        known.update(node.output if fixed else ())
    copy = copied(model)
    del copy.graph.node[:]
    copy.graph.node.extend([*constant, *others])
    return copy


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
