"""Whole or not at all: whatever ends the program at whatever operation, and whoever else writes there."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import narrowcast.base.writing as writing
from file_faults import counted, fork, names
from narrowcast.base.errors import UserError
from narrowcast.base.writing import check_file, check_folder, inside, new_file, new_folder, write_file

MARKER = "manifest.json"
OLD, NEW = {MARKER: "old", "a": "old a", "gone": "x"}, {MARKER: "new", "a": "new a", "b": "new b"}


def fill(folder: Path, content: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in content.items():
        (folder / name).write_text(text)
    return folder


def content(folder: Path) -> dict[str, str] | None:
    return {file.name: file.read_text() for file in folder.iterdir()} if folder.is_dir() else None


def replace(out: Path) -> None:
    with new_folder(check_folder(out, MARKER, force=True)) as folder:
        fill(folder, NEW)


def killed_at(at: int, work: Callable[[], None]) -> bool:
    """Do the work in a process that dies at an operation; whether it did."""
    child = os.fork()
    if child == 0:
        with counted(at, lambda: os._exit(77)):
            work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 77


@fork
@pytest.mark.parametrize("swap", [True, False])
def test_a_kill_at_every_operation_leaves_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: bool
) -> None:
    if not swap:
        monkeypatch.setattr(writing, "_exchanged", lambda *_: False)  # as on a file system that cannot
    seen = set()
    for at in range(1, 400):
        place = tmp_path / str(at)
        out = fill(place / "b", OLD)
        (place / ".b.partial").write_text("the user's")
        died = killed_at(at, lambda out=out: replace(out))
        found = content(out)
        assert found in (OLD, NEW) or (found is None and not swap), f"operation {at}"
        check_folder(out, MARKER, force=True)  # the next run
        found = content(out)
        assert found in (OLD, NEW), f"operation {at} is not recovered"
        assert names(place) == [".b.partial", "b"], f"operation {at} leaves something"
        seen.add(str(found))
        shutil.rmtree(place)
        if not died:
            break
    assert at > 15 and not died and len(seen) == 2


@pytest.mark.parametrize("swap", [True, False])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_exception_at_every_operation_leaves_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, swap: bool
) -> None:
    if not swap:
        monkeypatch.setattr(writing, "_exchanged", lambda *_: False)

    def stop() -> None:
        raise error

    for at in range(1, 400):
        out = fill(tmp_path / str(at) / "b", OLD)
        with contextlib.suppress(UserError, OSError, KeyboardInterrupt), counted(at, stop) as count:
            replace(out)
        check_folder(out, MARKER, force=True)
        assert content(out) in (OLD, NEW) and names(out.parent) == ["b"], f"operation {at}"
        shutil.rmtree(out.parent)
        if count[0] < at:
            break
    assert at > 15 and count[0] < at


@fork
def test_a_kill_at_every_operation_of_a_file(tmp_path: Path) -> None:
    for at in range(1, 100):
        place = tmp_path / str(at)
        place.mkdir()
        file = place / "f"
        file.write_text("old")
        died = killed_at(at, lambda file=file: write_file(file, "new", force=True) and None)
        assert file.read_text() in ("old", "new")
        write_file(place / "g", "", force=False)
        assert names(place) == ["f", "g"]
        if not died:
            break
    assert at > 4 and not died


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_real_kill_and_a_live_neighbour(tmp_path: Path) -> None:
    """What a killed process left goes; what a living one writes stays."""
    out = fill(tmp_path / "b", OLD)
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom narrowcast.base.writing import *\n"
        "with new_folder(check_folder(Path(sys.argv[1]), 'manifest.json', True)) as folder:\n"
        "    (folder / 'half').write_text('half')\n    print('ready', flush=True)\n    time.sleep(60)"
    )
    run = subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None and run.stdout.readline() == "ready\n"
    check_folder(out, MARKER, force=True)
    assert len(names(tmp_path)) == 2, "its writer lives"
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert content(out) == OLD and len(names(tmp_path)) == 2
    replace(out)
    assert content(out) == NEW and names(tmp_path) == ["b"]


@pytest.mark.parametrize("there", [False, True])
def test_of_writers_at_once_one_wins(tmp_path: Path, there: bool) -> None:
    out = tmp_path / "b"
    if there:
        fill(out, OLD)
    barrier = threading.Barrier(6)
    told: list[str] = []

    def work(number: int) -> None:
        try:
            place = check_folder(out, MARKER, force=there)
            barrier.wait()
            with new_folder(place) as folder:
                fill(folder, {MARKER: "", "who": str(number), str(number): ""})
            told.append("wrote")
        except UserError as error:
            told.append(str(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told.count("wrote") == 1 and sum("another run" in line for line in told) == 5
    winner = (out / "who").read_text()
    assert names(out) == sorted([MARKER, "who", winner]) and names(tmp_path) == ["b"]


def _write(file: Path, number: int) -> bool:
    try:
        write_file(file, str(number) * 1000, force=False)
    except UserError:
        return False
    return True


def test_of_processes_that_write_one_file_one_wins(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        won = pool.starmap(_write, [(tmp_path / "f", number) for number in range(8)])
    assert sum(won) == 1 and (tmp_path / "f").read_text() == str(won.index(True)) * 1000
    assert names(tmp_path) == ["f"]


def test_links_and_foreign_names_stay(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("mine")
    for name in (".f.partial", "f.partial", ".f.tmp", "f.tmp", "f~"):
        (tmp_path / name).symlink_to(kept)
    (tmp_path / "f").symlink_to(kept)
    with pytest.raises(UserError, match="exists"):
        write_file(tmp_path / "f", "new", force=False)
    before = names(tmp_path)
    write_file(tmp_path / "f", "new", force=True)
    assert kept.read_text() == "mine" and (tmp_path / "f").read_text() == "new" and not (tmp_path / "f").is_symlink()
    assert names(tmp_path) == before
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="exists"):
        check_file(tmp_path / "lost", force=False)
    with pytest.raises(UserError, match="is no file"):
        write_file(Path(os.devnull), "x", force=True)
    fill(tmp_path / "real", OLD)
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    with pytest.raises(UserError, match="is a link"):
        check_folder(tmp_path / "folder", MARKER, force=True)
    with pytest.raises(UserError, match="holds no"):
        check_folder(fill(tmp_path / "mine", {"a": ""}), MARKER, force=True)


def test_the_umask_counts(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "f", "", force=False)
        replace(tmp_path / "b")
    finally:
        os.umask(before)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o750


def test_a_writer_that_goes_by_suffix(tmp_path: Path) -> None:
    with new_file(tmp_path / "v.mp4", force=False, suffix=".mp4") as partial:
        partial.write_text("film")
        assert partial.suffix == ".mp4" and names(tmp_path) == [partial.name]
    assert (tmp_path / "v.mp4").read_text() == "film"
    with pytest.raises(ZeroDivisionError), new_file(tmp_path / "w", force=False):
        raise ZeroDivisionError
    assert names(tmp_path) == ["v.mp4"]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc/x", "..\\x", "C:x", "a\0b"])
def test_names_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="plain file name"):
        inside(tmp_path, name)
    assert inside(tmp_path, "a b.onnx") == tmp_path / "a b.onnx"
