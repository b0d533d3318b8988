"""The commands ``config schema`` and ``config convert``."""

from __future__ import annotations

import sys
from pathlib import Path

from narrowcast.base.errors import printable
from narrowcast.base.writing import write_file
from narrowcast.cli.tables import say, suggest

__all__ = ["convert", "schema"]


def schema() -> None:
    """Print the JSON schema of our YAML."""
    from narrowcast.config import settings_schema

    sys.stdout.write(settings_schema().rstrip("\n") + "\n")


def convert(file: Path, out: Path | None, force: bool) -> None:
    """Write the file in the other form, or print it."""
    from narrowcast.config import convert as convert_file

    converted = convert_file(file)
    if out is None:
        sys.stdout.write(converted.text.rstrip("\n") + "\n")
        for note in converted.notes:
            sys.stderr.write(f"note: {printable(note)}\n")
        return
    write_file(out, converted.text, force=force)
    for note in converted.notes:
        say(f"- {note}")
    say(f"{out} written in the form of {converted.form}")
    suggest(("narrowcast", "quantize", "--config", out))
