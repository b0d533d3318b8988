"""The four intermediate models of hb_mapper, under the names that people know.

    PREFIX_original_float_model.onnx    the user's graph behind the board's preprocessing
    PREFIX_optimized_float_model.onnx   the prepared graph behind it
    PREFIX_calibrated_model.onnx        the same with QuantizeLinear and DequantizeLinear (the vendor: HzCalibration)
    PREFIX_quantized_model.onnx         exact integers

All four take what the board feeds: int8 pixels minus 128, in the colour format of the camera, in the layout of the
training. The vendor's quantized model is made of its own operators and NHWC for NV12; ours runs in onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from narrowcast.base.errors import UserError
from narrowcast.base.progress import phase
from narrowcast.base.writing import check_file, write_file
from narrowcast.bundle.contents import proto_bytes
from narrowcast.bundle.manifest import FLOAT_FILE, INTEGER_FILE, QDQ_FILE
from narrowcast.bundle.store import Bundle
from narrowcast.graph.model import Model
from narrowcast.ops.net import Op, copied
from narrowcast.vision.preprocess import Preprocess

__all__ = ["NAMES", "board_preprocess", "save_intermediates", "with_board_input"]

#: Stage to the end of its file name.
NAMES = {
    "original": "original_float_model",
    "optimized": "optimized_float_model",
    "calibrated": "calibrated_model",
    "quantized": "quantized_model",
}
#: Zero of the board's int8 pixels.
OFFSET = 128.0


def board_preprocess(spec: Preprocess) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The board's preprocessing as one 1x1 convolution on int8 pixels (pixel minus 128).

    ``x = ((q + 128) * colour - mean) * scale``; for a camera the colour conversion is BT.601 in its range, without
    rounding and without clipping to 0..255.

    Args:
        spec: of the model; ``camera`` says what the board feeds.

    Returns:
        Weight (C, C, 1, 1) and bias (C,), float32.
    """
    channels = 1 if spec.color == "gray" else 3
    matrix, offset = np.eye(channels), np.full(channels, OFFSET)
    if spec.camera != "rgb" and channels == 3:
        matrix, offset = _from_yuv(spec.camera.removeprefix("nv12-"))
        if spec.color == "bgr":
            matrix, offset = matrix[::-1], offset[::-1]
    scale = np.broadcast_to(np.asarray(spec.scale, np.float64), channels)
    mean = np.broadcast_to(np.asarray(spec.mean, np.float64), channels)
    weight = (matrix * scale[:, None])[:, :, None, None].astype(np.float32)
    return weight, ((offset - mean) * scale).astype(np.float32)


def _from_yuv(levels: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """R, G, B = matrix @ (Y, Cb, Cr minus 128 each) + offset; as :mod:`narrowcast.vision.preprocess` reads a range."""
    from narrowcast.vision.preprocess import RANGES

    start, luma_gain, chroma_gain = RANGES[levels]
    luma = np.array([1 / luma_gain, 0.0, 0.0])
    cb, cr = np.array([0.0, 1 / chroma_gain, 0.0]), np.array([0.0, 0.0, 1 / chroma_gain])
    red, blue = luma + 1.402 * cr, luma + 1.772 * cb
    green = (luma - 0.299 * red - 0.114 * blue) / 0.587
    return np.stack([red, green, blue]), np.full(3, (OFFSET - start) / luma_gain)


def with_board_input(proto: onnx.ModelProto, spec: Preprocess) -> onnx.ModelProto:
    """A copy of a graph that takes the board's int8 pixels, through a node named as the vendor names it.

    Args:
        proto: a graph with one float32 image input of static shape; its input's name is kept for the new input.
        spec: of the model.
    """
    copy = copied(proto)
    graph = copy.graph
    constants = {tensor.name for tensor in graph.initializer}
    image = next(value for value in graph.input if value.name not in constants)
    name, inner = image.name, f"{image.name}_preprocessed"
    for node in graph.node:
        node.input[:] = [inner if entry == name else entry for entry in node.input]
    weight, bias = board_preprocess(spec)
    stem = f"HZ_PREPROCESS_FOR_{name}"
    graph.initializer.append(numpy_helper.from_array(weight, f"{stem}_weight"))
    graph.initializer.append(numpy_helper.from_array(bias, f"{stem}_bias"))
    planes, result = f"{stem}_float", inner
    nodes = [helper.make_node(Op.CAST, [name], [planes], name=f"{stem}_cast", to=TensorProto.FLOAT)]
    if spec.layout == "NHWC":
        nodes.append(helper.make_node(Op.TRANSPOSE, [planes], [f"{stem}_nchw"], name=f"{stem}_nchw", perm=[0, 3, 1, 2]))
        planes, result = f"{stem}_nchw", f"{stem}_result"
    nodes.append(helper.make_node(Op.CONV, [planes, f"{stem}_weight", f"{stem}_bias"], [result], name=stem))
    if spec.layout == "NHWC":
        nodes.append(helper.make_node(Op.TRANSPOSE, [result], [inner], name=f"{stem}_nhwc", perm=[0, 2, 3, 1]))
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *kept])
    image.type.tensor_type.elem_type = TensorProto.INT8
    return copy


@phase("write")
def save_intermediates(
    model: Model, bundle: Bundle, out: str | Path, prefix: str, *, force: bool = False
) -> list[Path]:
    """Write the four models.

    Args:
        model: that was quantized.
        bundle: what became of it.
        out: folder; made where missing.
        prefix: of the file names.
        force: replace existing files.

    Returns:
        The files; without the quantized one where the bundle holds no exact integers.

    Raises:
        UserError: a file exists, or the folder cannot be written.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file", "choose another --save-intermediates")
    spec = bundle.manifest.preprocess
    graphs = {"original": model.original}
    for stage, file in (("optimized", FLOAT_FILE), ("calibrated", QDQ_FILE), ("quantized", INTEGER_FILE)):
        if file in bundle.manifest.files:
            graphs[stage] = bundle.graph(file)
    targets = {stage: folder / f"{prefix}_{NAMES[stage]}.onnx" for stage in graphs}
    for path in targets.values():
        check_file(path, force, "--save-intermediates")
    for stage, graph in graphs.items():
        data = proto_bytes(with_board_input(graph, spec))
        write_file(targets[stage], data, force=True, option="--save-intermediates")
    return list(targets.values())
