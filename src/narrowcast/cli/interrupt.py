"""What Ctrl-C says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = ["Interrupted", "interrupt", "on_interrupt"]

_messages = ["interrupted: nothing was written"]


class Interrupted(BaseException):
    """Ctrl-C. Not KeyboardInterrupt, which typer would turn into an exit code and message of its own."""


def interrupt(*_: object) -> None:
    """Signal handler."""
    raise Interrupted(_messages[-1])


@contextlib.contextmanager
def on_interrupt(text: str) -> Iterator[None]:
    """Inside the block, Ctrl-C says ``text``."""
    _messages.append(text)
    try:
        yield
    finally:
        _messages.pop()
