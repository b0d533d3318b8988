"""Bundles with corrected weights: recorded, exact, repeatable, complete."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest

from builders import save, silu_net
from narrowcast.base.errors import UserError
from narrowcast.bundle import Bundle, open_bundle, quantize
from narrowcast.bundle.kits import deploy
from narrowcast.calibrate import images
from narrowcast.chips import load_target
from narrowcast.chips.esp.codec import read_espdl
from narrowcast.chips.esp.kit import parser_names
from narrowcast.engine.verify import verify
from narrowcast.graph import Model, Runner, load
from narrowcast.zoo import sample


@pytest.fixture(scope="module")
def pose(pose_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    found = images(sample("pose").calibration, pose_model.preprocess, limit=12)
    return quantize(
        pose_model, found, "esp32p4", out=tmp_path_factory.mktemp("bundle") / "pose", method="lp", output_factors=True
    )


def test_steps_are_recorded_and_never_make_it_worse(pose: Bundle) -> None:
    record = pose.manifest.calibration
    assert record["effort"] == "standard" and set(record["task_loss"]) == {"lp"}
    losses = [record["steps"][0]["loss_before"]]
    for step in record["steps"]:
        assert step["loss_before"] == losses[-1] and step["kept"] == (step["loss_after"] < step["loss_before"])
        losses.append(step["loss_after"] if step["kept"] else step["loss_before"])
    assert losses[-1] < losses[0]


def test_output_factors_reach_the_manifest_and_both_graphs(pose: Bundle) -> None:
    assert pose.factors and "prepared.onnx" in pose.manifest.files
    x = next(iter(images(sample("pose").validation, pose.manifest.preprocess)))
    floating = Runner(pose.path / "float.onnx").run(x)
    prepared = Runner(pose.path / "prepared.onnx").run(x)
    qdq, integers = pose.engine("qdq").run(x), pose.engine("integer").run(x)
    encodings = {out.name: out for out in pose.manifest.outputs}
    for name, factors in pose.factors.items():
        wide = np.reshape(factors, (1, -1, 1, 1))
        scale = np.reshape(encodings[name].scale, (1, -1, 1, 1))
        assert integers[name].dtype == np.int8 and encodings[name].axis == 1
        # corrections of weights change the float graph too, though little
        difference = np.abs(prepared[name] / wide - floating[name]).mean()
        assert difference < 0.2 * np.abs(floating[name]).mean()
        assert np.abs(qdq[name] - integers[name] * scale).mean() < 2 * scale.max()


def test_a_file_with_output_factors_says_so(pose: Bundle, tmp_path: Path) -> None:
    assert any("scale a channel" in note for note in pose.manifest.notes)
    made = deploy(pose, "espdl", tmp_path / "m.espdl")
    assert any("divides by" in note for note in made.notes)
    told, names = json.loads(read_espdl(made.path).metadata["output_factors"]), parser_names(pose.manifest.meaning)
    assert set(told) == {names[name] for name in pose.factors}
    record = {key: value for key, value in pose.manifest.calibration.items() if key != "output_factors"}
    older = Bundle(pose.path, replace(pose.manifest, calibration=record))
    with pytest.raises(UserError, match="carry factors"):
        deploy(older, "espdl", tmp_path / "n.espdl")


def test_the_integers_are_exact(pose: Bundle) -> None:
    again = open_bundle(pose.path)
    x = next(iter(images(sample("pose").validation, pose.manifest.preprocess)))
    rows = verify(again.prepared.ir, again.plan, load_target("esp32p4"), again.integer_graph, [x])
    assert rows and not sum(row.differing for row in rows)
    onnx.checker.check_model(str(pose.path / "prepared.onnx"), full_check=True)
    onnx.checker.check_model(str(pose.path / "qdq.onnx"), full_check=True)


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    net = load(save(silu_net(), tmp_path / "m.onnx"))
    batch = images(np.random.default_rng(0).normal(0, 1, (16, 3, 16, 16)).astype(np.float32), net.preprocess)
    first, second = (quantize(net, batch, "bayes-e", out=tmp_path / name, effort="max") for name in "ab")
    assert first.manifest.calibration["steps"]
    for file in first.path.iterdir():
        assert file.read_bytes() == (second.path / file.name).read_bytes(), file.name


def test_output_factors_are_asked_for_where_readers_know_one_scale(tmp_path: Path) -> None:
    net = load(save(silu_net(), tmp_path / "m.onnx"))
    batch = images(np.random.default_rng(0).normal(0, 1, (16, 3, 16, 16)).astype(np.float32), net.preprocess)
    for target, wish, wanted in (("esp32p4", None, False), ("esp32p4", True, True), ("onnx-symmetric", None, True)):
        bundle = quantize(net, batch, target, out=tmp_path / f"{target}-{wish}", method="mse", output_factors=wish)
        record = bundle.manifest.calibration
        assert record["output_factors"] is wanted
        assert wanted or "output factors" not in [step["step"] for step in record["steps"]]


def test_few_images_are_not_corrected_from(tmp_path: Path) -> None:
    net = load(save(silu_net(), tmp_path / "m.onnx"))
    batch = images(np.random.default_rng(0).normal(0, 1, (4, 3, 16, 16)).astype(np.float32), net.preprocess)
    bundle = quantize(net, batch, "esp32p4", out=tmp_path / "b")
    assert "prepared.onnx" not in bundle.manifest.files and bundle.prepared is bundle.model and bundle.factors == {}
    assert any("nothing is corrected" in note for note in bundle.manifest.notes)


def test_unknown_effort(tmp_path: Path) -> None:
    net = load(save(silu_net(), tmp_path / "m.onnx"))
    batch = images(np.zeros((4, 3, 16, 16), np.float32), net.preprocess)
    with pytest.raises(UserError, match="effort"):
        quantize(net, batch, out=tmp_path / "b", effort="heroic")


def test_every_step_is_reported_on_images_that_decide_nothing(pose: Bundle) -> None:
    record = pose.manifest.calibration
    count = record["step_images"]
    assert count["teach"] + count["judge"] + count["report"] == 12  # 12 images, each in one role
    held = [(step["held_before"], step["held_after"], step["kept"]) for step in record["steps"]]
    for (_, after, kept), (before, _, _) in pairwise(held):
        assert not kept or before == after
