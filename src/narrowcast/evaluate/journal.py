"""Where the results of an interrupted evaluation lie, and what they depend on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from narrowcast.base.journal import Journal, digest_of
from narrowcast.bundle.store import Predictor

__all__ = ["cache_folder", "evaluation_key", "kept_journals"]


def cache_folder() -> Path:
    """Where unfinished evaluations lie: ``$XDG_CACHE_HOME/narrowcast`` or ``~/.cache/narrowcast``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "narrowcast"


def evaluation_key(predictor: Predictor, files: Sequence[Path], **more: Any) -> dict[str, Any]:
    """Everything that the results of a pass depend on, JSON-ready; the images by name, size and time.

    Args:
        predictor: the graph.
        files: the images.
        more: what the kind of results adds.
    """
    images = [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    return {
        "graph": predictor.digest, "preprocess": predictor.preprocess.to_dict(), "images": images, **more, "version": 1,
    }  # fmt: skip


@contextlib.contextmanager
def kept_journals(fresh: bool = False) -> Iterator[Callable[[Mapping[str, Any]], Journal]]:
    """Open journals of the passes of one evaluation; all of them stay until the last pass is through.

    Where results cannot be kept, evaluation goes on.

    Args:
        fresh: forget earlier results.

    Yields:
        A function from a key (see :func:`evaluation_key`; equal keys share their results) to the results of that pass,
        by the index of the image.
    """
    with contextlib.ExitStack() as stack:
        opened: dict[str, Journal] = {}

        def journal_of(key: Mapping[str, Any]) -> Journal:
            name = digest_of(key)
            if name not in opened:
                file = cache_folder() / f"evaluate-{name[:24]}.jsonl"
                opened[name] = stack.enter_context(Journal(file, key, fresh=fresh, required=False))
            return opened[name]

        yield journal_of
