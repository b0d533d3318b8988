"""The real command line: run on words in this process or in one of its own, or only made to read them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import pytest
import typer.main

from narrowcast.base import progress
from narrowcast.cli import main
from narrowcast.cli.app import app

__all__ = ["command", "known_options", "narrowcast", "parse", "refused"]


def command(*arguments: object) -> list[str]:
    """Words that start the program in a process of its own."""
    return [sys.executable, "-c", "from narrowcast.cli import main; main()", *map(str, arguments)]


def narrowcast(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the program in this process, as a new one would: silent before, nothing said yet.

    What onnxruntime writes past Python is in the output as well. ``test_commands.py`` compares with a process.
    """
    with pytest.MonkeyPatch.context() as patch, _caught(1) as out, _caught(2) as err:
        patch.setattr("sys.argv", ["narrowcast", *map(str, arguments)])
        patch.setattr("sys.stdout", out)
        patch.setattr("sys.stderr", err)
        patch.setattr(progress, "_quiet", False)
        patch.setattr(progress, "_said", set())
        try:
            main()
            code: Any = 0
        except SystemExit as stopped:
            code = stopped.code or 0
        texts = [_written(stream) for stream in (out, err)]
    return subprocess.CompletedProcess(["narrowcast", *map(str, arguments)], code, *texts)


@contextlib.contextmanager
def _caught(descriptor: int) -> Iterator[TextIO]:
    """A file that takes what is written to the descriptor."""
    before = os.dup(descriptor)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        os.dup2(file.fileno(), descriptor)
        try:
            yield file
        finally:
            os.dup2(before, descriptor)
            os.close(before)


def _written(stream: TextIO) -> str:
    stream.flush()
    stream.seek(0)
    return stream.read()


def refused(*arguments: object) -> str:
    """The one line on standard error of a command that must fail with exit code 2."""
    run = narrowcast(*arguments)
    assert run.returncode == 2, run.stdout + run.stderr
    assert run.stderr.count("\n") == 1 and "Traceback" not in run.stderr, run.stderr
    return run.stderr


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
