"""Lets the real command line read words, without running anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer.main

from narrowcast.cli.app import app

__all__ = ["known_options", "parse"]


def known_options(name: str) -> set[str]:
    """Options of a command."""
    group: Any = typer.main.get_command(app)
    return {option for parameter in group.commands[name].params for option in parameter.opts}


def parse(words: Sequence[str]) -> None:
    """Read the words behind ``narrowcast`` as the program would; raises what it would refuse."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("narrowcast", list(words), resilient_parsing=True)
    name, command, rest = group.resolve_command(context, list(words))
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(context, rest)
    command.make_context(name, rest, parent=context)
