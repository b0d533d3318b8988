"""Run a float or QDQ graph with onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto

from narrowcast.graph.weights import held_arrays
from narrowcast.ops.net import copied

__all__ = ["Runner", "as_reals", "available_cores", "open_session"]

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


def as_reals(expected: NDArray[Any], actual: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two tensors of one shape as float32, flat, for measures of distance.

    Of whole numbers and truth values (class maps) only equality means something: they become ones, and ones where the
    two are equal. So noise to signal is the share of values that differ.
    """
    x, y = np.ascontiguousarray(expected).reshape(-1), np.ascontiguousarray(actual).reshape(-1)
    if x.dtype.kind in "iub":
        return np.ones(x.size, np.float32), (x == y).astype(np.float32)
    return x.astype(np.float32, copy=False), y.astype(np.float32, copy=False)


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
