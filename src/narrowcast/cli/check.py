"""The command ``check``.

The command ``prepare``.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from narrowcast.base.errors import UserError
from narrowcast.cli.options import Attention, Force, Head, Json, KeepHead, Runtime, Size, TargetName, app, parse_size
from narrowcast.cli.tables import print_json, print_table, say, say_notes, suggest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from narrowcast.chips import RuntimeRow, Target
    from narrowcast.graph import Model


@app.command()
def prepare(
    model: Annotated[Path, typer.Argument(help="ONNX file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="ONNX file to write.")],
    attention: Attention = "keep",
    size: Size = None,
    keep_head: KeepHead = False,
    head: Head = "",
    force: Force = False,
    json: Json = False,
) -> None:
    """Write the tidied float graph that quantize works on.

    The decode head is cut off, constants are folded, operators are stock ones.
    """
    from narrowcast.base.progress import phase

    with phase("start"):
        from narrowcast.base.writing import check_file, write_file
        from narrowcast.bundle.contents import proto_bytes
        from narrowcast.graph import load
    if out.suffix != ".onnx":
        raise UserError(f"{out} is no model name", "end it in .onnx")
    check_file(out, force)
    if out.exists() and out.resolve() == model.resolve():
        raise UserError(f"{out} is the model itself", "choose another --out")
    choice = attention_choice(attention)
    loaded = load(model, size=parse_size(size), keep_head=keep_head, attention=choice, head=head)
    write_file(out, proto_bytes(loaded.to_stock()), force=force)
    outputs = [(str(v.name), "x".join(str(d) for d in v.shape or ())) for v in loaded.ir.graph.outputs]
    if json:
        print_json(
            {
                "model": str(out),
                "task": loaded.task,
                "outputs": dict(outputs),
                "notes": list(loaded.notes),
                "difference": loaded.difference,
            }
        )
        return
    for note in loaded.notes:
        say(f"- {note}")
    worst = ", ".join(f"{name} {value:.2g}" for name, value in loaded.difference.items())
    say(f"- largest difference to {loaded.source} on a random image: {worst}")
    print_table("", ("output", "shape"), outputs, 2)
    say(f"{out} written")
    suggest(("narrowcast", "quantize", out, "--images", "FOLDER", "--out", out.with_suffix("")))


def attention_choice(text: str) -> Literal["keep", "rewrite"]:
    """``keep`` or ``rewrite``.

    Raises:
        UserError: anything else.
    """
    if text == "keep":
        return "keep"
    if text == "rewrite":
        return "rewrite"
    raise UserError(f"--attention {text} is unknown", "use keep or rewrite")


@app.command()
def targets(json: Json = False) -> None:
    """List the chips."""
    from narrowcast.chips import load_target, target_names

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
    suggest(("narrowcast", "check", "MODEL.onnx", "--target", found[0].name))


@app.command()
def check(
    model: Annotated[Path, typer.Argument(help="ONNX file.")],
    target: TargetName = "onnx",
    size: Size = None,
    keep_head: KeepHead = False,
    head: Head = "",
    attention: Attention = "keep",
    runtime: Runtime = None,
    everything: Annotated[bool, typer.Option("--all", help="Every node, not only those that need attention.")] = False,
    json: Json = False,
) -> None:
    """Say where every node will run on a chip.

    Says what to do about those that cannot; takes a second.
    """
    from narrowcast.base.progress import phase

    with phase("start"):
        from narrowcast.bundle.check import check
        from narrowcast.chips import load_target
        from narrowcast.graph import load
    chip = load_target(target)  # a wrong name is said before anything slow
    choice = attention_choice(attention)
    loaded = load(model, size=parse_size(size), keep_head=keep_head, attention=choice, head=head)
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
        again = (*(("--size", size) if size is not None else ()), *(("--head", head) if head else ()))
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
