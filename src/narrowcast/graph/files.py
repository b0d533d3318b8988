"""ONNX files in: read, check, fix dynamic axes, bring to one opset range."""

from __future__ import annotations

import ast
import hashlib
import itertools
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
from onnx import TensorProto, numpy_helper

from narrowcast.errors import UserError

__all__ = ["fix_shapes", "read_onnx", "to_supported_opset"]

OLDEST_OPSET, NEWEST_OPSET = 11, 22
#: Per-channel DequantizeLinear and Squeeze/Split with tensor operands exist from here on.
LOWEST_WORKING_OPSET = 13


def read_onnx(path: str | Path) -> tuple[onnx.ModelProto, str]:
    """Read and check a model file.

    Args:
        path: ``.onnx`` (external data beside it is read too), or ``.pt``, which is exported by the user's own
            installed ``yolo`` command.

    Returns:
        The model with all weights in memory, and the SHA-256 of the file.

    Raises:
        UserError: missing, truncated, no ONNX file, no float32 model, NaN weights, unsupported opset.
    """
    file = Path(path)
    if not file.exists():
        raise UserError(f"{file} does not exist", "check the path")
    if file.is_dir():
        raise UserError(f"{file} is a folder, not a model", "give the .onnx file")
    if file.suffix == ".pt":
        with tempfile.TemporaryDirectory() as folder:
            return read_onnx(_export_checkpoint(file, Path(folder)))
    if file.suffix != ".onnx":
        raise UserError(f"{file} has the suffix {file.suffix or '(none)'}", "give an .onnx or .pt file")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    try:
        model = onnx.load(str(file))
    except FileNotFoundError as error:
        raise UserError(f"{file} refers to weights in another file: {error}", "keep it beside the model") from error
    except Exception as error:  # protobuf raises its own types, which differ between its back-ends
        raise UserError(f"{file} is truncated or not an ONNX file", "export it again") from error
    _check(model, file)
    return model, digest


def _export_checkpoint(checkpoint: Path, folder: Path) -> Path:
    command = shutil.which("yolo")
    if command is None:
        raise UserError(
            f"{checkpoint} is a PyTorch checkpoint and no 'yolo' command is installed",
            "export it to ONNX where you trained it: yolo export model=... format=onnx",
        )
    copy = Path(shutil.copy(checkpoint, folder))
    run = subprocess.run(
        [command, "export", f"model={copy}", "format=onnx", "opset=17"], capture_output=True, text=True, check=False
    )
    exported = copy.with_suffix(".onnx")
    if run.returncode != 0 or not exported.exists():
        last = (run.stderr.strip() or run.stdout.strip() or "no output").splitlines()[-1]
        raise UserError(f"'yolo export' of {checkpoint} failed: {last}", "export it to ONNX yourself")
    return exported


def _check(model: onnx.ModelProto, file: Path) -> None:
    if not model.graph.node or not model.graph.input:
        raise UserError(f"{file} is truncated or not an ONNX file", "export it again")
    opset = model_opset(model)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise UserError(f"{file} has opset {opset}", f"export it with an opset from {OLDEST_OPSET} to {NEWEST_OPSET}")
    for tensor in model.graph.initializer:
        if tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
            raise UserError(f"{file} holds 16-bit float weights ({tensor.name})", "export it in float32 (half=False)")
        if tensor.data_type == TensorProto.FLOAT and not np.isfinite(numpy_helper.to_array(tensor)).all():
            raise UserError(f"{file} holds NaN or infinite weights in {tensor.name}", "train or export it again")
    if any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        raise UserError(f"{file} is already quantized", "give the float model")
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise UserError(f"{file} is not valid ONNX: {str(error).splitlines()[0]}", "export it again") from error


