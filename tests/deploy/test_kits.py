"""Which kit for which chip, and what is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from narrowcast.base.errors import UserError
from narrowcast.bundle import Bundle
from narrowcast.bundle.kits import deploy, kits
from narrowcast.chips import load_target, target_names
from narrowcast.chips.esp.codec import read_espdl
from narrowcast.chips.esp.model import EspdlRunner
from narrowcast.cli.deploy import deploy as command
from narrowcast.zoo import sample


def run(bundle: Path, kit: str | None, out: Path | None, **options: object) -> None:
    values = {"images": None, "limit": None, "test_vectors": 0, "runtime": None, "force": False, "json": False}
    command(bundle, kit, out, **{**values, "quiet": False, **options})  # type: ignore[arg-type]


def test_every_kit_of_a_target_exists() -> None:
    for name in target_names():
        assert set(load_target(name).kits) <= set(kits())


def test_wrong_kits(rdk_classify: Bundle, pose_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no kit named 'rdkx5': bayes-e offers rdk-x5, tros"):
        deploy(rdk_classify, "rdkx5", tmp_path / "x")
    with pytest.raises(UserError, match="the kit espdl is not for bayes-e: use rdk-x5, tros"):
        deploy(rdk_classify, "espdl", tmp_path / "x")
    with pytest.raises(UserError, match="the kit tros is not for esp32p4: use espdl"):
        deploy(pose_bundle, "tros", tmp_path / "x")
    with pytest.raises(UserError, match="no test vectors"):
        deploy(rdk_classify, "tros", tmp_path / "x", test_vectors=2)
    assert not (tmp_path / "x").exists()


def test_espdl_with_vectors_of_embedded_images(
    pose_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.espdl"
    run(pose_bundle.path, None, out, test_vectors=2, quiet=False)
    printed = capsys.readouterr().out
    assert f"{out} written (kit espdl)" in printed
    assert "embedded images" in printed
    assert f"narrowcast inspect {out}" in printed
    files = [read_espdl(path) for path in (out, out.with_name("model.test2.espdl"))]
    for file in files:
        # what model->test() asks for: each input and output under its own name, once
        assert set(file.test_inputs) == {value.name for value in file.inputs}
        assert set(file.test_outputs) == {value.name for value in file.outputs}
        checks = EspdlRunner(file, load_target("esp32p4"), 1).check_vectors()
        assert len(checks) == len(pose_bundle.manifest.outputs) and not any(check.differing for check in checks)
    inputs = [file.test_inputs[file.inputs[0].name].data for file in files]
    assert not np.array_equal(*inputs) and files[0].nodes == files[1].nodes
    with pytest.raises(UserError, match="exists"):
        run(pose_bundle.path, "espdl", out)
    with pytest.raises(UserError, match="need images"):
        deploy(pose_bundle, "espdl", tmp_path / "other.espdl", test_vectors=1)


def test_images_of_the_calibration_are_found_again(rdk_classify: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="calibration are not at hand: add --images"):
        deploy(rdk_classify, "rdk-x5", tmp_path / "package")
    folder = str(sample("classify").calibration)
    recorded = Bundle(
        rdk_classify.path, replace(rdk_classify.manifest, command=("narrowcast", "quantize", "--images", folder))
    )
    made = deploy(recorded, "rdk-x5", tmp_path / "package", ranges="vendor")
    assert made.facts["calibration images"] == len(rdk_classify.manifest.calibration["images"])


def test_an_existing_result(rdk_classify: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "tros"
    deploy(rdk_classify, "tros", out)
    with pytest.raises(UserError, match="exists: choose another --out, or add --force"):
        deploy(rdk_classify, "tros", out)
    deploy(rdk_classify, "tros", out, force=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/photo.jpg").touch()
    with pytest.raises(UserError, match=r"holds no workconfig\.json, so it is not replaced"):
        deploy(rdk_classify, "tros", tmp_path / "mine", force=True)
    assert (tmp_path / "mine/photo.jpg").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "tros"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_place(rdk_classify: Bundle, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(UserError, match="not writable"):
        deploy(rdk_classify, "tros", tmp_path / "tros")
