"""Valid files of every kind, small enough that a command on them takes a blink."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["HB_MAPPER", "SETTINGS", "TARGET", "coco_document", "make_seeds", "silu_net"]

SIDE = 16
SETTINGS = {
    "model": "m.onnx", "images": "img", "out": "made", "target": "esp32p4", "method": "minmax", "effort": "fast",
    "limit": 2, "int16": ["conv1"], "mean": [0, 0, 0], "scale": 0.0039, "threads": 1, "size": "16x16",
}  # fmt: skip
TARGET = {"extends": "esp32p4", "name": "mine", "title": "a chip", "bias": {"bits": 24}, "units": ["NPU"]}
HB_MAPPER = {
    "model_parameters": {
        "onnx_model": "m.onnx", "march": "bayes-e", "working_dir": "made", "output_model_file_prefix": "m",
        "node_info": {"conv1": {"ON": "BPU", "OutputType": "int16"}},
    },
    "input_parameters": {
        "input_name": "x", "input_type_rt": "nv12", "input_type_train": "rgb", "input_layout_train": "NCHW",
        "norm_type": "data_mean_and_scale", "mean_value": "1 2 3", "scale_value": "0.01", "input_shape": "1x3x16x16",
    },
    "calibration_parameters": {"cal_data_dir": "img", "calibration_type": "max", "preprocess_on": True},
    "compiler_parameters": {"compile_mode": "latency", "optimize_level": "O3"},
}  # fmt: skip


def _weights(rng: np.random.Generator, name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), name)


def _model(
    nodes: Sequence[onnx.NodeProto], outputs: Sequence[tuple[str, Sequence[int]]],
    constants: Sequence[onnx.TensorProto], metadata: dict[str, str],
) -> onnx.ModelProto:  # fmt: skip
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in outputs]
    graph = helper.make_graph(list(nodes), "seed", [image], ends, list(constants))
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(proto, metadata)
    return proto


def silu_net() -> onnx.ModelProto:
    """Convolutions, an activation, a sum, a pool, a Concat, with the metadata that exporters write."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], name="conv0", pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["c0"], ["s0"], name="sigmoid0"),
        helper.make_node("Mul", ["c0", "s0"], ["a0"], name="silu0"),
        helper.make_node("Conv", ["a0", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["a0", "c1"], ["sum"], name="add"),
        helper.make_node("MaxPool", ["sum"], ["pool"], name="pool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Concat", ["pool", "c1"], ["cat"], name="concat", axis=1),
        helper.make_node("Reshape", ["cat", "shape"], ["flat"], name="reshape"),
        helper.make_node("Transpose", ["flat"], ["y"], name="transpose", perm=[0, 2, 1]),
    ]
    constants = [
        _weights(rng, "w0", 4, 3, 3, 3), _weights(rng, "b0", 4),
        _weights(rng, "w1", 4, 4, 3, 3), _weights(rng, "b1", 4),
        numpy_helper.from_array(np.array([1, 8, -1], np.int64), "shape"),
    ]  # fmt: skip
    metadata = {"names": "{0: 'a', 1: 'b'}", "kpt_shape": "[17, 3]", "imgsz": "[16, 16]", "task": "pose",
                "preprocess": json.dumps({"mean": [1, 2, 3], "std": [4, 5, 6], "resize": 20, "crop": 16})}  # fmt: skip
    return _model(nodes, [("y", (1, SIDE * SIDE, 8))], constants, metadata)


def pose_net() -> onnx.ModelProto:
    """The raw outputs of a pose head of one stride, as ``narrowcast prepare`` leaves them."""
    rng = np.random.default_rng(1)
    head = {"task": "pose", "strides": [8], "num_classes": 1, "reg_max": 1, "keypoint_shape": [2, 3], "num_masks": 0}
    channels = {"box_s8": 4, "cls_s8": 1, "kpt_s8": 6}
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c"], name="stem", strides=[8, 8]),
             helper.make_node("Relu", ["c"], ["r"], name="relu")]  # fmt: skip
    constants = [_weights(rng, "w", 4, 3, 8, 8), _weights(rng, "b", 4)]
    for name, count in channels.items():
        nodes.append(helper.make_node("Conv", ["r", f"{name}_w"], [name], name=f"{name}_conv"))
        constants.append(_weights(rng, f"{name}_w", count, 4, 1, 1))
    outputs = [(name, (1, count, 2, 2)) for name, count in channels.items()]
    return _model(nodes, outputs, constants, {"narrowcast.head": json.dumps(head), "names": "{0: 'person'}"})


