"""ONNX files in: read, check, fix dynamic axes, bring to one opset range."""

from __future__ import annotations

import ast
import hashlib
import itertools
import math
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import onnx
import onnx.shape_inference
import onnx.version_converter
from onnx import TensorProto

from narrowcast.base.errors import UserError
from narrowcast.base.reading import reading
from narrowcast.graph.validity import MOST_VALUES, check_file, model_opset
from narrowcast.graph.weights import with_data
from narrowcast.ops.net import copied

__all__ = ["fix_shapes", "input_shape", "literal", "model_opset", "read_onnx", "to_supported_opset"]

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
        UserError: missing, truncated, no ONNX file, or what :func:`narrowcast.graph.validity.check_file` refuses.
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
    with reading(file, "export it again", "is truncated or not an ONNX file"):
        data = file.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        model = onnx.load_from_string(data)
        del data  # as much as the model
    with reading(f"the weights of {file} in other files", "keep them beside the model", "cannot be read"):
        onnx.load_external_data_for_model(model, str(file.absolute().parent))
    check_file(model, file)
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


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    """The free-form metadata of the file."""
    return {entry.key: entry.value for entry in model.metadata_props}


def data_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Graph inputs that are not initializers."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def input_shape(model: onnx.ModelProto) -> tuple[int, ...]:
    """The static shape of the one input of a model from :func:`fix_shapes`."""
    return tuple(int(dim.dim_value) for dim in data_inputs(model)[0].type.tensor_type.shape.dim)


def fix_shapes(model: onnx.ModelProto, file: str, size: tuple[int, int] | None = None) -> onnx.ModelProto:
    """Give the one image input a static shape with batch 1.

    Args:
        model: any checked model; not changed.
        file: its name, for messages.
        size: height and width in pixels; ``None`` takes the file's own, or its ``imgsz`` metadata.

    Returns:
        A copy with a static input shape, no inherited shapes elsewhere where the input changed or where they follow
        from it, and no two nodes of one name: ONNX allows these, onnxruntime does not.

    Raises:
        UserError: several inputs, not an image, batch above 1, unknown size, more than 2^28 values.
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
    copy = copied(model)
    _name_nodes_apart(copy.graph)
    if min(wanted) < 1 or math.prod(wanted) > MOST_VALUES:
        text = "x".join(map(str, wanted))
        raise UserError(f"an input of {text} is impossible, the most is {MOST_VALUES:,} values", "give another --size")
    if wanted != dims:
        target = next(value for value in copy.graph.input if value.name == inputs[0].name)
        for dim, value in zip(target.type.tensor_type.shape.dim, wanted, strict=True):
            dim.dim_value = value
        del copy.graph.value_info[:]
    _trust_inference(copy, file, changed=wanted != dims)
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


def _trust_inference(model: onnx.ModelProto, file: str, changed: bool) -> None:
    """Replace the shapes that a file states by those that follow from its input, in place: what is stated may be wrong.

    Args:
        model: with a static input.
        file: its name, for messages.
        changed: the input's shape is another than the file states, so outputs that nothing is known of lose theirs.
    """
    bare = copied(model)
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    with reading(file, "export it again", "has shapes that contradict each other"):
        found = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    shapes = {v.name: v.type.tensor_type for v in (*found.value_info, *found.output)}
    inferred = {name: kind.shape for name, kind in shapes.items() if kind.HasField("shape")}
    made = {name for node in model.graph.node for name in node.output} - inferred.keys()
    kept = [value for value in model.graph.value_info if value.name in made]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    for value in model.graph.output:
        if value.name in inferred:
            value.type.tensor_type.shape.CopyFrom(inferred[value.name])
        elif changed:
            value.type.tensor_type.ClearField("shape")


def _wanted_shape(dims: list[int], model: onnx.ModelProto, file: str, size: tuple[int, int] | None) -> list[int]:
    channels_last = dims[3] in (1, 3) and dims[1] not in (1, 3)
    height_axis, channel_axis = (1, 3) if channels_last else (2, 1)
    wanted = [1, *dims[1:]]
    wanted[channel_axis] = dims[channel_axis] or 3
    for offset in range(2):
        axis = height_axis + offset
        if size is not None and dims[axis] not in (0, size[offset]):
            fixed = "x".join(str(d) for d in dims[height_axis : height_axis + 2])
            raise UserError(f"{file} is fixed to {fixed}", "leave --size out, or export it with dynamic=True")
        if dims[axis] == 0:
            known = size or _metadata_size(model, file)
            if known is None:
                raise UserError(f"{file} does not say its image size", "give --size HEIGHTxWIDTH")
            wanted[axis] = known[offset]
    return wanted


def _metadata_size(model: onnx.ModelProto, file: str) -> tuple[int, int] | None:
    text = metadata(model).get("imgsz")
    if text is None:
        return None
    value = literal(text, "imgsz", file)
    sides = [value, value] if isinstance(value, int) else value
    if not isinstance(sides, (list, tuple)) or len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise UserError(f"{file}: its metadata key 'imgsz' is {text[:40]!r}", "give --size HEIGHTxWIDTH")
    return sides[0], sides[1]


def literal(text: str, key: str, file: str) -> Any:
    """A metadata entry that Python wrote: numbers, texts, lists and tables.

    Raises:
        UserError: it is something else.
    """
    with reading(f"{file}: its metadata key {key!r}", "mend it, or export the model again", "is not understood"):
        return ast.literal_eval(text)


def to_supported_opset(model: onnx.ModelProto, file: str) -> onnx.ModelProto:
    """Raise an old opset to the lowest one that the rest of the program works with.

    Raises:
        UserError: when ONNX's own converter cannot.
    """
    if model_opset(model) >= LOWEST_WORKING_OPSET:
        return model
    with reading(file, "export it with opset 17", f"cannot be raised to opset {LOWEST_WORKING_OPSET}"):
        return onnx.version_converter.convert_version(with_data(model), LOWEST_WORKING_OPSET)
