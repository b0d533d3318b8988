"""``quantize --force`` that is killed while it writes leaves the old bundle or the new one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

import narrowcast.bundle.make as make
from builders import model, save, weights
from file_faults import counted, fork, names
from narrowcast.base.writing import check_folder
from narrowcast.bundle import open_bundle, quantize
from narrowcast.cli import main
from narrowcast.graph import load


def _content(folder: Path) -> dict[str, str]:
    return {file.name: file.read_bytes().hex() for file in sorted(folder.iterdir())}


def _killed(at: int, place: Any, again: Any) -> Iterator[Path]:
    """Write, in a process that kills itself before the file operation of that number."""
    signal.alarm(20)
    with counted(at, lambda: os.kill(os.getpid(), signal.SIGKILL)), again(place) as folder:
        yield folder
    os._exit(0)


def _quantize_killed(out: Path, words: list[str], told: Path) -> None:
    """The command; where it begins to write, one process for each file operation, which goes on to be killed there."""
    again, old, rows = make.new_folder, out.with_name("old"), []

    @contextlib.contextmanager
    def forked(_: object) -> Iterator[Path]:
        for at in range(1, 400):
            child = os.fork()
            if child == 0:
                yield from _killed(at, check_folder(out, "manifest.json", force=True), again)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            left = names(out.parent)
            check_folder(out, "manifest.json", force=True)  # what the next run does first
            rows.append({"code": code, "left": left, "tidied": names(out.parent), "found": _content(out)})
            shutil.rmtree(out)
            shutil.copytree(old, out)
            if code != -signal.SIGKILL:
                break
        told.write_text(json.dumps(rows))
        os._exit(0)

    make.new_folder = forked  # type: ignore[assignment]
    sys.argv = ["narrowcast", "quantize", *words, "--out", str(out), "--force", "--quiet"]
    main()


@fork
@pytest.mark.skipif(sys.platform == "darwin", reason="its frameworks do not survive a fork")
def test_a_kill_at_every_operation_of_a_quantize(tmp_path: Path) -> None:
    """Of the real command, in processes of their own."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["y"], name="relu"),
    ]
    net = save(model(nodes, [weights(rng, "w", 4, 3, 3, 3)]), tmp_path / "net.onnx")
    np.save(tmp_path / "images.npy", rng.random((3, 3, 16, 16)).astype(np.float32))
    home = tmp_path / "bundles"
    out = home / "b"
    first = quantize(load(net), tmp_path / "images.npy", "onnx", out=out, method="minmax", effort="fast")
    before = _content(first.path)
    shutil.copytree(out, home / "old")
    told, child = tmp_path / "told.json", os.fork()
    if child == 0:
        words = [str(net), "--images", str(tmp_path / "images.npy"), "--target", "esp32p4", "--effort", "fast"]
        with contextlib.suppress(BaseException):
            _quantize_killed(out, [*words, "--method", "minmax"], told)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    *killed, last = json.loads(told.read_text())
    assert last["code"] == 0 and "model.espdl" in last["found"] and last["found"] != before
    assert len(killed) > 20 and all(row["code"] == -signal.SIGKILL for row in killed)
    for at, row in enumerate([*killed, last], 1):
        assert "b" in row["left"], f"operation {at} takes the bundle away"
        assert row["tidied"] == ["b", "old"], f"operation {at} leaves something"
        assert row["found"] in (before, last["found"]), f"operation {at} leaves a mixture"
    assert any(len(row["left"]) > 2 for row in killed), "no kill left anything"
    assert {str(row["found"]) for row in killed} == {str(before), str(last["found"])}
    for name, data in last["found"].items():
        (out / name).write_bytes(bytes.fromhex(data))
    opened = open_bundle(out)
    assert opened.manifest.target == "esp32p4"
    assert [opened.file(name).name for name in opened.manifest.files] == list(opened.manifest.files)  # by their hashes
