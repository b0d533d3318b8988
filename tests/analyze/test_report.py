"""The report: complete, deterministic, escaped, and without errors in a real browser where there is one."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from narrowcast.analyze import Analysis, Subject, analyze
from narrowcast.analyze.drawing import match, pair
from narrowcast.analyze.report import history, render, tuned_scores, write_report
from narrowcast.base.errors import UserError
from narrowcast.bundle import Bundle
from narrowcast.bundle.analysis import subject_of
from narrowcast.calibrate import images
from narrowcast.cli.analyze import analyze as run
from narrowcast.vision import Classification, Detections
from narrowcast.zoo import sample

_VOID = {"meta", "link", "img", "input", "br", "circle", "rect", "line", "polyline"}
EVALUATION = {
    "images": 7,
    "protocol": {},
    "notes": [],
    "rows": [
        {
            "name": "float", "images_per_second": 9.0, "found": 3,
            "metrics": [{"family": "keypoints", "values": {"AP": 0.5}, "interval": [0.4, 0.6]}],
        },
        {
            "name": "esp32p4", "images_per_second": 9.0, "found": 3,
            "metrics": [
                {
                    "family": "keypoints", "values": {"AP": 0.45}, "interval": [0.3, 0.5], "retention": 0.9,
                    "retention_interval": [0.85, 0.95],
                }
            ],
        },
    ],
}  # fmt: skip


class Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        values = dict(attrs)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if tag == "a":
            self.targets.append(str(values["href"]))
        for name in ("src", "srcset") + (("href",) if tag == "link" else ()):
            if values.get(name):
                self.loads.append(str(values[name]))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag, tag


STEPS = {
    "steps": [
        {"step": "equalization", "loss_before": 0.5, "loss_after": 0.6, "kept": False},
        {
            "step": "rounding", "loss_before": 0.5, "loss_after": 0.25, "kept": True, "held_before": 0.75,
            "held_after": 0.625,
        },
    ],
    "finetune": {"kept_step": 50, "settings": {"steps": 200}, "before": {"loss": 0.25}, "after": {"loss": 0.1875}},
    "tune": {
        "steps": [
            {"action": "start", "name": "the bundle", "loss": 0.5},
            {"action": "add", "name": "first <conv>", "loss": 0.375},
            {"action": "add", "name": "second", "loss": 0.3125},
        ],
        "kept_steps": 1,
        "report": {
            "before": {"loss": 0.4375}, "after": {"loss": 0.40625},
            "metrics": {**EVALUATION, "images": 9},
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def subject(pose_bundle: Bundle) -> Subject:
    found = subject_of(pose_bundle, images(sample("pose").validation, pose_bundle.manifest.preprocess, limit=1))
    return found


@pytest.fixture(scope="module")
def analysis(subject: Subject) -> Analysis:
    return analyze(subject, layers="none", wide=False)


@pytest.fixture(scope="module")
def text(analysis: Analysis, pose_bundle: Bundle) -> str:
    image = np.full((80, 60, 3), 90, np.uint8)
    found = Detections(np.array([[5, 5, 30, 60]], np.float32), np.array([0.9], np.float32), np.array([0]))
    moved = replace(found, boxes=found.boxes + 20)
    layers = [entry.only for entry in analysis.ablation]
    manifest = json.loads(pose_bundle.manifest.to_json())
    manifest["notes"].append("<script>alert(1)</script>")
    manifest["calibration"] |= STEPS
    shown = [pair("a <b>.jpg", image, found, moved)]
    return render(replace(analysis, layers=layers), manifest, pose_bundle.plan, shown, EVALUATION)


def test_is_complete_and_well_formed(text: str) -> None:
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert all(load.startswith("data:") for load in checker.loads)
    assert "http://" not in text and "https://" not in text
    assert len(checker.ids) == len(set(checker.ids))
    assert {target.removeprefix("#") for target in checker.targets} <= set(checker.ids)
    assert checker.counts["table"] >= 6 and checker.counts["svg"] >= 2 and checker.counts["img"] == 2
    assert checker.counts["script"] == 1


def test_says_what_was_measured(text: str, analysis: Analysis) -> None:
    for words in ("45.00 %", "90.00 %", "85.0 to 95.0", "7 labelled images", "keypoint branch", "kpt_s8"):
        assert words in text, words
    assert all(finding.what.split("'")[0][:20] in text for finding in analysis.findings)
    assert 'class="axis">value</text>' in text and 'class="axis">count</text>' in text
    assert '<code>narrowcast ' in text and '<span class="cost">0.0000<' not in text


def test_history_tells_steps_in_their_order() -> None:
    rows = [(r.command, r.step, r.outcome, r.before, r.after, r.held_before, r.held_after) for r in history(STEPS)]
    assert rows == [
        ("quantize", "equalization", "not kept", 0.5, 0.6, None, None),
        ("quantize", "rounding", "kept", 0.5, 0.25, 0.75, 0.625),
        ("finetune", "50 of 200 steps", "kept", 0.25, 0.1875, None, None),
        ("tune", "16 bits for first <conv>", "kept", 0.5, 0.375, None, None),
        ("tune", "16 bits for second", "not needed", 0.375, 0.3125, None, None),
        ("tune", "all that was kept", "kept", None, None, 0.4375, 0.40625),
    ]
    assert history({}) == [] and tuned_scores({}) is None


def test_says_what_each_step_bought(text: str, analysis: Analysis, pose_bundle: Bundle) -> None:
    for words in ("What each step bought", "16 bits for first &lt;conv&gt;", "0.6250", "9 labelled images that chose"):
        assert words in text, words
    manifest = json.loads(pose_bundle.manifest.to_json())
    manifest["calibration"].pop("steps", None)
    assert "What each step bought" not in render(analysis, manifest, pose_bundle.plan)


def test_escapes_what_comes_from_files(text: str) -> None:
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    assert "a <b>.jpg" not in text and "a &lt;b&gt;.jpg" in text


def test_its_policy_lets_only_its_own_script_run(text: str) -> None:
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    assert policy.startswith("default-src 'none';") and "unsafe-eval" not in policy
    script = text.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy and script.count("addEventListener") == 3
    assert not re.search(r"<[^>]+\son\w+=", text.partition("<script>")[0])


def test_same_input_same_bytes(analysis: Analysis, pose_bundle: Bundle, tmp_path: Path) -> None:
    manifest = json.loads(pose_bundle.manifest.to_json())
    for name in ("a.html", "b.html"):
        write_report(tmp_path / name, analysis, manifest, pose_bundle.plan)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(UserError, match="cannot be written"):
        write_report(tmp_path / "a.html" / "b.html", analysis, manifest, pose_bundle.plan)


def test_runs_without_errors_in_a_browser(text: str, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if browser is None:
        pytest.skip("no Chromium on the PATH; the structure is checked above")
    probe = """<script>
