"""Run inputs one after the other in this process, and judge how each ends."""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import typer

from fuzzing.cases import CASES

__all__ = ["Summary", "fuzz"]

#: Seconds after which an input hangs.
PATIENCE = 10
#: Lines and characters that a person is told, at most.
MOST_LINES, MOST_WORDS = 6, 1500


class Hang(BaseException):
    """Nothing in the program catches this."""


@dataclass
class Summary:
    """How the inputs ended.

    Attributes:
        ends: inputs by case and end (``"0"``, ``"1"``, ``"2"`` for exit codes, or a kind of failure).
        failures: number of the input to what failed, in one line.
        seconds: in all.
        slowest: seconds of the slowest input.
        memory: most memory that the process used, bytes.
    """

    ends: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    slowest: float = 0.0
    memory: int = 0


def fuzz(
    numbers: Iterable[int], seed: int, seeds: Path, *, verbose: bool = False, tell: Callable[[str], object] = print
) -> Summary:
    """Run inputs.

    Args:
        numbers: of the inputs; an input depends on its number and the seed alone.
        seed: of all of them.
        seeds: folder of :func:`fuzzing.seeds.make_seeds`.
        verbose: print the traceback of a failure, and keep its files in the current folder.
        tell: takes a line about each failure when it happens.
    """
    from narrowcast.cli import app as application

    summary, begin, home = Summary(), time.monotonic(), os.getcwd()
    cases, weights = list(CASES), list(CASES.values())
    before = signal.signal(signal.SIGALRM, _hang)
    # typer would build all commands anew for each input, which takes longer than most of them
    commands = mock.patch.object(application, "app", typer.main.get_command(application.app))
    with commands, tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder + "/cache"
        for number in numbers:
            rng = random.Random(f"{seed}:{number}")
            case = rng.choices(cases, weights)[0]
            work = Path(folder) / str(number) / "here"
            work.mkdir(parents=True)
            (work.parent / "keep.txt").write_text("keep")
            os.chdir(work)
            started = time.monotonic()
            try:
                arguments = case(rng, seeds, work)
                end, problem = _run(arguments, verbose)
            except Exception as error:  # a case that reads without a command
                arguments, end, problem = [], "traceback", _line(error, verbose)
            summary.slowest = max(summary.slowest, time.monotonic() - started)
            os.chdir(home)
            if sorted(path.name for path in work.parent.iterdir()) != ["here", "keep.txt"]:
                end, problem = "wrote outside", ", ".join(path.name for path in work.parent.iterdir())
            summary.ends[case.__name__, end] += 1
            if problem:
                summary.failures[number] = f"{case.__name__}: {' '.join(arguments)[:160]}: {end}: {problem}"
                tell(f"{number}: {summary.failures[number]}")
                if verbose:
                    shutil.copytree(work, Path(home) / f"fuzz-{number}", dirs_exist_ok=True)
            shutil.rmtree(work.parent)
    signal.signal(signal.SIGALRM, before)
    summary.seconds = time.monotonic() - begin
    summary.memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return summary


def _hang(*_: object) -> None:
    raise Hang


def _run(arguments: list[str], verbose: bool) -> tuple[str, str]:
    """How a command ends, and what is wrong with that."""
    if not arguments:
        return "0", ""
    from narrowcast.cli import main

    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["narrowcast", *arguments, *(["--quiet"] if arguments[0] in ("quantize", "evaluate", "verify") else [])]
    signal.alarm(PATIENCE)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
        code: object = 0
    except SystemExit as error:
        code = error.code or 0
    except Hang as error:
        return "hang", _line(error, verbose)
    except BaseException as error:  # that is what is looked for
        return "traceback", _line(error, verbose)
    finally:
        signal.alarm(0)
        sys.argv = before
    said = err.getvalue()
    if code not in (0, 1, 2):
        return f"exit {code}", said[-200:]
    if code == 2 and (said.count("\n") > MOST_LINES or len(said) > MOST_WORDS or not said.strip()):
        return "words", f"{said.count(chr(10))} lines, {len(said)} characters: {said[:200]!r}"
    if "Traceback (most recent call last)" in said:
        return "traceback", said.strip().splitlines()[-1]
    return str(code), ""


def _line(error: BaseException, verbose: bool) -> str:
    """The error, and where it comes from in our own code and in all."""
    if verbose:
        traceback.print_exception(error, file=sys.__stderr__)
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/narrowcast/" in frame.filename]
    where = [f"{Path(f.filename).name}:{f.lineno}" for f in (*ours[-1:], *frames[-1:])]
    return f"{type(error).__name__} at {' > '.join(dict.fromkeys(where))}: {str(error)[:160]!r}"
