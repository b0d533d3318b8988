"""Commands end to end: exit code, standard output and the one line on standard error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from command_line import command, narrowcast, refused
from narrowcast.base.errors import UserError
from narrowcast.bundle import Bundle
from narrowcast.cli import evaluate as predict
from narrowcast.zoo import sample

POSE = sample("pose")


def test_quantize_inspect_predict(tmp_path: Path, pose_file: Path) -> None:
    out = tmp_path / "pose"
    run = narrowcast(
        "quantize", pose_file, "--images", POSE.calibration, "--target", "esp32p4", "--out", out, "--limit", 8,
        "--method", "lp", "--effort", "fast", "--json",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    summary = json.loads(run.stdout)
    assert summary["task"] == "pose" and len(summary["comparison"]) == 9
    assert all(entry["cosine"] > 0.9 for entry in summary["comparison"])
    shown = narrowcast("inspect", out, "--nodes")
    assert shown.returncode == 0 and "kpt_s32" in shown.stdout and "Silu" not in shown.stderr
    image = sorted(POSE.validation.iterdir())[0]
    run = narrowcast("predict", out, image, "--out", tmp_path / "a.jpg", "--json")
    found = json.loads(run.stdout)
    assert found["results"] and len(found["results"][0]["keypoints"]) == 17
    assert cv2.imread(str(tmp_path / "a.jpg")).shape == cv2.imread(str(image)).shape
    assert "exists" in refused("predict", out, image, "--out", tmp_path / "a.jpg")
    words = json.loads((out / "manifest.json").read_text())["command"]
    assert "--out" not in words and "quantize" in words


def test_a_process_of_its_own_says_the_same(pose_bundle: Bundle, tmp_path: Path) -> None:
    """What a shell sees is what the other tests see, who run the command line in their own process."""
    for words in (("inspect", pose_bundle.path), ("inspect", tmp_path)):
        run, known = subprocess.run(command(*words), capture_output=True, text=True, check=False), narrowcast(*words)
        assert (run.returncode, run.stdout, run.stderr) == (known.returncode, known.stdout, known.stderr)


def test_predict_a_folder_with_the_float_model(tmp_path: Path, pose_file: Path) -> None:
    for index in range(2):
        (tmp_path / "in").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "in" / f"{index}.png"), np.zeros((50, 60, 3), np.uint8))
    run = narrowcast("predict", pose_file, tmp_path / "in", "--out", tmp_path / "drawn", "--conf", 0.9)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("nothing found") == 2
    assert len(list((tmp_path / "drawn").iterdir())) == 2
    (tmp_path / "in" / "bad.jpg").write_bytes(b"bad")
    run = narrowcast("predict", pose_file, tmp_path / "in", "--out", tmp_path / "in" / "drawn", "--json")
    assert len(json.loads(run.stdout)) == 2 and "1 of 3 files left out" in run.stderr and "bad.jpg" in run.stderr
    run = narrowcast("predict", pose_file, tmp_path / "in", "--out", tmp_path / "in" / "drawn", "--json", "--force")
    assert len(json.loads(run.stdout)) == 2, "what the first run drew is no input"
    assert "bad.jpg" in refused("predict", pose_file, tmp_path / "in", "--strict-images")


def test_check() -> None:
    run = narrowcast("check", POSE.model, "--target", "bayes-e", "--json")
    rows = json.loads(run.stdout)["nodes"]
    assert [row["type"] for row in rows if row["on"] == "CPU"] == ["Softmax"]
    text = narrowcast("check", POSE.model, "--target", "esp32p4")
    assert text.returncode == 0 and "0 cannot run" in text.stdout


def test_targets_and_version() -> None:
    assert {entry["name"] for entry in json.loads(narrowcast("targets", "--json").stdout)} >= {"onnx", "bayes-e"}
    assert narrowcast("--version").stdout.startswith("narrowcast ")


def test_edited_plan_reruns(pose_bundle: Bundle, tmp_path: Path, pose_file: Path) -> None:
    document = json.loads((pose_bundle.path / "plan.json").read_text())
    node = next(name for name in document["nodes"] if name.endswith("Conv"))
    document["nodes"][node]["type"] = "int16"
    (tmp_path / "edited.json").write_text(json.dumps(document))
    common = (
        "quantize",
        pose_file,
        "--images",
        POSE.calibration,
        "--limit",
        4,
        "--method",
        "mse",
        "--target",
        "esp32p4",
    )
    run = narrowcast(*common, "--out", tmp_path / "b", "--plan", tmp_path / "edited.json")
    assert run.returncode == 0, run.stderr
    assert json.loads((tmp_path / "b" / "plan.json").read_text())["nodes"][node]["type"] == "int16"
    document["tensors"]["nowhere"] = {"dtype": "int8", "scale": 1.0}
    (tmp_path / "edited.json").write_text(json.dumps(document))
    assert "nowhere" in refused(*common, "--out", tmp_path / "c", "--plan", tmp_path / "edited.json")


def test_mistakes_are_one_line(tmp_path: Path, pose_bundle: Bundle, pose_file: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"\xff\xd8 no")
    model, images = pose_file, ("--images", POSE.calibration)
    out = ("--out", tmp_path / "out")
    assert "does not exist" in refused("quantize", tmp_path / "no.onnx", *images, *out)
    assert "known are" in refused("quantize", model, *images, *out, "--target", "esp32p5")
    assert "no images" in refused("quantize", model, "--images", tmp_path / "empty", *out)
    assert "corrupt" in refused("quantize", model, "--images", tmp_path / "bad", *out)
    assert "--force" in refused("quantize", model, *images, "--out", pose_bundle.path)
    assert "--size" in refused("quantize", model, *images, *out, "--size", "big")
    assert "--mean" in refused("quantize", model, *images, *out, "--mean", "a,b")
    assert "no bundle" in refused("inspect", tmp_path / "empty")
    assert "does not exist" in refused("predict", pose_bundle.path, tmp_path / "no.jpg")
    assert "corrupt" in refused("predict", pose_bundle.path, tmp_path / "bad" / "a.jpg")
    assert "engine" in refused("predict", pose_bundle.path, next(POSE.validation.iterdir()), "--engine", "warp")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_in_calibration(tmp_path: Path) -> None:
    """A real SIGINT while images are read: one line, exit code 130, nothing left behind."""
    inputs = tmp_path / "in"
    inputs.mkdir()
    for index in range(600):
        (inputs / f"{index:04}.jpg").write_bytes(sorted(POSE.calibration.iterdir())[index % 8].read_bytes())
    code = (
        "import sys, narrowcast.calibrate.statistics as s\n"
        "add = s.TensorStatistics.add\n"
        "def told(*a):\n    sys.stdout.write('started\\n'); sys.stdout.flush(); return add(*a)\n"
        "s.TensorStatistics.add = told\n"
        "from narrowcast.cli import main; main()"
    )
    arguments = ["quantize", str(POSE.model), "--images", str(inputs), "--out", str(tmp_path / "out" / "b")]
    run = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout is not None and run.stdout.readline() == "started\n"
    time.sleep(0.2)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130 and errors == "narrowcast: interrupted: nothing was written\n"
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_pictures_of_images_with_one_stem(tmp_path: Path, pose_file: Path) -> None:
    """a.jpg, a.png and sub/a.jpg each get a picture, and no input is ever one."""
    source = cv2.imread(str(next(POSE.validation.iterdir())))
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.jpg", "a.png", "A.bmp", "b.png", "a.png.jpg"):
        cv2.imwrite(str(folder / name), source)
    files = sorted(folder.iterdir())
    named = predict._pictures(folder, files, tmp_path / "out", force=False)
    assert len({str(picture).lower() for picture in named.values()}) == 5 == len(named)
    assert named[folder / "b.png"] == tmp_path / "out" / "b.jpg"
    (folder / "sub").mkdir()
    nested = [*files, folder / "sub" / "a.jpg"]
    assert predict._pictures(folder, nested, tmp_path / "out", force=False)[nested[-1]] == tmp_path / "out/sub/a.jpg"
    with pytest.raises(UserError, match="input image"):
        predict._pictures(folder, [folder / "a.jpg"], folder, force=True)
    with pytest.raises(UserError, match="input image"):
        predict._pictures(folder, [folder / "x.jpg", folder / "x.png", folder / "x.png.jpg"], folder, force=True)
    run = narrowcast("predict", pose_file, folder, "--out", tmp_path / "out")
    assert run.returncode == 0 and len(list((tmp_path / "out").iterdir())) == 5, run.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("module", ["typer", "narrowcast.cli.analyze", "numpy", "onnxruntime", "cv2"])
def test_ctrl_c_while_modules_load(tmp_path: Path, module: str) -> None:
    """One line and exit code 130, whatever is being imported."""
    code = (
        "import importlib.abc, os, signal, sys\n"
        "class Finder(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from narrowcast.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "quantize", str(POSE.model), "--images", str(POSE.calibration)]
    run = subprocess.run([*command, "--out", str(tmp_path / "b")], capture_output=True, text=True, check=False)
    assert run.returncode == 130 and run.stderr == "narrowcast: interrupted: nothing was written\n"
    assert not (tmp_path / "b").exists()