addEventListener("error", (e) => { document.title = "failed " + e.message; });
addEventListener("load", () => {
  const table = document.querySelector("#parts table"), head = table.tHead.rows[0].cells[1];
  head.querySelector("button").click();
  const numbers = [...table.tBodies[0].rows].map((row) => Number(row.cells[1].textContent));
  const sorted = numbers.every((n, i) => i === 0 || numbers[i - 1] >= n);
  document.getElementById("theme").click();
  const input = document.querySelector("#layers input");
  input.value = "keypoint branch"; input.dispatchEvent(new Event("input"));
  const shown = [...document.querySelector("#layers table").tBodies[0].rows].filter((row) => !row.hidden).length;
  document.title = [sorted, head.getAttribute("aria-sort"), document.documentElement.dataset.theme, shown].join(" ");
});
</script></head>"""
    page = tmp_path / "report.html"
    digest = base64.b64encode(hashlib.sha256(probe[8:-16].encode()).digest()).decode()
    allowed = text.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)  # the page's policy knows no probe
    page.write_text(allowed.replace("</head>", probe, 1))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
               "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
               f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]  # fmt: skip
    done = subprocess.run(
        [browser, *options], capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(tmp_path)}
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None, done.stderr[-500:]
    assert title[1] == "true descending dark 1"
    assert "CONSOLE" not in done.stderr


def test_pictures_match_objects_of_a_class() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32)
    one = Detections(boxes, np.array([0.9, 0.8], np.float32), np.array([0, 1]))
    other = Detections(boxes[::-1] + 1, np.array([0.9, 0.8], np.float32), np.array([1, 1]))
    assert match(one, other) == [(1, 0)]
    made = pair("x", np.zeros((40, 40, 3), np.uint8), one, other)
    assert made.words == "1 object in both, 1 missed, 1 only quantized, box sides differ by 1.0 px"
    scores = np.array([0.9, 0.1], np.float32)
    classes = [Classification(np.array(order), scores) for order in ([0, 1], [1, 0])]
    assert pair("x", np.zeros((40, 40, 3), np.uint8), *classes).words == "another class is first"


def test_command(pose_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps(EVALUATION))
    options = {"ablate": True, "out": out, "evaluation": scores, "quiet": True}
    run(pose_bundle.path, sample("pose").validation, 1, **options)  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    assert "keypoint branch" in printed and "report:" in printed and "pixels" in printed
    assert out.read_text().startswith("<!doctype html>")
    with pytest.raises(UserError, match="exists"):
        run(pose_bundle.path, None, 1, out=out)
    scores.write_text("[]")
    with pytest.raises(UserError, match="evaluate --json"):
        run(pose_bundle.path, None, 1, out=out, force=True, evaluation=scores)
