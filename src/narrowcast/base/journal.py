"""Results of long work in a file, so that an interrupted run goes on from there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from narrowcast.base.errors import UserError
from narrowcast.base.progress import warn

__all__ = ["Journal", "digest_of"]


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
