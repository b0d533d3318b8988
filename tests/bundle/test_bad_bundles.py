"""Bundles that somebody damaged or made up."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import builders
from narrowcast.base.errors import UserError
from narrowcast.bundle import Bundle, open_bundle, quantize
from narrowcast.bundle.modify import modify
from narrowcast.calibrate import images
from narrowcast.graph import load


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("made")
    model = load(builders.save(builders.silu_net(), folder / "m.onnx"))
    batch = np.random.default_rng(0).random((3, 3, 16, 16), np.float32)
    return quantize(model, images(batch, model.preprocess), "esp32p4", out=folder / "b", method="minmax", effort="fast")


@pytest.fixture
def copy(made: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.path, tmp_path / "inner" / "b"))


def change(path: Path, key: str, value: Any) -> None:
    data = json.loads(path.read_text())
    *groups, last = key.split("/")
    entry = data
    for group in groups:
        entry = entry[int(group) if isinstance(entry, list) else group]
    if value is None:
        del entry[last]
    else:
        entry[last] = value
    path.write_text(json.dumps(data))


def known(folder: Path, name: str) -> None:
    """Let the manifest know of a change."""
    change(folder / "manifest.json", f"files/{name}", hashlib.sha256((folder / name).read_bytes()).hexdigest())


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("outputs", {"y": 1}, "outputs"),
        ("outputs", [], "no outputs"),
        ("outputs/0/chip_dtype", "int7", "unknown integer type 'int7'"),
        ("outputs/0/scale", -1, "above zero"),
        ("outputs/0/zero_pont", 3, "zero_pont"),
        ("outputs/0/shape", [1, 10**6, 10**6], "has the shape"),
        ("input_encoding/zero_point", None, "input_encoding is damaged .zero_point is missing"),
        ("input_shape", [1, 3, 8, 8], r"the input is \(1, 3, 8, 8\), preprocess gives"),
        ("preprocess/mean", [1, 2], "mean has 2 values"),
        ("preprocess/resize", "fold", "resize is 'fold'"),
        ("calibration/held_back", None, "held_back is missing"),
        ("comparison/0/cosine", "x", "comparison"),
        ("modified/dequantize", ["z"], "modified names z"),
        ("task", "pose ", "the task is 'pose '"),
        ("skeleton", [[0, 1]], "no keypoints"),
        ("unheard", 1, "unheard"),
        ("files", {}, "files does not name float.onnx, nodes.json, plan.json, qdq.onnx"),
        ("head", {"task": "detect", "strides": [8], "num_classes": 1}, "the head's task is 'detect'"),
    ],
)
def test_manifests_are_typed(copy: Path, key: str, value: Any, words: str) -> None:
    change(copy / "manifest.json", key, value)
    with pytest.raises(UserError, match=words):
        open_bundle(copy)


@pytest.mark.parametrize("name", ["../.bashrc", "/etc/passwd", "a/b", "..", "a\0b", ".hidden", "con.txt", "a\\b"])
def test_files_have_plain_names(copy: Path, name: str) -> None:
    outside = copy.parent / ".bashrc"
    outside.write_text("mine")
    data = json.loads((copy / "manifest.json").read_text())
    data["files"][name] = hashlib.sha256(b"mine").hexdigest()
    (copy / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="no plain file name"):
        modify(open_bundle(copy), out=copy.parent.parent / "home" / "made", remove_dequantize=["all"])
    assert not (copy.parent.parent / "home").exists()


@pytest.mark.parametrize(
    ("file", "use"),
    [
        ("nodes.json", lambda bundle: bundle.noise),
        ("target.json", lambda bundle: bundle.target),
        ("float.onnx", lambda bundle: bundle.model),
        ("float.onnx", lambda bundle: bundle.graph("float.onnx")),
        ("qdq.onnx", lambda bundle: bundle.engine("qdq")),
        ("integer.onnx", lambda bundle: bundle.integer_graph),
    ],
)
def test_every_file_is_compared_with_its_hash(copy: Path, file: str, use: Callable[[Bundle], Any]) -> None:
    use(open_bundle(copy))
    whole = (copy / file).read_bytes()
    (copy / file).write_bytes(whole + b" ")
    with pytest.raises(UserError, match=f"{file} was changed"):
        use(open_bundle(copy))
    (copy / file).write_bytes(whole[: len(whole) // 2])
    known(copy, file)
    with pytest.raises(UserError, match=file):
        use(open_bundle(copy))
    (copy / file).unlink()
    with pytest.raises(UserError, match=f"{file} does not exist"):
        use(open_bundle(copy))


def test_a_graph_of_another_bundle(copy: Path) -> None:
    other = builders.save(builders.silu_net(shape=(1, 3, 8, 8)), copy / "qdq.onnx")
    known(copy, other.name)
    with pytest.raises(UserError, match="not those of the manifest"):
        open_bundle(copy).engine("qdq")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("tensors/a0/zero_point", 10**30, "digits"),
        ("tensors/a0/scale", [0.5, 0.5], "needs an axis"),
        ("tensors/a0/axis", 9, "axis"),
        ("tensors/a0/dtype", "int3", "unknown integer type"),
        ("tensors/nobody", {"dtype": "int8", "scale": 1}, "names the tensor nobody"),
        ("nodes/conv0", None, "says nothing of the node conv0"),
        ("nodes/conv9", {"unit": "", "type": "int8"}, "names the node conv9"),
        ("edges/conv0#7", {"dtype": "int8", "scale": 1}, "names the edge conv0#7"),
        ("edges/conv0#²", {"dtype": "int8", "scale": 1}, "names the edge conv0#²"),
    ],
)
def test_plans_of_something_else(copy: Path, key: str, value: Any, words: str) -> None:
    change(copy / "plan.json", key, value)
    with pytest.raises(UserError, match=words):
        _ = open_bundle(copy).plan


def test_an_edited_plan_is_said_and_makes_nothing(copy: Path) -> None:
    assert not open_bundle(copy).plan_edited
    change(copy / "plan.json", "nodes/conv1/type", "int16")
    bundle = open_bundle(copy)
    assert bundle.plan_edited and bundle.plan.nodes["conv1"].type == "int16"
    with pytest.raises(UserError, match="make a bundle of it with quantize --plan"):
        modify(bundle, out=copy.parent / "made", remove_dequantize=["all"])
