"""Long work: what a person sees meanwhile (the phase by name, a bar where there is something to count, a warning), and
its results in a file, so that an interrupted run goes on from there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, TypeVar

from narrowcast.base.errors import UserError, printable

if TYPE_CHECKING:
    from rich.progress import Progress


Item = TypeVar("Item")
_quiet = False
#: What is going on, the innermost last, and what the terminal shows of it. One display a process: rich allows no more.
_phases: list[str] = []
_shown: Progress | None = None
_counting = False
#: Warnings so far.
_said: set[str] = set()


def set_quiet(quiet: bool) -> None:
    """Turn phases and bars off (``--quiet``, ``--json``) or on for the whole process."""
    global _quiet
    _quiet = quiet


def warn(text: str) -> None:
    """One line on standard error about work that goes on; each is said once."""
    if text not in _said:
        _said.add(text)
        shown = _shown is not None
        _hide()
        sys.stderr.write(f"narrowcast: warning: {printable(text)}\n")
        if shown:
            _show()


def is_quiet() -> bool:
    """Whether only the result is wanted."""
    return _quiet


def _silent() -> bool:
    return _quiet or not sys.stderr.isatty()


@contextlib.contextmanager
def phase(description: str) -> Iterator[None]:
    """Name what is going on and how long it takes, for as long as the block lasts; usable as a decorator.

    Args:
        description: what is being done, e.g. ``"load"``. A phase or bar inside shows in its place until it ends.
    """
    if _silent():
        yield
        return
    _phases.append(description)
    _show()
    try:
        yield
    finally:
        _phases.pop()
        _show()


def _hide() -> None:
    global _shown
    if _shown is not None:
        _shown.stop()
        _shown = None


def _show() -> None:
    """Draw the innermost phase, or nothing."""
    global _shown
    _hide()
    if _counting or not _phases:
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description:<12}", markup=False), SpinnerColumn(), TimeElapsedColumn()
    _shown = Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4)
    _shown.add_task(_phases[-1], total=None)
    _shown.start()


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield ``items`` while showing a bar with a rate and a remaining time.

    Args:
        items: anything iterable; consumed lazily.
        description: what is being done, e.g. ``"calibrate"``.
        total: number of items, when ``len(items)`` does not tell.

    Yields:
        The items, unchanged and in order.
    """
    global _counting
    if _counting or _silent():
        yield from items
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    if total is None and isinstance(items, Sized):
        total = len(items)
    columns = (
        TextColumn("{task.description:<12}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TimeElapsedColumn(),
    )
    _hide()
    _counting = True
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(description, total=total, rate="")
            start = time.perf_counter()
            for count, item in enumerate(items, 1):
                yield item
                rate = count / (time.perf_counter() - start)
                bar.update(task, advance=1, rate=f"{rate:.1f}/s")
    finally:
        _counting = False
        _show()


_interrupted = ["interrupted: nothing was written"]


class Interrupted(BaseException):
    """Ctrl-C. Not KeyboardInterrupt, which typer would turn into an exit code and message of its own."""


def interrupt(*_: object) -> None:
    """Signal handler."""
    raise Interrupted(_interrupted[-1])


@contextlib.contextmanager
def on_interrupt(text: str) -> Iterator[None]:
    """Inside the block, Ctrl-C says ``text``."""
    _interrupted.append(text)
    try:
        yield
    finally:
        _interrupted.pop()


def digest_of(key: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON-ready description of work; the order of its keys does not matter."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


class Journal:
    """Results by name, in a file of JSON lines that is there from an interruption to the end of the work.

    The first line says what the results depend on; a file of other work is started anew. A line that Ctrl-C or a power
    cut left half-written ends the usable part. Results may be added from several threads.

    Args:
        path: the file.
        key: JSON-ready description of everything that the results depend on.
        fresh: forget earlier results.
        required: a file that cannot be written is an error; else a warning says so once and the work goes on.

    Attributes:
        known: results by name, which is a text or a whole number.
    """

    def __init__(self, path: Path, key: Mapping[str, Any], *, fresh: bool = False, required: bool = True) -> None:
        self.path, self.required = path, required
        self.known: dict[Any, Any] = {}
        self._head = _line({"key": digest_of(key)})
        self._file: IO[bytes] | None = None
        self._lock = threading.Lock()
        self._fresh = fresh

    def __enter__(self) -> Journal:
        with self._refusals():
            if self._fresh:
                self.path.unlink(missing_ok=True)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
            self._file = os.fdopen(os.open(self.path, flags, 0o666), "a+b")
            self._file.seek(0)
            usable = self._read(self._file)
            self._file.truncate(usable)
            if not usable:
                self._write(self._head)
        return self

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        """What the file system refuses is an error, or said once."""
        try:
            yield
        except OSError as error:
            self._close()
            if self.required:
                raise UserError(f"{self.path} cannot be written: {error.strerror}", "choose another --out") from error
            warn(f"{self.path.parent} cannot be written ({error.strerror}): an interrupted run would start anew")

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # what a full disk did not take is tried again
                file.close()

    def _read(self, lines: IO[bytes]) -> int:
        """Take the results in, and say how many bytes of the file are good."""
        if lines.readline() != self._head:
            return 0
        usable = len(self._head)
        for line in lines:
            if not line.endswith(b"\n"):
                break
            try:
                name, result, _ = json.loads(line)
                if line != _entry(name, result):  # damaged since, though still JSON
                    break
                self.known[name] = result
            except (ValueError, TypeError, RecursionError):
                break
            usable += len(line)
        return usable

    def _write(self, line: bytes) -> None:
        if self._file is None:  # it could not be written before, which was said then
            return
        with self._refusals():
            self._append(self._file, line)

    def _append(self, file: IO[bytes], line: bytes) -> None:
        file.write(line)  # at the end, wherever reading stopped: the file was opened to append
        file.flush()

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """A known result, or one computed now and kept; JSON-ready."""
        if name not in self.known:
            self.put(name, compute())
        return self.known[name]

    def put(self, name: str | int, result: Any) -> None:
        """Keep a result; JSON-ready."""
        with self._lock:
            self.known[name] = result
            self._write(_entry(name, result))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        if kind is None:
            with contextlib.suppress(OSError):  # never written, or no longer there
                self.path.unlink()


def _entry(name: Any, result: Any) -> bytes:
    """A result with a checksum."""
    return _line([name, result, zlib.crc32(_line([name, result]))])


def _line(data: Any) -> bytes:
    return (json.dumps(data, separators=(",", ":")) + "\n").encode()
