"""Bundles with near-dead channels, and bundles whose plan is wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from onnx import helper

from builders import constant, model, save, weights
from narrowcast.base.errors import UserError
from narrowcast.bundle import Bundle, modify, open_bundle, quantize
from narrowcast.bundle.kits import deploy
from narrowcast.calibrate import images
from narrowcast.cli.verify import verify
from narrowcast.graph import Model, load
from narrowcast.plan import Pins


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Conv with dead channels, Relu, depthwise Conv, Conv; biases and one weight are shared."""
    rng = np.random.default_rng(0)
    dead = rng.normal(0, 0.3, (8, 3, 3, 3)) * np.reshape([1, 1, 1, 1, 0, 1e-12, 1e-9, 1e-4], (-1, 1, 1, 1))
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], "conv0", pads=[1] * 4),
        helper.make_node("Relu", ["c0"], ["r0"], "relu0"),
        helper.make_node("Conv", ["r0", "w1", "b0"], ["c1"], "conv1", group=8),
        helper.make_node("Conv", ["c1", "w2", "b2"], ["y"], "conv2"),
        helper.make_node("Conv", ["r0", "w2", "b2"], ["z"], "conv3"),
    ]
    constants = [
        constant("w0", dead.astype(np.float32)), constant("b0", np.float32([0.1, -0.2, 0.3, 0, 0.7, 0.7, 1e-3, -0.7])),
        weights(rng, "w1", 8, 1, 3, 3), weights(rng, "w2", 4, 8, 1, 1), constant("b2", np.float32([2, -1, 3, 1.5])),
    ]  # fmt: skip
    proto = model(nodes, constants, shape=(1, 3, 12, 12), outputs=("y", "z"))
    return load(save(proto, tmp_path_factory.mktemp("net") / "m.onnx"), keep_head=True)


def some(net: Model, count: int = 10) -> Any:
    return images(np.random.default_rng(1).random((count, 3, 12, 12)).astype(np.float32), net.preprocess)


@pytest.fixture(scope="module")
def bundle(net: Model, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return quantize(net, some(net), "esp32p4", out=tmp_path_factory.mktemp("b") / "b", method="minmax", effort="fast")


@pytest.mark.parametrize("target", ["esp32p4", "esp32s3", "bayes-e", "onnx"])
@pytest.mark.parametrize("wider", [False, True])
def test_improved_plans_keep_the_rules(net: Model, target: str, wider: bool, tmp_path: Path) -> None:
    pins = Pins({"conv1": "int16"}) if wider else None
    made = quantize(net, some(net), target, out=tmp_path / "b", pins=pins, effort="standard")
    assert made.violations == []
    assert min(row["sqnr_db"] for row in made.manifest.comparison) > 30
    assert not [note for note in made.manifest.notes if "exceed 32 bits" in note or "saturate" in note]
    verify(made.path, limit=1, json=True)


def edited(bundle: Bundle, folder: Path, change: Any) -> Bundle:
    """A copy with another plan, as if it had been made so."""
    shutil.copytree(bundle.path, folder)
    document = json.loads((folder / "plan.json").read_text())
    change(document)
    (folder / "plan.json").write_text(json.dumps(document))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["plan.json"] = hashlib.sha256((folder / "plan.json").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return open_bundle(folder)


def last_wins(document: dict[str, Any]) -> None:
    """A bias with the scale of another reader, as one encoding for each name made it."""
    entry = document["tensors"]["conv3.operand2"]
    entry["scale"] = [4 * scale for scale in entry["scale"]]


def by_name(document: dict[str, Any]) -> None:
    """The names of a plan from before every operand had a constant of its own."""
    document["tensors"]["b2"] = document["tensors"].pop("conv2.operand2")
    del document["tensors"]["conv3.operand2"]


@pytest.mark.parametrize(
    ("change", "words"),
    [(last_wins, "conv3: the scale of its bias is"), (by_name, "b2 has an encoding, but no tensor")],
)
def test_a_wrong_plan_does_not_pass(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, words: str
) -> None:
    wrong = edited(bundle, tmp_path / "b", change)
    with pytest.raises(typer.Exit) as stopped:
        verify(wrong.path, limit=1, quiet=True)
    assert stopped.value.exit_code == 1
    assert words in " ".join(capsys.readouterr().out.split())
    for step in (
        lambda: wrong.network,
        lambda: deploy(wrong, out=tmp_path / "f.espdl"),
        lambda: modify(wrong, out=tmp_path / "m", remove=["Quantize"]),
    ):
        with pytest.raises(UserError, match="plan"):
            step()
    assert not (tmp_path / "f.espdl").exists() and not (tmp_path / "m").exists()


def test_a_plan_edited_by_hand_is_named_too(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "b")
    path = tmp_path / "b" / "plan.json"
    document = json.loads(path.read_text())
    document["tensors"]["r0"]["scale"] *= 4
    path.write_text(json.dumps(document))
    assert any(line.startswith("conv1") for line in open_bundle(tmp_path / "b").violations)
    with pytest.raises(typer.Exit):
        verify(tmp_path / "b", limit=1, json=True)
