"""Results of an interrupted evaluation, so that the next one goes on from there."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Any

__all__ = ["Journal", "cache_folder"]


def cache_folder() -> Path:
    """Where unfinished evaluations lie: ``$XDG_CACHE_HOME/narrowcast`` or ``~/.cache/narrowcast``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "narrowcast"


class Journal:
    """An append-only file of results, one JSON line an image, named after everything that they depend on.

    A line that Ctrl-C or a power cut left half-written ends the usable part. Where the folder cannot be written,
    nothing is kept and evaluation goes on.

    Args:
        key: JSON-ready description of the work; equal keys share their results.
        fresh: forget earlier results.
        folder: where the file lies.
    """

    def __init__(self, key: dict[str, Any], fresh: bool = False, folder: Path | None = None) -> None:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.path = (folder or cache_folder()) / f"evaluate-{digest[:24]}.jsonl"
        self.done: dict[int, Any] = {}
        self._file: IO[str] | None = None
        if fresh:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+", encoding="utf-8")
        except OSError:
            return self
        self._file.seek(0)
        usable = 0
        for line in self._file:
            try:
                index, result = json.loads(line)
            except ValueError:
                break
            if not line.endswith("\n"):
                break
            self.done[int(index)] = result
            usable += len(line.encode())
        self._file.truncate(usable)
        self._file.seek(0, os.SEEK_END)
        return self

    def add(self, index: int, result: Any) -> None:
        """Keep the result of one image."""
        if self._file is not None:
            self._file.write(json.dumps([index, result], separators=(",", ":")) + "\n")
            self._file.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            if kind is None:
                self.path.unlink(missing_ok=True)
