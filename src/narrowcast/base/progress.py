"""What a person sees while they wait: the phase by name, a bar where there is something to count, a warning."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, TypeVar

from narrowcast.base.errors import printable

if TYPE_CHECKING:
    from rich.progress import Progress


__all__ = ["Interrupted", "interrupt", "is_quiet", "on_interrupt", "phase", "set_quiet", "track", "warn"]

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
