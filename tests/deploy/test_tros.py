"""Settings for the robot software: they fit what its parsers read."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from rdk_bundles import small_bundle

from builders import model, weights
from narrowcast.base.errors import UserError
from narrowcast.bundle import Bundle
from narrowcast.bundle.kits import deploy
from narrowcast.cli.deploy import deploy as command
from narrowcast.plan import Pins
from narrowcast.tasks import HeadSpec
from narrowcast.vision import Preprocess


def raw_head(masks: int, prototype_stride: int = 4) -> onnx.ModelProto:
    """One stride of a head with 2 classes, 4 bins a side and, where asked for, masks with prototypes."""
    rng = np.random.default_rng(0)
    node = helper.make_node
    stride, step = prototype_stride, 8 // prototype_stride
    nodes = [
        node("Conv", ["x", "w0"], ["c0"], name="stem", strides=[stride] * 2, pads=[1] * 4),
        node("Sigmoid", ["c0"], ["s0"], name="gate"),
        node("Mul", ["c0", "s0"], ["proto" if masks else "p"], name="proto_act"),
        node(
            "MaxPool", ["proto" if masks else "p"], ["small"], name="pool", kernel_shape=[step] * 2, strides=[step] * 2
        ),
        node("Conv", ["small", "w1"], ["box_s8"], name="box"),
        node("Conv", ["small", "w2"], ["cls_s8"], name="cls"),
    ]  # fmt: skip
    constants = [weights(rng, "w0", 4, 3, 3, 3), weights(rng, "w1", 16, 4, 1, 1), weights(rng, "w2", 2, 4, 1, 1)]
    outputs = ["box_s8", "cls_s8"]
    if masks:
        nodes.append(node("Conv", ["small", "w3"], ["mask_s8"], name="mask"))
        constants.append(weights(rng, "w3", masks, 4, 1, 1))
        outputs += ["mask_s8", "proto"]
    return model(nodes, constants, shape=(1, 3, 32, 32), outputs=outputs)


def bundle_for(task: str, folder: Path, pins: Pins | None = None, prototype_stride: int = 4) -> Bundle:
    masks = 4 if task == "segment" else 0
    made = small_bundle(raw_head(masks, prototype_stride), folder, Preprocess(32, 32, camera="nv12-full"), pins)
    head = HeadSpec(task, (8,), 2, 4, None, masks)
    return Bundle(made.path, replace(made.manifest, task=task, head=head, classes=("cat", "two\nlines")))


def test_detection(tmp_path: Path) -> None:
    bundle = bundle_for("detect", tmp_path)
    made = deploy(bundle, "tros", tmp_path / "tros")
    config = json.loads((tmp_path / "tros/workconfig.json").read_text())
    assert config == {
        "model_file": "net_bayese_32x32_nv12.bin", "dnn_Parser": "yolov8", "model_output_count": 2, "reg_max": 4,
        "class_num": 2, "strides": [8], "score_threshold": 0.25, "nms_threshold": 0.7, "nms_top_k": 300,
        "cls_names_list": "config/classes.list",
    }  # fmt: skip
    assert len(config["strides"]) * 2 == config["model_output_count"]  # the parser checks this
    assert (tmp_path / "tros/classes.list").read_text() == "cat\ntwo lines\n"  # one line a class
    assert any("not board/model.bin" in step for step in made.steps)  # the parser reads float


def test_segmentation_needs_wide_prototypes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="as int16, they leave as int8: quantize again with --int16 proto_act"):
        deploy(bundle_for("segment", tmp_path), "tros", tmp_path / "tros")
    assert not (tmp_path / "tros").exists()


def test_segmentation(tmp_path: Path) -> None:
    bundle = bundle_for("segment", tmp_path, Pins({"proto_act": "int16"}))
    made = deploy(bundle, "tros", tmp_path / "tros")
    assert made.files == ("classes.list", "modify.sh", "workconfig.json")
    config = json.loads((tmp_path / "tros/workconfig.json").read_text())
    assert config["model_output_count"] == 3 * len(config["strides"]) + 1  # the parser checks this
    assert config["num_mask"] == 4
    assert config["model_file"].endswith("_modified.bin")
    script = tmp_path / "tros/modify.sh"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    removed = [word for word in text.split() if word.endswith("_HzDequantize")]
    # classes stay float; prototypes are requantized, so they have one scale
    assert removed == ["box_s8_raw_HzDequantize", "mask_s8_raw_HzDequantize", "proto_HzDequantize"]
    assert "exit 1" in text


def test_prototypes_of_another_size(tmp_path: Path) -> None:
    bundle = bundle_for("segment", tmp_path, Pins({"proto_act": "int16"}), prototype_stride=2)
    with pytest.raises(UserError, match="prototypes of 8x8, the model's are 16x16"):
        deploy(bundle, "tros", tmp_path / "tros")


def run(bundle: Path, kit: str | None, out: Path | None, **options: object) -> None:
    values = {"images": None, "limit": None, "test_vectors": 0, "runtime": None, "force": False, "json": False}
    command(bundle, kit, out, **{**values, "quiet": True, **options})  # type: ignore[arg-type]


def test_tros_for_a_classifier(rdk_classify: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tros"
    run(rdk_classify.path, "tros", out, json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed["kit"] == "tros"
    assert printed["files"] == ["classes.list", "workconfig.json"]
    config = json.loads((out / "workconfig.json").read_text())
    assert config["dnn_Parser"] == "classification"
    assert config["model_output_count"] == 1
    names = (out / "classes.list").read_text().splitlines()
    assert names == list(rdk_classify.manifest.classes)


def test_tros_has_no_parser_for_pose(rdk_pose: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no parser for pose models: it has parsers for detect, segment, classify"):
        deploy(rdk_pose, "tros", tmp_path / "tros")
