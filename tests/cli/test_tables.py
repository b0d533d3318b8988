"""Tables at 80 columns: nothing cut off, no name broken, no line too long; and what to type next."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from command_line import parse
from narrowcast.base.progress import set_quiet
from narrowcast.bundle import Bundle
from narrowcast.cli.check import check, targets
from narrowcast.cli.inspect import inspect
from narrowcast.cli.quantize import after, wider
from narrowcast.cli.tables import print_table, suggest
from narrowcast.zoo import sample

NAME = "/model.19/cv3.0/cv3.0.1/cv3.0.1.1/conv/Conv_output_0"
EVALUATE = ("metric", "graph", "AP [95 %]", "AP50", "AP75", "small", "medium", "large", "AR", "kept [95 %]", "img/s")
EFFECT = (
    "node", "task loss", "keypoint px", "1-OKS", "box px", "1-IoU", "prob.", "cand. prob.", "noise ratio", "worst dB",
    "worst cos",
)  # fmt: skip
VERIFY = ("tensor", "node", "type", "differing", "values", "largest, steps")
REMEDY = "rewrite the attention as ReduceMax, Sub, Exp, ReduceSum and Mul, or ask for int8 or int16 in node_info"
TABLES = {
    "evaluate": (
        EVALUATE, 2, ("keypoints", "integer", "55.57 [50.6, 61.6]", *["95.77"] * 6, "95.2% [91.6%, 102.5%]", "10.5")
    ),
    "effect": (EFFECT, 1, (NAME, "0.0162", "12.29", "0.0012", "1.29", *["0.0012"] * 3, "1.2e-04", "33.6", "0.99978")),
    "verify": (VERIFY, 3, (f"{NAME} (shipped)", NAME[:-9], "Conv", "123", "4999936", "1")),
    "check": (("Node", "ON", "Subgraph", "Type", "In/Out type", "Reason", "What to do"), 7,
              (NAME, "CPU", "--", "Softmax", "float32", "Softmax is on the CPU by default", REMEDY)),
    "bench": (("node", "type", "ms", "share"), 2, (f"{NAME}_requantized.Gather_node", "GatherElements", "1.234", "1%")),
}  # fmt: skip


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    set_quiet(False)


@pytest.mark.parametrize("name", TABLES)
def test_every_cell_of_a_wide_table_is_there(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    columns, left, row = TABLES[name]
    print_table("title", columns, [row, (NAME, *row[1:])], left)
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80 and "\u2026" not in text and lines[0] == "title"
    words = set(text.replace(",", " ").split())
    for cell in (*columns, *row):
        assert set(cell.replace(",", " ").split()) <= words, cell


def test_a_table_that_fits_keeps_its_frame(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("", ("output", "dB"), [("[bold]a[/bold]", "1.0")])
    text = capsys.readouterr().out
    assert "\u2503" in text and "[bold]a[/bold]" in text


def test_the_tables_of_commands(pose_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    targets(json=False)
    check(sample("pose").model, "bayes-e", everything=True)
    inspect(pose_bundle.path, True, False)
    text = capsys.readouterr().out
    for line in text.splitlines():
        assert len(line) <= 80 or line.startswith(("- ", "  narrowcast", str(pose_bundle.path))), line
    assert "\u2026" not in text and "split the convolution" not in text  # a remedy only where something is wrong
    for node in pose_bundle.plan.nodes:
        assert node in text


def test_the_next_step_can_be_pasted(pose_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("narrowcast", "quantize", Path("my model.onnx"), "--int16", "/a*")
    suggest(command)
    text = capsys.readouterr().out
    assert shlex.split(text.splitlines()[1]) == list(map(str, command))
    assert [words[1] for words in after(pose_bundle)] == ["evaluate", "predict", "analyze", "deploy"]
    for words in (*after(pose_bundle), *wider(pose_bundle, Path("photos"))):
        parse([str(word) for word in words[1:]])
    set_quiet(True)
    suggest(command)
    assert capsys.readouterr().out == ""
    set_quiet(False)
