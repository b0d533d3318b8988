"""``evaluate``, and ``predict`` on videos."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from command_line import command, narrowcast, refused
from narrowcast.bundle import Bundle
from narrowcast.zoo import sample

POSE, CLASSIFY = sample("pose"), sample("classify")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_bundle_and_a_classifier(pose_bundle: Bundle, tmp_path: Path) -> None:
    labels = ("--images", POSE.validation, "--annotations", POSE.annotations, "--limit", 6)
    run = narrowcast("evaluate", pose_bundle.path, *labels)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("\u2502keypoints") == 2 and "integer" in run.stdout and "kept [95 %]" in run.stdout
    run = narrowcast(
        "evaluate", POSE.model, *labels, "--protocol", "rdk", "--camera", "nv12-studio", "--json",
        "--save-predictions", tmp_path / "p.json",
    )  # fmt: skip
    report = json.loads(run.stdout)
    assert report["images"] == 6 and report["protocol"]["confidence"] == 0.25
    assert len(json.loads((tmp_path / "p.json").read_text())) == report["rows"][0]["found"]
    run = narrowcast(
        "evaluate", CLASSIFY.model, "--images", CLASSIFY.validation, "--labels", CLASSIFY.labels, "--limit", 10
    )
    assert run.returncode == 0 and "top-5" in run.stdout, run.stderr


def test_mistakes_are_one_line(pose_bundle: Bundle, tmp_path: Path, pose_file: Path) -> None:
    labels = ("--images", POSE.validation, "--annotations", POSE.annotations)
    assert "--labels" in refused("evaluate", pose_file, "--images", POSE.validation)
    assert "--labels" in refused("evaluate", pose_file, *labels, "--labels", CLASSIFY.labels)
    assert "protocol" in refused("evaluate", pose_file, *labels, "--protocol", "voc")
    assert "engine" in refused("evaluate", pose_bundle.path, *labels, "--engine", "gpu")
    assert "no bundle" in refused("evaluate", tmp_path, *labels)
    (tmp_path / "a.mp4").write_bytes(b"no video")
    assert "video" in refused("predict", pose_file, tmp_path / "a.mp4")


def test_interrupt_and_go_on() -> None:
    arguments = ("evaluate", POSE.model, "--images", POSE.validation, "--annotations", POSE.annotations, "--limit", 24)
    cache = Path(os.environ["XDG_CACHE_HOME"]) / "narrowcast"
    process = subprocess.Popen(command(*arguments, "--workers", 1), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not any(file.stat().st_size for file in cache.glob("*.jsonl")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130 and "goes on from there" in error and error.count("\n") == 1, error
    assert len(list(cache.iterdir())) == 1
    run = narrowcast(*arguments)
    assert run.returncode == 0 and not list(cache.iterdir()), run.stderr


def test_predict_a_video(tmp_path: Path, pose_file: Path) -> None:
    frames = [cv2.imread(str(file)) for file in sorted(POSE.validation.iterdir())[:3]]
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(tmp_path / "in.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (width, height))
    for frame in frames:
        writer.write(cv2.resize(frame, (width, height)))
    writer.release()
    run = narrowcast("predict", pose_file, tmp_path / "in.avi", "--out", tmp_path / "out.mp4", "--json")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)["frames"]
    assert len(found) == 3 and found[2]["seconds"] == pytest.approx(0.2) and any(frame["results"] for frame in found)
    capture = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    good, first = capture.read()
    assert good and first.shape == (height, width, 3) and np.std(first) > 5
    assert "exists" in refused("predict", pose_file, tmp_path / "in.avi", "--out", tmp_path / "out.mp4")
    run = narrowcast("predict", pose_file, tmp_path / "in.avi")
    assert "3 frames" in run.stdout
