"""ONNX files in: read, check, fix dynamic axes, bring to one opset range.

Is it what the rest of the program may rely on? Everything that reads graphs trusts what passes here. And it has one
float type, float32. Exporters write constants as Python numbers (``Constant(value_float)``), and simplifiers make
float64 of them; others compute a mask or a scale in float16 between two casts. Chips compute none of these, and
onnxruntime mixes none.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, helper, numpy_helper, shape_inference, version_converter

from narrowcast.base.errors import UserError
from narrowcast.base.reading import reading
from narrowcast.graph.run import with_data, without_weights
from narrowcast.ops.net import Op, copied

OLDEST_OPSET, NEWEST_OPSET = 11, 22
#: Values of a tensor, at most: 1 GiB in float32, or 16 channels of 4096 x 4096.
MOST_VALUES = 1 << 28
#: Cells that a window pads, strides or spans on a side, at most: a small file must not ask for hours of work.
MOST_STEPS = 4096
_STEPS = ("pads", "strides", "dilations", "kernel_shape", "output_padding")
_AGAIN = "export it again"
#: Metadata of a translated file: what a person should know, a line each; the colour of pixels 0..255 that it takes.
NOTES_KEY, PIXELS_KEY = "narrowcast.notes", "narrowcast.pixels"
#: From a file and its name to a file in standard operators; the same where there is nothing to do.
Translate = Callable[[onnx.ModelProto, str], onnx.ModelProto]


def model_opset(model: onnx.ModelProto) -> int:
    """Version of the default operator set, 0 when it is not imported."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def check_file(model: onnx.ModelProto, file: Path) -> None:
    """Check a model as it is in its file.

    Raises:
        UserError: no ONNX file, an opset that is too old or too new, no float32 model, weights that are not finite or
            not as many as their shape says, no outputs, control flow, windows of more than :data:`MOST_STEPS` cells.
    """
    graph = model.graph
    if not graph.node or not graph.input:
        raise UserError(f"{file} is truncated or not an ONNX file", _AGAIN)
    opset = model_opset(model)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise UserError(f"{file} has opset {opset}", f"export it with an opset from {OLDEST_OPSET} to {NEWEST_OPSET}")
    if not graph.output:
        raise UserError(f"{file} has no outputs", _AGAIN)
    for value in (*graph.input, *graph.output):
        kind = value.type.WhichOneof("value")
        if kind not in (None, "tensor_type"):
            raise UserError(f"{file}: {value.name} is no tensor but a {kind.removesuffix('_type')}", _AGAIN)
        if value.type.tensor_type.elem_type not in TensorProto.DataType.values():
            raise UserError(f"{file}: {value.name} has no known type", _AGAIN)
    for tensor in graph.initializer:
        if tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
            raise UserError(f"{file} holds 16-bit float weights ({tensor.name})", "export it in float32 (half=False)")
        values = _values(tensor, file)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise UserError(f"{file} holds NaN or infinite weights in {tensor.name}", "train or export it again")
    _check_nodes(model, file)
    check_texts(model, file)
    with reading(file, _AGAIN, "is not valid ONNX"):
        onnx.checker.check_model(without_weights(model))


def _values(tensor: TensorProto, file: Path) -> NDArray[Any]:
    """The numbers of a constant, as many as its shape says."""
    shape = tuple(tensor.dims)
    if any(size < 0 for size in shape) or math.prod(shape) > MOST_VALUES:
        raise UserError(f"{file}: the constant {tensor.name} has the impossible shape {shape}", _AGAIN)
    with reading(f"{file}: the constant {tensor.name} of shape {shape}", _AGAIN):
        values: NDArray[Any] = numpy_helper.to_array(tensor)
        return values


def check_texts(message: Message, file: Path) -> None:
    """Names and other texts are UTF-8: protobuf hands over bytes where they are not."""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        for entry in [value] if isinstance(value, (str, bytes, Message)) else value:
            if isinstance(entry, bytes):
                raise UserError(f"{file}: a {field.name} is no UTF-8 text", _AGAIN)
            if isinstance(entry, Message):
                check_texts(entry, file)


