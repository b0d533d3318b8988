"""Results of long work in a file, so that an interrupted run goes on from there."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from narrowcast.errors import UserError

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
        required: a file that cannot be written is an error; else nothing is kept and the work goes on.

    Attributes:
        known: results by name, which is a text or a whole number.
    """

    def __init__(self, path: Path, key: Mapping[str, Any], *, fresh: bool = False, required: bool = True) -> None:
        self.path, self.required = path, required
        self.known: dict[Any, Any] = {}
        self._head = _line({"key": digest_of(key)})
        self._file: IO[bytes] | None = None
        self._lock = threading.Lock()
        if fresh:
            path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        except OSError as error:
            if self.required:
                raise UserError(f"{self.path} cannot be written: {error.strerror}", "choose another --out") from error
            return self
        self._file.seek(0)
        usable = self._read(self._file)
        self._file.truncate(usable)
        if not usable:
            self._write(self._head)
        return self

    def _read(self, lines: IO[bytes]) -> int:
        """Take the results in, and say how many bytes of the file are good."""
        if lines.readline() != self._head:
            return 0
        usable = len(self._head)
        for line in lines:
            if not line.endswith(b"\n"):
                break
            try:
                name, result = json.loads(line)
                self.known[name] = result
            except (ValueError, TypeError):
                break
            usable += len(line)
        return usable

    def _write(self, line: bytes) -> None:
        if self._file is not None:
            self._file.write(line)  # at the end, wherever reading stopped: the file was opened to append
            self._file.flush()

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """A known result, or one computed now and kept; JSON-ready."""
        if name not in self.known:
            self.put(name, compute())
        return self.known[name]

    def put(self, name: str | int, result: Any) -> None:
        """Keep a result; JSON-ready."""
        with self._lock:
            self.known[name] = result
            self._write(_line([name, result]))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            if kind is None:
                self.path.unlink(missing_ok=True)


def _line(data: Any) -> bytes:
    return (json.dumps(data, separators=(",", ":")) + "\n").encode()
