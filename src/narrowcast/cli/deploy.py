"""The command ``deploy``."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from narrowcast.base.errors import printable
from narrowcast.base.progress import is_quiet
from narrowcast.cli.tables import print_json, say

if TYPE_CHECKING:
    from narrowcast.deploy import Delivery

__all__ = ["run"]

#: Folders with more files than this are shown as one line.
_SHOWN = 8


def run(
    path: Path,
    kit: str | None,
    out: Path | None,
    images: Path | None,
    limit: int | None,
    test_vectors: int,
    runtime: str | None,
    force: bool,
    json: bool,
    quiet: bool,
    strict: bool = False,
) -> None:
    """Write a kit, say what was written and what to type next."""
    from narrowcast.base.progress import phase, set_quiet

    set_quiet(quiet or json)
    with phase("start"):
        from narrowcast.bundle import open_bundle
        from narrowcast.calibrate import images as find_images
        from narrowcast.deploy import chosen_kit, deploy
        from narrowcast.zoo import sample_for
    bundle = open_bundle(path)
    name = chosen_kit(bundle, kit)
    embedded = images is None and test_vectors > 0
    source = sample_for(bundle.manifest.task).validation if embedded else images
    found = find_images(source, bundle.manifest.preprocess, strict=strict) if source is not None else None
    made = deploy(
        bundle, name, out, images=found, limit=limit, test_vectors=test_vectors, force=force, runtime=runtime
    )
    if json:
        print_json({"kit": name, **_plain(made)})
        return
    _print(made, name)
    if embedded:
        say("- test vectors are of embedded images; give your own with --images")


def _plain(made: Delivery) -> dict[str, Any]:
    return {**asdict(made), "path": str(made.path)}


def _print(made: Delivery, kit: str) -> None:
    say(f"{made.path} written (kit {kit})")
    folders = Counter(str(Path(file).parent) for file in made.files)
    for file in made.files:
        if folders[str(Path(file).parent)] <= _SHOWN:
            say(f"  {file}")
    for folder, count in folders.items():
        if count > _SHOWN:
            say(f"  {folder}/ ({count} files)")
    for key, value in made.facts.items():
        text = (
            ", ".join(map(str, value))
            if isinstance(value, list)
            else f"{value:g}"
            if isinstance(value, float)
            else value
        )
        say(f"{key}: {text}")
    for note in made.notes:
        say(f"- {note}")
    if is_quiet():
        return
    say("next:")
    for step in made.steps:
        sys.stdout.write(f"  {printable(step)}\n")  # whole, so that it can be pasted
