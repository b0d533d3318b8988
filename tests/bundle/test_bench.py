"""Times add up, nodes are summed rightly, nothing is left behind. No test asks how fast anything is."""

from __future__ import annotations

import json
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

from narrowcast.base.errors import UserError
from narrowcast.bundle import Bundle
from narrowcast.bundle.bench import Timing, _node_times, bench, profile
from narrowcast.cli.verify import bench as run

PICTURE = np.full((40, 60, 3), 90, np.uint8)


def test_timing_against_plain_numbers() -> None:
    timing = Timing.of([0.001, 0.002, 0.003, 0.010])
    assert (timing.average, timing.minimum, timing.maximum, timing.p50) == (4.0, 1.0, 10.0, 2.5)
    assert timing.p99 == pytest.approx(9.79)


def test_stages_and_counts(pose_bundle: Bundle) -> None:
    seen: list[int] = []

    def progress(items):  # type: ignore[no-untyped-def]
        for item in items:
            seen.append(item)
            yield item

    result = bench(pose_bundle.engine("qdq", 1), PICTURE, threads=2, frames=5, progress=progress)
    assert seen == [0, 1, 2, 3, 4] and result.frames == 5 and result.threads == 2
    assert list(result.stages) == ["preprocess", "inference", "postprocess", "total"]
    parts = sum(result.stages[name].average for name in ("preprocess", "inference", "postprocess"))
    assert result.stages["total"].average == pytest.approx(parts, abs=0.01)
    assert json.loads(json.dumps(result.to_dict()))["fps"] > 0


def test_a_reader_that_stops_leaves_no_thread(pose_bundle: Bundle) -> None:
    before = threading.active_count()

    class Stop(Exception):
        pass

    def progress(items):  # type: ignore[no-untyped-def]
        next(items)
        items.close()
        raise Stop
        yield

    with pytest.raises(Stop):
        bench(pose_bundle.engine("qdq", 1), PICTURE, threads=2, frames=50, progress=progress)
    assert threading.active_count() == before


def test_nodes_are_averaged_over_the_last_frames() -> None:
    def event(name: str, duration: int, kind: str = "Conv") -> dict[str, object]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": duration, "args": {"op_name": kind}}

    events = [event("a", 9000), event("a", 1000), event("a", 3000), event("b", 500, "Add"), event("b", 500, "Add")]
    events.append({"cat": "Session", "name": "model_run", "dur": 99})
    first, second = _node_times(events, 2)
    assert (first.node, first.op_type, first.average_ms, first.share) == ("a", "Conv", 2.0, 0.8)
    assert (second.node, second.average_ms, second.share) == ("b", 0.5, 0.2)


def test_the_profile_leaves_no_file(pose_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    x = np.zeros(pose_bundle.manifest.input_shape, np.float32)
    rows = profile(pose_bundle.path / "qdq.onnx", x, frames=2, level="basic")
    assert sum(row.share for row in rows) == pytest.approx(1, abs=0.05)
    assert "Conv" in {row.op_type for row in rows}
    assert not list(tmp_path.iterdir())


def test_the_command(pose_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    run(pose_bundle.path, "1,2", 2, None, "qdq", profile=False, json=True, quiet=True)
    data = json.loads(capsys.readouterr().out)
    assert [entry["threads"] for entry in data["runs"]] == [1, 2]
    run(pose_bundle.path, "1", 2, None, "float", profile=True, json=False, quiet=True)
    text = capsys.readouterr().out
    assert "FPS" in text and "postprocess" in text and "slowest" in text


@pytest.mark.parametrize(("threads", "frames", "words"), [("x", 2, "not understood"), ("1", 0, "measure nothing")])
def test_mistakes(pose_bundle: Bundle, threads: str, frames: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        run(pose_bundle.path, threads, frames, None, None, profile=False, json=True, quiet=True)