def model_opset(model: onnx.ModelProto) -> int:
    """Version of the default operator set, 0 when it is not imported."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    """The free-form metadata of the file."""
    return {entry.key: entry.value for entry in model.metadata_props}


def data_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Graph inputs that are not initializers."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def fix_shapes(model: onnx.ModelProto, file: str, size: tuple[int, int] | None = None) -> onnx.ModelProto:
    """Give the one image input a static shape with batch 1.

    Args:
        model: any checked model; not changed.
        file: its name, for messages.
        size: height and width in pixels; ``None`` takes the file's own, or its ``imgsz`` metadata.

    Returns:
        A copy with a static input shape, no inherited shapes elsewhere where the input changed, and no two nodes of
        one name: ONNX allows these, onnxruntime does not.

    Raises:
        UserError: several inputs, not an image, batch above 1, unknown size.
    """
    inputs = data_inputs(model)
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise UserError(f"{file} has {len(inputs)} inputs ({names})", "narrowcast takes models with one image input")
    tensor_type = inputs[0].type.tensor_type
    if tensor_type.elem_type != TensorProto.FLOAT:
        kind = TensorProto.DataType.Name(tensor_type.elem_type).lower()
        raise UserError(f"input {inputs[0].name} of {file} is {kind}", "export the model with a float32 input")
    dims = [d.dim_value if d.HasField("dim_value") else 0 for d in tensor_type.shape.dim]
    if len(dims) != 4:
        raise UserError(f"input {inputs[0].name} of {file} has {len(dims)} axes", "an image input has 4 (NCHW)")
    if dims[0] > 1:
        raise UserError(f"{file} has a fixed batch of {dims[0]}", "export it with batch 1")
    wanted = _wanted_shape(dims, model, file, size)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _name_nodes_apart(copy.graph)
    if wanted == dims:
        return copy
    target = next(value for value in copy.graph.input if value.name == inputs[0].name)
    for dim, value in zip(target.type.tensor_type.shape.dim, wanted, strict=True):
        dim.dim_value = value
    del copy.graph.value_info[:]
    for output in copy.graph.output:
        output.type.tensor_type.ClearField("shape")
    return copy


def _name_nodes_apart(graph: onnx.GraphProto) -> None:
    """Give the second and further nodes of one name a number, in place, subgraphs included."""
    taken = {node.name for node in graph.node}
    seen: set[str] = set()
    for node in graph.node:
        if node.name and node.name in seen:
            node.name = next(name for i in itertools.count(1) if (name := f"{node.name}_{i}") not in taken)
            taken.add(node.name)
        seen.add(node.name)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _name_nodes_apart(attribute.g)


def _wanted_shape(dims: list[int], model: onnx.ModelProto, file: str, size: tuple[int, int] | None) -> list[int]:
    channels_last = dims[3] in (1, 3) and dims[1] not in (1, 3)
    height_axis, channel_axis = (1, 3) if channels_last else (2, 1)
    wanted = [1, *dims[1:]]
    wanted[channel_axis] = dims[channel_axis] or 3
    known = size or _metadata_size(model)
    for offset in range(2):
        axis = height_axis + offset
        if size is not None and dims[axis] not in (0, size[offset]):
            fixed = "x".join(str(d) for d in dims[height_axis : height_axis + 2])
            raise UserError(f"{file} is fixed to {fixed}", "leave --size out, or export it with dynamic=True")
        if dims[axis] == 0:
            if known is None:
                raise UserError(f"{file} does not say its image size", "give --size HEIGHTxWIDTH")
            wanted[axis] = known[offset]
    return wanted


def _metadata_size(model: onnx.ModelProto) -> tuple[int, int] | None:
    text = metadata(model).get("imgsz")
    if text is None:
        return None
    value = ast.literal_eval(text)
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def to_supported_opset(model: onnx.ModelProto, file: str) -> onnx.ModelProto:
    """Raise an old opset to the lowest one that the rest of the program works with.

    Raises:
        UserError: when ONNX's own converter cannot.
    """
    if model_opset(model) >= LOWEST_WORKING_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, LOWEST_WORKING_OPSET)
    except Exception as error:  # the converter raises RuntimeError and C++ exceptions alike
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{file} cannot be raised to opset {LOWEST_WORKING_OPSET}: {reason}", "export it with opset 17"
        ) from error
