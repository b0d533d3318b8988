"""``run``, ``verify``, ``inspect`` of .espdl files and ``config``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from command_line import narrowcast, refused
from narrowcast.base.errors import UserError
from narrowcast.bundle import Bundle, quantize
from narrowcast.calibrate import images
from narrowcast.chips import load_target
from narrowcast.chips.esp.codec import read_espdl
from narrowcast.chips.esp.kit import ESPDL_FILE, deploy_espdl
from narrowcast.chips.esp.model import EspdlRunner
from narrowcast.graph import Model
from narrowcast.zoo import sample

POSE = sample("pose")


def test_verify(pose_bundle: Bundle) -> None:
    run = narrowcast("verify", pose_bundle.path, "--limit", 1, "--json")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["differing"] == 0 and found["total"] > 50_000 and len(found["rows"]) > 40


def test_run_dumps_every_integer_tensor(pose_bundle: Bundle, tmp_path: Path) -> None:
    image = sorted(POSE.validation.iterdir())[0]
    run = narrowcast("run", pose_bundle.path, "--input", image, "--dump-dir", tmp_path / "t", "--json")
    assert run.returncode == 0, run.stderr
    outputs = {row["tensor"]: row for row in json.loads(run.stdout)}
    index = {entry["tensor"]: entry for entry in json.loads((tmp_path / "t" / "index.json").read_text())}
    assert set(outputs) <= set(index) and len(index) > 40
    predictor = pose_bundle.engine("integer")
    tensor = next(iter(images(image, predictor.preprocess)))
    for name, values in predictor.run(tensor).items():
        dumped = np.load(tmp_path / "t" / index[name]["file"])
        assert dumped.dtype == np.int8 and np.array_equal(dumped, values)
        assert outputs[name]["max"] == values.max()
    assert "exists" in refused("run", pose_bundle.path, "--input", image, "--dump-dir", tmp_path / "t")
    assert "only the engine integer" in refused(
        "run", pose_bundle.path, "--engine", "qdq", "--input", image, "--dump-dir", tmp_path / "u"
    )
    assert "does not exist" in refused("run", pose_bundle.path, "--input", tmp_path / "none.npy")


def test_the_bundle_holds_the_chips_file(pose_model: Model, tmp_path: Path) -> None:
    bundle = quantize(
        pose_model,
        images(POSE.calibration, pose_model.preprocess, limit=4),
        "esp32s3",
        out=tmp_path / "b",
        method="mse",
        effort="fast",
    )
    file = bundle.path / ESPDL_FILE
    assert ESPDL_FILE in bundle.manifest.files
    inputs = list(images(POSE.validation, pose_model.preprocess, limit=2))
    deploy_espdl(bundle, tmp_path / "a.espdl", images=inputs)
    deploy_espdl(bundle, tmp_path / "b.espdl", images=inputs)
    assert (tmp_path / "a.espdl").read_bytes() == (tmp_path / "b.espdl").read_bytes()
    runner = EspdlRunner(read_espdl(tmp_path / "a.espdl"), load_target("esp32s3"))
    assert [check.differing for check in runner.check_vectors()] == [0] * len(runner.check_vectors())
    integers, expected = runner.run(runner.quantize(inputs[0])), bundle.engine("integer").run(inputs[0])
    assert len(integers) == len(expected)  # under ESP-DL's names, in the same order
    assert all(map(np.array_equal, integers.values(), expected.values()))
    with pytest.raises(UserError, match="exists"):
        deploy_espdl(bundle, tmp_path / "a.espdl")
    assert (tmp_path / "a.test2.espdl").exists()
    with pytest.raises(UserError, match="cannot be written"):
        deploy_espdl(bundle, file / "c.espdl")
    run = narrowcast("inspect", tmp_path / "a.espdl", "--nodes")
    assert run.returncode == 0 and "Conv" in run.stdout and "with a test vector" in run.stdout, run.stderr
    assert json.loads(narrowcast("inspect", file, "--json").stdout)["test_vector"] is False
    (tmp_path / "cut.espdl").write_bytes(file.read_bytes()[:5000])
    assert "cut.espdl" in refused("inspect", tmp_path / "cut.espdl")


def test_config(tmp_path: Path) -> None:
    assert json.loads(narrowcast("config", "schema").stdout)["properties"]["target"]
    (tmp_path / "n.yaml").write_text("model: m.onnx\nimages: photos\nout: b\ntarget: bayes-e\n")
    run = narrowcast("config", "convert", tmp_path / "n.yaml", "--out", tmp_path / "hb.yaml")
    assert run.returncode == 0 and "calibration_parameters" in (tmp_path / "hb.yaml").read_text(), run.stderr
    back = narrowcast("config", "convert", tmp_path / "hb.yaml")
    assert back.returncode == 0 and "target: bayes-e" in back.stdout
    assert "exists" in refused("config", "convert", tmp_path / "n.yaml", "--out", tmp_path / "hb.yaml")
