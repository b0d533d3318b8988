"""Preprocessing that nobody gave is said, with how to say otherwise, and only then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import yaml
from onnx import helper

from builders import model, save, silu_net, weights
from narrowcast.bundle import open_bundle
from narrowcast.cli.check import check
from narrowcast.cli.quantize import quantize as quantize_command
from narrowcast.graph import load
from narrowcast.vision import Preprocess

ALL = ("color", "mean", "scale", "resize")


def classifier(**metadata: str) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["y"], name="flat"),
    ]
    return model(nodes, [weights(rng, "w", 5, 3, 1, 1)], metadata=metadata)


@pytest.mark.parametrize(
    ("proto", "assumed", "words"),
    [
        (classifier(), ALL, "RGB, no mean, pixels / 255, center-crop"),
        (silu_net(), ALL, "RGB, no mean, pixels / 255, letterbox"),
        (classifier(author="Ultralytics", task="classify"), (), ""),
        (classifier(task="classify", imgsz="[16, 16]"), (), ""),
        (classifier(preprocess='{"mean": [1, 1, 1], "std": [2, 2, 2]}'), (), ""),
    ],
)
def test_what_a_file_does_not_say(proto: onnx.ModelProto, assumed: tuple[str, ...], words: str, tmp_path: Path) -> None:
    loaded = load(save(proto, tmp_path / "m.onnx"))
    assert loaded.assumed == assumed
    assert words in loaded.assumption and bool(words) == loaded.assumption.startswith("WARNING: preprocessing")
    assert not load(tmp_path / "m.onnx", preprocess=Preprocess(16, 16)).assumption
    spec = loaded.preprocess
    assert not loaded.prepared_as(spec, ALL).assumption
    if assumed:
        assert "--scale" in loaded.prepared_as(spec, ("color", "resize")).assumption
        assert "WARNING" not in loaded.prepared_as(spec, ("mean", "scale")).assumption


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cal").mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        pixels = rng.integers(0, 256, (3, 16, 16)).astype(np.uint8)
        pixels.tofile(tmp_path / "cal" / f"{index}.rgb")
        (tmp_path / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), pixels.transpose(1, 2, 0))
    save(silu_net(), tmp_path / "m.onnx")
    return tmp_path


def said(folder: Path, capsys: pytest.CaptureFixture[str], config: Path | None = None, **options: Any) -> Any:
    quantize_command(config=config, effort="fast", **options, force=True, json=True, quiet=True)
    return json.loads(capsys.readouterr().out)


def test_quantize_says_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = {"model": folder / "m.onnx", "images": folder / "images", "out": folder / "b"}
    found = said(folder, capsys, **common)
    assert found["assumed"] == list(ALL) == open_bundle(folder / "b").manifest.assumed
    assert any(note.startswith("WARNING: preprocessing: m.onnx does not say") for note in found["notes"])
    given = said(folder, capsys, **common, mean="0", scale="0.01", color="bgr", resize="stretch")
    assert given["assumed"] == [] and "WARNING" not in json.dumps(given)
    file = folder / "n.yaml"
    file.write_text(yaml.safe_dump({"mean": [0.0], "scale": [1 / 255], "color": "rgb", "resize": "letterbox"}))
    assert "WARNING" not in json.dumps(said(folder, capsys, file, **common))  # even if it is what would be assumed


def test_an_hb_mapper_file_says_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = {
        "model_parameters": {"onnx_model": "m.onnx", "march": "bayes-e", "working_dir": "out"},
        "input_parameters": {
            "input_type_train": "rgb", "input_layout_train": "NCHW", "input_type_rt": "nv12",
            "norm_type": "data_scale", "scale_value": 0.01,
        },
        "calibration_parameters": {"cal_data_dir": "cal", "cal_data_type": "uint8", "calibration_type": "max"},
        "compiler_parameters": {"compile_mode": "latency", "optimize_level": "O3"},
    }  # fmt: skip
    file = folder / "hb.yaml"
    file.write_text(yaml.safe_dump(groups))
    assert said(folder, capsys, file)["assumed"] == []


def test_check_says_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(folder / "m.onnx", "bayes-e")
    assert "WARNING: preprocessing: m.onnx does not say how images become its input" in capsys.readouterr().out