def _check_nodes(model: onnx.ModelProto, file: Path) -> None:
    for node in model.graph.node:
        if node.op_type == Op.DEQUANTIZE:
            raise UserError(f"{file} is already quantized", "give the float model")
        for attribute in node.attribute:
            if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
                raise UserError(
                    f"{file} decides while it runs what it computes ({node.op_type} {node.name})",
                    "export it without control flow and without NMS (nms=False)",
                )
            if attribute.ref_attr_name:
                raise UserError(f"{file}: {attribute.name} of {node.op_type} {node.name} is of no function", _AGAIN)
            if attribute.name in _STEPS and max(attribute.ints, default=0) > MOST_STEPS:
                raise UserError(f"{file}: {attribute.name} of {node.op_type} {node.name} is impossible", _AGAIN)
            with reading(f"{file}: {attribute.name} of {node.op_type} {node.name}", _AGAIN, "is no text"):
                _ = [text.decode() for text in (attribute.s, *attribute.strings)]
            if attribute.type == AttributeProto.TENSOR:
                _values(attribute.t, file)


def check_sizes(model: onnx.ModelProto, source: str) -> None:
    """Check the shapes of all tensors of a model whose inputs have static shapes, before anything computes them.

    Raises:
        UserError: shapes that contradict each other, or a tensor of more than :data:`MOST_VALUES` values.
    """
    with reading(source, _AGAIN, "has shapes that contradict each other"):
        graph = shape_inference.infer_shapes(model, check_type=True, data_prop=True).graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if any(size < 0 for size in shape) or math.prod(shape) > MOST_VALUES:
            text = "x".join(map(str, shape))
            raise UserError(
                f"{source}: {value.name} would hold {text} values, the most is {MOST_VALUES:,} (1 GiB)",
                "export the model for a smaller input",
            )


#: Per-channel DequantizeLinear and Squeeze/Split with tensor operands exist from here on.
LOWEST_WORKING_OPSET = 13


def read_onnx(path: str | Path, translate: Translate | None = None) -> tuple[onnx.ModelProto, str]:
    """Read and check a model file.

    Args:
        path: ``.onnx`` (external data beside it is read too), or ``.pt``, which is exported by the user's own
            installed ``yolo`` command.
        translate: a vendor's form into ONNX, before the file is checked.

    Returns:
        The model with all weights in memory, and the SHA-256 of the file.

    Raises:
        UserError: missing, truncated, no ONNX file, or what :func:`narrowcast.graph.files.check_file` refuses.
    """
    file = Path(path)
    if not file.exists():
        raise UserError(f"{file} does not exist", "check the path")
    if file.is_dir():
        raise UserError(f"{file} is a folder, not a model", "give the .onnx file")
    if file.suffix == ".pt":
        with tempfile.TemporaryDirectory() as folder:
            return read_onnx(_export_checkpoint(file, Path(folder)), translate)
    if file.suffix != ".onnx":
        raise UserError(f"{file} has the suffix {file.suffix or '(none)'}", "give an .onnx or .pt file")
    with reading(file, "export it again", "is truncated or not an ONNX file"):
        data = file.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        model = onnx.load_from_string(data)
        del data  # as much as the model
    with reading(f"the weights of {file} in other files", "keep them beside the model", "cannot be read"):
        onnx.load_external_data_for_model(model, str(file.absolute().parent))
    model = model if translate is None else translate(model, file.name)
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
        found = shape_inference.infer_shapes(bare, data_prop=True).graph
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
        return version_converter.convert_version(with_data(model), LOWEST_WORKING_OPSET)


_OTHER_FLOATS = (TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
#: Attributes that name the type of a node's result.
_TYPE_ATTRIBUTES = ("to", "dtype")
_NUMBERS = ("value_float", "value_floats", "value_int", "value_ints")


def only_float32(model: onnx.ModelProto) -> None:
    """Make constants, casts and known types of other floats float32, in place, subgraphs included."""
    for graph in _graphs(model.graph):
        for tensor in graph.initializer:
            _narrow(tensor)
        for node in graph.node:
            _narrow_node(node)
        for value in (*graph.value_info, *graph.output):
            if value.type.tensor_type.elem_type in _OTHER_FLOATS:
                value.type.tensor_type.elem_type = TensorProto.FLOAT


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _narrow(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _OTHER_FLOATS:
        array = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _narrow_node(node: onnx.NodeProto) -> None:
    for attribute in list(node.attribute):
        if attribute.type == onnx.AttributeProto.TENSOR:
            _narrow(attribute.t)
        elif attribute.name in _TYPE_ATTRIBUTES and attribute.i in _OTHER_FLOATS:
            attribute.i = TensorProto.FLOAT
        elif node.op_type == Op.CONSTANT and attribute.name in _NUMBERS:
            kind: Any = np.float32 if "float" in attribute.name else np.int64
            array = np.asarray(helper.get_attribute_value(attribute), kind)
            node.attribute.remove(attribute)
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(array)))
