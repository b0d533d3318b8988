"""Where the results of an interrupted evaluation lie, and what they depend on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from narrowcast.bundle.predictor import Predictor
from narrowcast.journal import Journal, digest_of

__all__ = ["cache_folder", "evaluation_journal", "evaluation_key"]


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


def evaluation_journal(key: Mapping[str, Any], fresh: bool = False) -> Journal:
    """Results of one pass by the index of the image; where they cannot be kept, evaluation goes on.

    Args:
        key: see :func:`evaluation_key`; equal keys share their results.
        fresh: forget earlier results.
    """
    return Journal(cache_folder() / f"evaluate-{digest_of(key)[:24]}.jsonl", key, fresh=fresh, required=False)
