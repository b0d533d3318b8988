"""The shipped samples: complete, small, and as accurate as their README says."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from narrowcast.base.errors import UserError
from narrowcast.vision.preprocess import Preprocess, preprocess
from narrowcast.zoo import sample, sample_names
from samples_training.scenes import OBJECT_NAMES, pose_scene

LIMIT = 2_000_000


def session(model: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def test_every_sample_is_complete() -> None:
    assert sample_names() == ("pose", "classify")
    for name in sample_names():
        entry = sample(name)
        assert entry.name == name and entry.model.is_file()
        assert len(list(entry.calibration.glob("*.jpg"))) >= 32
        assert len(list(entry.validation.glob("*.jpg"))) >= 24
    assert sample("pose").annotations is not None and sample("classify").labels is not None


def test_unknown_sample() -> None:
    with pytest.raises(UserError, match="no sample named 'segment'"):
        sample("segment")


def test_samples_are_small() -> None:
    folder = sample("pose").model.parent
    assert sample("pose").model.stat().st_size < LIMIT and sample("classify").model.stat().st_size < LIMIT
    images = sum(file.stat().st_size for file in folder.rglob("*") if file.suffix in {".jpg", ".json", ".txt"})
    assert images < 2_700_000
    assert (folder / "README.md").is_file()


def test_no_image_is_in_both_parts() -> None:
    for name in sample_names():
        entry = sample(name)
        calibration = {file.read_bytes() for file in entry.calibration.iterdir()}
        assert not calibration & {file.read_bytes() for file in entry.validation.iterdir()}


def test_shipped_images_are_what_the_generator_draws() -> None:
    entry = sample("pose")
    for number in (0, 5):
        drawn = pose_scene(2000 + number).image.astype(np.int16)
        shipped = cv2.imread(str(entry.validation / f"{number + 1:04}.jpg"))
        assert shipped.shape == drawn.shape
        assert np.abs(drawn - shipped).mean() < 6  # what JPEG changes


def test_pose_model_looks_like_a_stock_export() -> None:
    model = onnx.load(str(sample("pose").model))
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["task"] == "pose" and metadata["kpt_shape"] == "[17, 3]" and metadata["names"] == "{0: 'person'}"
    assert metadata["license"] == "Apache-2.0"
    operators = {node.op_type for node in model.graph.node}
    assert {"Conv", "Sigmoid", "Mul", "Concat", "Split", "MaxPool", "Resize", "MatMul", "Softmax"} <= operators
    network = session(sample("pose").model)
    assert network.get_inputs()[0].shape == [1, 3, 256, 256]
    assert network.get_outputs()[0].shape == [1, 56, 32**2 + 16**2 + 8**2]


def test_classifier_is_plain() -> None:
    model = onnx.load(str(sample("classify").model))
    assert {node.op_type for node in model.graph.node} - {"Constant"} <= {
        "Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm", "Softmax",
    }  # fmt: skip
    network = session(sample("classify").model)
    assert network.get_inputs()[0].shape == [1, 3, 96, 96]
    assert network.get_outputs()[0].shape == [1, len(OBJECT_NAMES)]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two boxes x, y, width, height."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[:2] + a[2:], b[:2] + b[2:])
    common = np.prod(np.maximum(high - low, 0))
    return float(common / (a[2] * a[3] + b[2] * b[3] - common))


def test_pose_model_finds_people() -> None:
    entry = sample("pose")
    network = session(entry.model)
    assert entry.annotations is not None
    truth = json.loads(entry.annotations.read_text())
    hits = []
    for image in truth["images"][:12]:
        people = [np.array(a["bbox"]) for a in truth["annotations"] if a["image_id"] == image["id"]]
        if not people:
            continue
        tensor, geometry = preprocess(cv2.imread(str(entry.validation / image["file_name"])), Preprocess(256, 256))
        rows = network.run(None, {"images": tensor})[0][0].T
        best = rows[rows[:, 4].argmax()]
        box = np.concatenate([best[:2] - best[2:4] / 2 - (geometry.pad_left, geometry.pad_top), best[2:4]])
        hits.append(best[4] > 0.5 and max(overlap(box / geometry.scale_x, person) for person in people) > 0.5)
    assert len(hits) >= 8 and np.mean(hits) > 0.9


def test_classifier_is_as_good_as_stated() -> None:
    entry = sample("classify")
    network = session(entry.model)
    metadata = json.loads(network.get_modelmeta().custom_metadata_map["preprocess"])
    spec = Preprocess(
        96,
        96,
        resize="center-crop",
        resize_shorter=metadata["resize"],
        mean=tuple(metadata["mean"]),
        scale=tuple(1 / value for value in metadata["std"]),
    )
    assert entry.labels is not None
    lines = [line.split() for line in entry.labels.read_text().splitlines()]
    right = []
    for name, label in lines:
        tensor, _ = preprocess(cv2.imread(str(entry.validation / name)), spec)
        probabilities = network.run(None, {"images": tensor})[0][0]
        assert probabilities.sum() == pytest.approx(1, abs=1e-4)
        right.append(int(probabilities.argmax()) == int(label))
    assert len(right) == 120 and np.mean(right) > 0.88
