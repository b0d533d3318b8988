"""One progress helper: a bar on a terminal, silence elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

__all__ = ["set_quiet", "track"]

Item = TypeVar("Item")
_quiet = False


def set_quiet(quiet: bool) -> None:
    """Turn progress bars off (``--quiet``, ``--json``) or on for the whole process."""
    global _quiet
    _quiet = quiet


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield ``items`` while showing a bar with a rate and a remaining time.

    Args:
        items: anything iterable; consumed lazily.
        description: what is being done, e.g. ``"calibrate"``.
        total: number of items, when ``len(items)`` does not tell.

    Yields:
        The items, unchanged and in order.
    """
    if _quiet or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if total is None and isinstance(items, Sized):
        total = len(items)
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total, rate="")
        start = time.perf_counter()
        for count, item in enumerate(items, 1):
            yield item
            rate = count / (time.perf_counter() - start)
            bar.update(task, advance=1, rate=f"{rate:.1f}/s")