def class_net() -> onnx.ModelProto:
    """A classifier of three classes."""
    rng = np.random.default_rng(2)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv"),
        helper.make_node("GlobalAveragePool", ["c"], ["g"], name="mean"),
        helper.make_node("Flatten", ["g"], ["y"], name="flatten"),
    ]
    return _model(nodes, [("y", (1, 3))], [_weights(rng, "w", 3, 3, 3, 3), _weights(rng, "b", 3)], {"task": "classify"})


def coco_document() -> dict[str, Any]:
    """Annotations of two images with boxes, keypoints, a polygon and run lengths."""
    common = {"category_id": 1, "iscrowd": 0, "keypoints": [2, 2, 2, 9, 9, 1], "num_keypoints": 2}
    polygon, runs = [[1, 1, 9, 1, 9, 9]], {"counts": [100, 56, 100], "size": [SIDE, SIDE]}
    return {
        "info": {"year": 2026},
        "images": [{"id": i, "file_name": f"{i}.png", "width": SIDE, "height": SIDE} for i in range(2)],
        "annotations": [
            {"id": 1, "image_id": 0, "bbox": [1, 1, 10, 12], "area": 120.0, "segmentation": polygon, **common},
            {"id": 2, "image_id": 1, "bbox": [2.5, 3, 8, 8], "area": 64, "segmentation": runs, **common},
        ],
        "categories": [{"id": 1, "name": "person", "keypoints": ["left", "right"], "skeleton": [[1, 2]]}],
    }  # fmt: skip


def make_seeds(folder: Path) -> None:
    """Write one valid file of every kind: models, bundles, images, arrays, annotations, a report, an .espdl file."""
    from narrowcast.bundle import quantize
    from narrowcast.calibrate import images
    from narrowcast.chips.esp.codec import encode_espdl
    from narrowcast.chips.esp.model import build_espdl
    from narrowcast.graph import load

    (folder / "img").mkdir(parents=True)
    for index in range(3):
        picture = np.random.default_rng(index).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
        cv2.imwrite(str(folder / "img" / f"{index}.png"), picture)
        cv2.imwrite(str(folder / f"{index}.jpg"), picture)
    np.save(folder / "x.npy", np.random.default_rng(0).random((2, 3, SIDE, SIDE), np.float32))
    (folder / "raw").mkdir()
    np.random.default_rng(0).random((3, SIDE, SIDE), np.float32).tofile(folder / "raw" / "0.bin")
    (folder / "coco.json").write_text(json.dumps(coco_document()))
    (folder / "labels.txt").write_text("0.png 0\n1.png 1\n2.png,2\n")
    metrics = {"family": "box", "values": {"AP": 0.5}, "interval": [0.4, 0.6], "retention": 0.9,
               "retention_interval": [0.8, 1.0]}  # fmt: skip
    row = {"name": "float", "metrics": [metrics], "images_per_second": 3.0, "found": 4}
    (folder / "evaluation.json").write_text(json.dumps({"rows": [row], "images": 3, "protocol": {}, "notes": []}))
    nets = {"m": (silu_net(), "esp32p4"), "pose": (pose_net(), "esp32p4"), "cls": (class_net(), "onnx")}
    for name, (net, target) in nets.items():
        onnx.save(net, str(folder / f"{name}.onnx"))
        model = load(folder / f"{name}.onnx")
        found = images(folder / "img", model.preprocess)
        bundle = quantize(model, found, target, out=folder / name, method="minmax", effort="fast", threads=1)
        if name == "m":
            (folder / "m.espdl").write_bytes(encode_espdl(build_espdl(bundle.prepared.ir, bundle.plan, bundle.target)))
    split = onnx.load(str(folder / "m.onnx"))
    (folder / "external").mkdir()
    file = str(folder / "external" / "m.onnx")
    onnx.save(split, file, save_as_external_data=True, location="m.data", size_threshold=0)
