"""Settings from YAML and options: validated once, nearest name suggested."""

from __future__ import annotations

from pathlib import Path

import pytest

from narrowcast.base.errors import UserError
from narrowcast.bundle.settings import read_settings

GIVEN = {"model": Path("m.onnx"), "images": Path("i"), "out": Path("o")}


def test_options_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "narrowcast.yaml"
    file.write_text(
        "model: net.onnx\nimages: photos\nout: b\ntarget: esp32p4\nint16: [a, b]\nfloat: [c]\nmean: [1, 2, 3]\n"
    )
    settings = read_settings(file, {"target": "bayes-e", "limit": None, "int16": []})[0]
    assert settings.target == "bayes-e" and settings.int16 == ("a", "b") and settings.float_ == ("c",)
    assert settings.model == tmp_path / "net.onnx" and settings.mean == (1.0, 2.0, 3.0)
    assert settings.method == "auto"


def test_options_alone() -> None:
    assert read_settings(None, {**GIVEN, "percentile": 99.9})[0].percentile == 99.9


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("targt: onnx", "did you mean target"),
        ("method: magic", "method"),
        ("percentile: 12", "percentile"),
        ("- a\n- b", "no table"),
        ("a: [", "not valid YAML"),
        ("threads: -1", "threads"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "narrowcast.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=words) as error:
        read_settings(file, GIVEN)
    assert "\n" not in str(error.value)


def test_missing_things(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images is not given"):
        read_settings(None, {"model": Path("m.onnx"), "out": Path("o")})
    with pytest.raises(UserError, match="cannot be read"):
        read_settings(tmp_path / "none.yaml", GIVEN)
