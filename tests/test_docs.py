"""What README and docs tell people to type: commands are parsed by the real command line, Python is run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from command_line import known_options, parse
from narrowcast.bundle import Bundle
from narrowcast.chips import load_target
from narrowcast.zoo import sample

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
POSE = sample("pose")


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(page: Path) -> list[list[str]]:
    """Words of every command in the fenced blocks, without comments and redirections."""
    lines = [line for block in blocks(page, "") for line in block.splitlines() if line.startswith("narrowcast ")]
    words = [shlex.split(line.replace(" ... ", " m.onnx --images i --out o "), comments=True) for line in lines]
    return [line[1 : line.index(">")] if ">" in line else line[1:] for line in words]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_as_written(page: Path) -> None:
    for words in commands(page):
        parse(words)
    for name, rest in re.findall(r"`narrowcast ([a-z]+)([^`]*)`", page.read_text(encoding="utf-8")):
        assert set(re.findall(r"--[a-z0-9-]+", rest)) <= known_options(name), f"{page.name}: narrowcast {name}{rest}"


def test_there_is_something_to_check() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 40 and sum(len(blocks(page, "python")) for page in PAGES) >= 4
    with pytest.raises(Exception, match="No such option"):
        parse(["evaluate", "b/", "--images", "i", "--sizes", "3"])


def test_target_files_as_written(tmp_path: Path) -> None:
    for text in blocks(ROOT / "docs" / "targets.md", "yaml"):
        (tmp_path / "mychip.yaml").write_text(text)
        assert load_target(str(tmp_path / "mychip.yaml")).name == "mychip"


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory, pose_file: Path) -> Path:
    """The names that the pages use, with a small network and four embedded images behind them."""
    folder = tmp_path_factory.mktemp("docs")
    document = json.loads((POSE.validation.parent / "keypoints.json").read_text())
    kept = document["images"][:4]
    ids = {entry["id"] for entry in kept}
    document["annotations"] = [entry for entry in document["annotations"] if entry["image_id"] in ids]
    (folder / "person_keypoints_val2017.json").write_text(json.dumps({**document, "images": kept}))
    for name in ("photos", "val2017"):
        (folder / name).mkdir()
        for entry in kept:
            (folder / name / entry["file_name"]).write_bytes((POSE.validation / entry["file_name"]).read_bytes())
    (folder / "street.jpg").write_bytes((POSE.validation / kept[0]["file_name"]).read_bytes())
    (folder / "yolo11n-pose.onnx").write_bytes(pose_file.read_bytes())
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_runs(
    page: Path, few: Path, pose_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in few.iterdir():
        (tmp_path / name.name).symlink_to(name)
    for name in ("pose-p4", "pose-x5"):
        if page.name != "README.md":
            (tmp_path / name).symlink_to(pose_bundle.path)
    monkeypatch.chdir(tmp_path)
    quick = {"limit=16": 'limit=1, layers="none"', '"rdk-x5", "package"': '"espdl", "package.espdl"'}
    for code in blocks(page, "python"):
        for slow, fast in quick.items():
            code = code.replace(slow, fast)
        exec(compile(code, str(page), "exec"), {})
