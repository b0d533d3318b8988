"""Tables and JSON on the one console."""

from __future__ import annotations

import json as json_module
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from narrowcast.errors import printable

__all__ = ["comparison_table", "console", "decibel", "print_json", "print_table", "say", "say_notes", "targets"]

#: How notes begin that nobody should miss.
WARNING = "WARNING: "


def console() -> Console:
    """Standard output; wide enough for full names when it is not a terminal. Nothing in a text is a command to it."""
    terminal = sys.stdout.isatty()
    return Console(highlight=False, markup=False, emoji=False, width=None if terminal else 160, soft_wrap=not terminal)


def say(text: str) -> None:
    """One line of plain text; empty lines may stand before it."""
    line = text.lstrip("\n")
    console().print("\n" * (len(text) - len(line)) + printable(line))


def say_notes(notes: Iterable[str]) -> None:
    """Notes as a list; warnings stand out of it and come last."""
    for note in sorted(notes, key=lambda note: note.startswith(WARNING)):
        say(note if note.startswith(WARNING) else f"- {note}")


def print_json(data: Any) -> None:
    """JSON on standard output."""
    text = json_module.dumps(data, indent=2, ensure_ascii=False)
    # line ends stand between strings only, what a terminal would obey stands in strings only
    sys.stdout.write("\n".join(map(printable, text.split("\n"))) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
    """A table whose first ``left`` columns are text and the rest numbers."""
    table = Table(title=printable(title) or None, title_justify="left", header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(printable(column), justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    console().print(table)


def decibel(value: float | None) -> str:
    """A ratio in dB; ``None`` stands for no noise at all."""
    return "equal" if value is None or math.isinf(value) else f"{value:.1f}"


def comparison_table(title: str, entries: Iterable[Mapping[str, Any]], first: str) -> None:
    """Float against quantized, one tensor a line."""
    rows = [
        (e["name"], f"{e['cosine']:.5f}", decibel(e["sqnr_db"]), f"{e['mean_abs']:.4g}", f"{e['max_abs']:.4g}")
        if e.get("equal") is None
        else (e["name"], f"{100 * e['equal']:.2f}% equal", decibel(e["sqnr_db"]), "-", "-")
        for e in entries
    ]
    print_table(title, (first, "cosine", "SQNR dB", "mean |diff|", "max |diff|"), rows)


def targets(json: bool) -> None:
    """The command ``targets``."""
    from narrowcast.targets import load_target, target_names

    found = [load_target(name) for name in target_names()]
    if json:
        print_json([target.model_dump(mode="json") for target in found])
        return
    rows = [
        (
            target.name,
            target.title,
            f"{target.activation.scale}, {'symmetric' if target.activation.symmetric else 'asymmetric'}",
            "per channel" if target.weight.per_channel else "per tensor",
            target.outputs.type,
            target.requantize.rounding,
        )
        for target in found
    ]
    print_table("", ("target", "chip", "activation scales", "weight scales", "outputs leave as", "rounding"), rows, 6)
