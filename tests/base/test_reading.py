"""The guarded edge, and a short run of the fuzzer over all loaders."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from narrowcast.base.errors import UserError
from narrowcast.base.reading import check_depth, is_plain_name, parse_json, read_text, reading, typed

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no JSON"),
        ("NaN", "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ("[1e999]", "1e999 is too large"),
        ("1" * 100_000, "100000 digits"),
        ('{"a": 1, "b": 2, "a": 1}', "'a' is given twice"),
        ("[" * 3000 + "]" * 3000, "nested too deeply"),
        ("[" * 65 + "]" * 65, "nested too deeply"),
    ],
)
def test_json_that_is_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        parse_json(text, "f.json", "mend it")
    assert len(str(caught.value)) < 300


def test_json_that_is_taken() -> None:
    assert parse_json('{"a": [1, 2.5, null, true, "x"]}', "f", "") == {"a": [1, 2.5, None, True, "x"]}
    assert parse_json(str(2**64 - 1), "f", "") == 2**64 - 1 and parse_json("[" * 64 + "]" * 64, "f", "")


def test_text_with_a_byte_order_mark_and_other_encodings(tmp_path: Path) -> None:
    file = tmp_path / "t"
    file.write_bytes("\ufeffä".encode())
    assert read_text(file, "") == "ä"
    file.write_bytes(b"ab\xff")
    with pytest.raises(UserError, match=r"no UTF-8 text .byte 2."):
        read_text(file, "")
    with pytest.raises(UserError, match="does not exist"):
        read_text(tmp_path / "none", "")


@pytest.mark.parametrize("error", [ValueError("a\nb"), KeyError("k"), RecursionError(), OSError(5, "io")])
def test_what_fails_in_a_loader_names_the_file(error: Exception) -> None:
    with pytest.raises(UserError, match=r"^f\.json .*: mend it$"), reading("f.json", "mend it"):
        raise error


def test_our_own_mistakes_are_not_hidden() -> None:
    for error in (AssertionError, ImportError, KeyboardInterrupt):
        with pytest.raises(error), reading("f", ""):
            raise error


def test_cycles_are_no_trees() -> None:
    tree: list[object] = []
    tree.append(tree)
    with pytest.raises(RecursionError):
        check_depth(tree)


@dataclass
class _Part:
    size: int


@dataclass
class _Whole:
    parts: tuple[_Part, ...]


def test_data_as_a_class() -> None:
    assert typed(_Whole, {"parts": [{"size": 3}]}, "f", "") == _Whole((_Part(3),))
    for data, words in (
        ({"parts": [{"size": "x"}]}, "parts.0.size: "),
        ({"parts": [{}]}, "parts.0.size is missing"),
        ({"parts": 3}, "parts: "),
        ([], "f is damaged"),
    ):
        with pytest.raises(UserError, match=words):
            typed(_Whole, data, "f", "")


def test_plain_names() -> None:
    assert all(map(is_plain_name, ("a.onnx", "model.espdl", "Größe 1.json", "x" * 255)))
    bad = ("", ".", "..", ".bashrc", "a/b", "../a", "/etc/passwd", "a\\b", "c:x", "a\0", "a\n", "con", "NUL.txt",
           "a.", "a ", "x" * 256, "a\x1b[0m")  # fmt: skip
    assert not any(map(is_plain_name, bad))


def test_a_short_run_of_the_fuzzer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loader; ``scripts/fuzz`` runs as many as one likes."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # is set by the driver
    from fuzzing.driver import fuzz
    from fuzzing.seeds import make_seeds

    make_seeds(tmp_path / "seeds")
    summary = fuzz(range(120), 0, tmp_path / "seeds")
    assert not summary.failures and sum(summary.ends.values()) == 120
    assert {"onnx_model", "bundle", "espdl", "target", "settings", "annotations"} <= {case for case, _ in summary.ends}
    assert sys.argv[0] != "narrowcast"
