"""What a person meets in the first hour: help, completion, a second demo, progress, names, short texts."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import narrowcast as nc
from narrowcast.base import progress
from narrowcast.bundle import Bundle
from narrowcast.cli import demo
from narrowcast.graph import Model
from narrowcast.zoo import sample


def shell(*arguments: str, **environment: str) -> str:
    """Standard output of ``python -m narrowcast``, 80 columns wide."""
    command = [sys.executable, "-m", "narrowcast", *arguments]
    env = {**os.environ, "COLUMNS": "80", **environment}
    run = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_help_names_every_command_in_whole_sentences() -> None:
    text = shell("-h")
    assert text == shell("--help")
    commands = text.split("Commands:")[1].strip().splitlines()
    assert len(commands) > 15 and all(line.endswith(".") and not line.endswith("...") for line in commands), text
    assert max(map(len, text.splitlines())) <= 80
    assert "--strict-images" in shell("quantize", "-h") and "hb_mapper" in shell("config", "convert", "-h")


def test_shell_completion() -> None:
    assert "--show-completion" in shell("--help")
    assert "complete" in shell("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")


def test_the_demo_writes_its_own_folder_again_and_no_other(tmp_path: Path, pose_bundle: Bundle) -> None:
    from dataclasses import replace

    made = replace(pose_bundle.manifest, command=("narrowcast", "demo", "--target", "onnx"))
    (tmp_path / "manifest.json").write_text(made.to_json())
    assert demo._own(tmp_path) and not demo._own(pose_bundle.path) and not demo._own(tmp_path / "nothing")


def test_public_functions_share_names_with_rooms(people_model: Model) -> None:
    import narrowcast.analyze.report
    import narrowcast.bundle.kits  # noqa: F401

    for name in ("analyze", "check", "deploy", "finetune", "quantize", "tune"):
        assert callable(getattr(nc, name)) and name in nc.__all__, name
        assert inspect.signature(getattr(nc, name)).parameters, name
    assert nc.analyze.report is sys.modules["narrowcast.analyze.report"]  # type: ignore[attr-defined]
    found = nc.check(people_model, "bayes-e")
    assert found.runs and len(found.elsewhere) == 1 and not found.refused
    assert nc.check(sample("pose").model, "bayes-e").rows == found.rows


def test_quantize_takes_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = sample("classify")
    for index, file in enumerate(sorted(found.calibration.iterdir())[:3]):
        (tmp_path / "photos" / f"class_{index % 2}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / f"class_{index % 2}" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "photos" / "class_0" / "bad.jpg").write_bytes(b"bad")
    monkeypatch.chdir(tmp_path)
    bundle = nc.quantize(found.model, "photos/", effort="fast", method="minmax")
    assert bundle.path == Path("classify-onnx") and bundle.path.is_dir()
    record = bundle.manifest.calibration
    assert len(record["images"]) == 2 and len(record["held_back"]) == 1
    assert any("1 of 4 files left out: photos/class_0/bad.jpg" in note for note in bundle.manifest.notes)
    one = nc.quantize(found.model, [cv2.imread(str(next(found.calibration.iterdir())))] * 2, out="one", effort="fast")
    assert one.manifest.calibration["held_back"] == [] and "nothing was held back" in one.manifest.compared_on


def test_short_texts(pose_model: Model, pose_bundle: Bundle) -> None:
    things = [pose_model, pose_bundle, pose_bundle.plan, pose_bundle.manifest, pose_bundle.quantized]
    things += [nc.check(pose_model), nc.images(np.zeros((2, 3, 256, 256), np.float32), pose_model.preprocess)]
    image = sorted(sample("pose").validation.iterdir())[0]
    things.append(pose_bundle.predict(image))
    for thing in things:
        assert len(repr(thing)) < 160 and "\n" not in repr(thing) and type(thing).__name__ in repr(thing)


def test_phases_nest_and_make_room_for_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_silent", lambda: False)

    @progress.phase("outer")
    def work() -> list[int]:
        assert progress._phases == ["outer"] and progress._shown is not None
        with progress.phase("inner"):
            assert progress._phases == ["outer", "inner"]
        done = []
        for item in progress.track([1, 2], "bar"):
            assert progress._shown is None  # rich allows one display at a time
            done.append(item)
        assert progress._shown is not None
        return done

    assert work() == [1, 2] and progress._phases == [] and progress._shown is None
    with pytest.raises(ValueError), progress.phase("fails"):
        raise ValueError
    assert progress._phases == [] and progress._shown is None
