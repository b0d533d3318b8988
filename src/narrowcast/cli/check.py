"""The command ``check``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from narrowcast.cli.options import parse_size
from narrowcast.cli.prepare import attention_choice
from narrowcast.cli.tables import print_json, print_table, say, say_notes, suggest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from narrowcast.chips import Target
    from narrowcast.deploy.espdl import RuntimeRow
    from narrowcast.graph import Model

__all__ = ["run"]


def run(
    model: Path,
    target: str,
    size: str | None,
    keep_head: bool,
    runtime: str | None,
    everything: bool,
    json: bool,
    attention: str = "keep",
) -> None:
    """Print the placement; exit code 1 when the chip cannot run a node."""
    from narrowcast.base.progress import phase

    with phase("start"):
        from narrowcast.chips import load_target
        from narrowcast.deploy.check import check
        from narrowcast.graph import load
    chip = load_target(target)  # a wrong name is said before anything slow
    loaded = load(model, size=parse_size(size), keep_head=keep_head, attention=attention_choice(attention))
    found = check(loaded, target, runtime=runtime)
    rows, refused, elsewhere, findings = found.rows, found.refused, found.elsewhere, found.runtime
    first = chip.units[0]
    notes = [*loaded.notes, *_compiler_notes(loaded, chip), *filter(None, [loaded.assumption])]
    if json:
        print_json(
            {
                "target": chip.name,
                "notes": notes,
                "assumed": list(loaded.assumed),
                "nodes": [asdict(row) for row in rows],
                "runtime": [asdict(f) for f in findings],
            }
        )
    else:
        say_notes(notes)
        shown = rows if everything else [*refused, *elsewhere]
        if shown:
            print_table(
                f"{loaded.source} on {chip.title}",
                ("Node", "ON", "Subgraph", "Type", "In/Out type", "Reason", "What to do"),
                [(r.node, r.on, r.subgraph, r.type, r.data_type, r.reason, r.remedy) for r in shown],
                7,
            )
        if findings:
            cells = _grouped(findings)
            print_table(chip.runtime.name, ("", "Nodes", "Type", "Data", "Problem", "What to do"), cells, 6)
        subgraphs = len({row.subgraph for row in rows if row.subgraph != "--"})
        say(
            f"{len(rows)} nodes: {len(rows) - len(refused) - len(elsewhere)} on {first} in {subgraphs} subgraph"
            f"{'s' if subgraphs != 1 else ''}, {len(elsewhere)} elsewhere, {len(refused)} cannot run"
        )
        again = ("--size", size) if size is not None else ()
        task = ("narrowcast", "quantize", model, "--images", "FOLDER", "--target", target, *again)
        name = f"{model.stem}-{chip.name}"
        suggest((*task, "--out", name) if found.runs else ("narrowcast", "targets"))
    if not found.runs:
        raise typer.Exit(1)


def _grouped(findings: Sequence[RuntimeRow]) -> list[tuple[str, ...]]:
    """One row for each problem, however many nodes have it."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in findings:
        groups.setdefault((row.severity, row.op_type, row.type, row.problem, row.remedy), []).append(row.node)
    return [
        (severity, nodes[0] if len(nodes) == 1 else f"{len(nodes)} nodes, first {nodes[0]}", *others)
        for (severity, *others), nodes in groups.items()
    ]


def _compiler_notes(model: Model, chip: Target) -> list[str]:
    """What the vendor's own compiler would say of the file as it is."""
    from narrowcast.graph.files import model_opset

    opset, taken = model_opset(model.original), chip.runtime.opsets
    if not taken or opset in taken:
        return []
    kit = f"narrowcast deploy --kit {chip.kits[0]} writes" if chip.kits else "export it with"
    known = " and ".join(map(str, taken))
    return [f"opset {opset}: the compiler of {chip.title} takes {known}; {kit} opset {taken[-1]}"]
