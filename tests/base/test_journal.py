"""Results that outlive an interruption."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path
from typing import IO

import pytest

from narrowcast.base.errors import UserError
from narrowcast.base.progress import Journal


def interrupted(file: Path, key: dict[str, int], results: dict[str | int, object]) -> dict[str | int, object]:
    """Add results, stop in the middle, and give back what was known before."""
    with pytest.raises(KeyboardInterrupt), Journal(file, key) as journal:
        before = dict(journal.known)
        for name, result in results.items():
            journal.put(name, result)
        raise KeyboardInterrupt
    return before


def test_results_survive_and_foreign_ones_do_not(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "m.jsonl"
    assert interrupted(file, {"a": 1, "b": 2}, {"one": [1.5], 2: {"x": None}}) == {}
    assert interrupted(file, {"b": 2, "a": 1}, {"é": "ü"}) == {"one": [1.5], 2: {"x": None}}
    with Journal(file, {"a": 2, "b": 2}) as journal:
        assert journal.known == {}
    assert not file.exists()


@pytest.mark.parametrize(
    "rest", [b'["two", [2', b'["two",[2]]', b'["two"]\n["three",3]\n', b'[["two"],2]\n', b"7\n", b"\x00\n", b"\xff\n"]
)
def test_a_damaged_line_ends_the_usable_part(tmp_path: Path, rest: bytes) -> None:
    file = tmp_path / "m.jsonl"
    interrupted(file, {}, {"one": 1})
    good = file.read_bytes()
    file.write_bytes(good + rest)
    assert interrupted(file, {}, {}) == {"one": 1} and file.read_bytes() == good
    assert interrupted(file, {}, {"two": 3}) == {"one": 1}
    assert interrupted(file, {}, {}) == {"one": 1, "two": 3}


def test_a_damaged_first_line_and_fresh_start_anew(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    interrupted(file, {}, {"one": 1})
    file.write_bytes(file.read_bytes()[3:])
    assert interrupted(file, {}, {"two": 2}) == {}
    with Journal(file, {}, fresh=True) as journal:
        assert journal.known == {}


def test_known_results_are_not_computed_again(tmp_path: Path) -> None:
    with Journal(tmp_path / "m.jsonl", {}) as journal:
        assert [journal.get("a", lambda value=value: value) for value in (1, 2)] == [1, 1]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "m.jsonl"
    with pytest.raises(UserError, match="cannot be written"), Journal(place, {}):
        raise AssertionError
    with Journal(place, {}, required=False) as journal:
        journal.put(0, [])
        assert journal.known == {0: []}


@pytest.mark.parametrize("at", range(1, 5))
def test_a_disk_that_fills_up_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], at: int
) -> None:
    """Whichever write the disk refuses: all results are there, and those before it after an interruption too."""
    file = tmp_path / "m.jsonl"
    count = 0
    append = Journal._append

    def refuse(self: Journal, place: IO[bytes], line: bytes) -> None:
        nonlocal count
        count += 1
        if count >= at:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, place, line)

    monkeypatch.setattr(Journal, "_append", refuse)
    with contextlib.suppress(KeyboardInterrupt), Journal(file, {}, required=False) as journal:
        for index in range(5):
            journal.put(index, index)
        assert journal.known == {index: index for index in range(5)}
        raise KeyboardInterrupt
    assert capsys.readouterr().err.count("No space left on device") == 1
    monkeypatch.undo()
    with Journal(file, {}, required=False) as journal:
        assert journal.known == {index: index for index in range(max(0, at - 2))}
    with pytest.raises(UserError, match="No space left"), Journal(file, {}) as journal:
        monkeypatch.setattr(Journal, "_append", refuse)
        journal.put(0, 0)


def test_a_link_is_not_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "m.jsonl").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="cannot be written"), Journal(tmp_path / "m.jsonl", {}):
        raise AssertionError
    with Journal(tmp_path / "m.jsonl", {}, required=False) as journal:
        journal.put(0, 1)
    assert (tmp_path / "mine").read_text() == "precious" and "cannot be written" in capsys.readouterr().err
