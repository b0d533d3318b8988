"""The command ``verify``: the integer graph against the slow reference."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from narrowcast.cli.quantize import after
from narrowcast.cli.tables import print_json, print_table, say, suggest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from narrowcast.bundle import Bundle

__all__ = ["run"]


def _some_inputs(
    bundle: Bundle, images: Path | None, limit: int, strict: bool
) -> tuple[list[NDArray[np.float32]], tuple[str, ...]]:
    """Model inputs of a person's images, or of embedded ones, and notes on images left out."""
    from narrowcast.bundle.integer_input import chip_input
    from narrowcast.calibrate import images as find_images
    from narrowcast.zoo import sample_for

    source = images or sample_for(bundle.manifest.task).validation
    found = find_images(source, bundle.manifest.preprocess, limit=limit, strict=strict).usable()
    return [chip_input(tensor, bundle.manifest) for tensor in found], found.notes


def _refuse(violations: list[str], json: bool) -> NoReturn:
    """Integers of a wrong plan mean nothing: both sides would repeat its mistake."""
    if json:
        print_json({"violations": violations})
    else:
        for line in violations:
            say(line)
        say(f"the plan breaks {len(violations)} rule{'s' if len(violations) != 1 else ''}: quantize the model again")
    raise typer.Exit(1)


def run(
    path: Path, images: Path | None, limit: int, everything: bool, json: bool, quiet: bool, strict: bool = False
) -> None:
    """Check the plan, then compare every integer tensor; exit code 1 when the plan is wrong or a value differs."""
    from narrowcast.base.progress import phase, set_quiet, track

    set_quiet(quiet or json)
    with phase("start"):
        from narrowcast.bundle import open_bundle
        from narrowcast.bundle.store import PLAN_FILE
        from narrowcast.lower.verify import verify
    bundle = open_bundle(path)
    if bundle.violations:
        _refuse(bundle.violations, json)
    graph = bundle.integer_graph
    bundle.file(PLAN_FILE)  # the plan of these integers, not one that was edited since
    inputs, notes = _some_inputs(bundle, images, limit, strict)
    target = bundle.target
    rows = verify(bundle.prepared.ir, bundle.plan, target, graph, track(inputs, "verify", len(inputs)))
    wrong = [row for row in rows if row.differing]
    differing, total = sum(row.differing for row in rows), sum(row.total for row in rows)
    if json:
        counts = {"images": len(inputs), "differing": differing, "total": total}
        print_json({"violations": [], **counts, "notes": list(notes), "rows": [asdict(row) for row in rows]})
    else:
        for note in notes:
            say(f"- {note}")
        shown = rows if everything else wrong
        if shown:
            cells = [
                (row.tensor, row.node, row.op_type, f"{row.differing}", f"{row.total}", f"{row.largest}")
                for row in shown
            ]
            print_table("", ("tensor", "node", "type", "differing", "values", "largest, steps"), cells, 3)
        where = "" if images is not None else " embedded"
        say(
            f"{differing} of {total} values in {len(rows)} tensors differ from the slow reference, on {len(inputs)}"
            f"{where} image{'s' if len(inputs) != 1 else ''}"
        )
        if not wrong:
            suggest(*after(bundle)[-1:])
    if wrong:
        raise typer.Exit(1)
