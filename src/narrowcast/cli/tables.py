"""Tables and JSON on the one console; among them the tables that users of hb_mapper know: nodes, outputs, and the
candidates of the calibration search."""

from __future__ import annotations

import json as json_module
import math
import os
import shlex
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from narrowcast.base.errors import printable
from narrowcast.base.progress import is_quiet

if TYPE_CHECKING:
    from narrowcast.bundle import Bundle


#: How notes begin that nobody should miss.
WARNING = "WARNING: "
#: Lines of a cell in a table, and characters of a cell that shares its line in a paragraph; at most.
_TALL, _SHORT = 4, 32


def console() -> Console:
    """Standard output; wide enough for full names when it is no terminal and nobody says how wide it is.

    Nothing in a text is a command to it.
    """
    terminal = sys.stdout.isatty()
    known = terminal or "COLUMNS" in os.environ
    return Console(
        highlight=False, markup=False, emoji=False, width=None if known else 160, soft_wrap=not terminal
    )


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


def suggest(*commands: Sequence[object], why: str = "next") -> None:
    """What a person may type next, one command a line that can be pasted; nothing with ``--quiet`` and ``--json``.

    Args:
        commands: words of each; what has to be filled in is written in capitals.
        why: heading.
    """
    if is_quiet() or not commands:
        return
    say(f"{why}:")
    for words in commands:
        line = shlex.join(str(word) for word in words)
        sys.stdout.write(f"  {printable(line)}\n")  # a console would break it


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
    """A table whose first ``left`` columns are text and the rest numbers.

    Where it is wider than the console, cells wrap at spaces; then the first cell gets a line of its own; then every row
    becomes a paragraph. Nothing is cut off and no name is broken.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    lines, width = [list(map(printable, columns)), *cells], console().width
    if title:
        say(title)
    if sum(_natural(lines)) + 3 * len(columns) + 1 <= width:
        table = Table(header_style="bold", pad_edge=False)
        for index, column in enumerate(columns):
            table.add_column(printable(column), justify="left" if index < left else "right")
        for row in cells:
            table.add_row(*row)
        console().print(table)
        return
    for first in (0, 1):
        rest = [line[first:] for line in lines]
        widths = _wrapped(rest, width - 2 * (len(rest[0]) - 1))
        if widths is not None:
            text = _aligned(lines, widths, left, first)
            break
    else:
        text = [line for row in cells for line in _paragraph(lines[0], row, width)]
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in text))


def _natural(lines: Sequence[Sequence[str]]) -> list[int]:
    """Width of every column when nothing wraps."""
    return [max(cell_len(line[index]) for line in lines) for index in range(len(lines[0]))]


def _wrapped(lines: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """Widths that fit into ``room`` without breaking a word or making a cell tall, ``None`` where there are none."""
    natural = _natural(lines)
    widths = [max(cell_len(word) for line in lines for word in (line[i].split() or [""])) for i in range(len(natural))]
    if sum(widths) > room:
        return None
    while sum(widths) < min(room, sum(natural)):
        widths[max(range(len(widths)), key=lambda index: natural[index] / max(widths[index], 1))] += 1
    return widths if all(whole <= _TALL * given for whole, given in zip(natural, widths, strict=True)) else None


def _aligned(lines: Sequence[Sequence[str]], widths: Sequence[int], left: int, first: int) -> list[str]:
    """Lines of a table without a frame; ``first`` cells of each row stand above it, once for equal ones."""
    result: list[str] = []
    above: Sequence[str] = ()
    for number, line in enumerate(lines):
        if line[:first] != above:
            above = line[:first]
            result += above
        cells = [textwrap.wrap(cell, width) for cell, width in zip(line[first:], widths, strict=True)]
        for row in range(max(1, *map(len, cells))):
            parts = [cell[row] if row < len(cell) else "" for cell in cells]
            padded = [
                part.ljust(width) if index + first < left else part.rjust(width)
                for index, (part, width) in enumerate(zip(parts, widths, strict=True))
            ]
            result.append("  ".join(padded))
        if not number:
            result.append("\u2500" * len(result[-1]))
    return result


def _paragraph(columns: Sequence[str], row: Sequence[str], width: int) -> list[str]:
    """The first cell, then short cells together and long ones each on lines of their own."""
    named = [f"{column} {cell}".strip() for column, cell in zip(columns, row, strict=True) if cell]
    entries = named[1:] if row[0] else named
    short = ", ".join(entry for entry in entries if len(entry) <= _SHORT)
    result = [row[0]] if row[0] else []
    for line in filter(None, (short, *(entry for entry in entries if len(entry) > _SHORT))):
        result += textwrap.wrap(
            line, max(width, 40), initial_indent="  ", subsequent_indent="    ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    return result


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


NODE_COLUMNS = ("Node", "ON", "Subgraph", "Type", "Cosine", "SQNR dB", "Threshold", "In/Out DataType")


def node_rows(bundle: Bundle) -> list[tuple[str, ...]]:
    """One row a node: name, unit, subgraph, operator, cosine, SQNR, threshold of its input, types.

    The threshold is what the vendor prints: the largest real number that the input's encoding holds (scale * 127 at
    8 bits). ``--`` stands where a tensor exists only in float, in an accumulator or inside a fused unit.
    """
    from narrowcast.chips.placement import place, subgraphs
    from narrowcast.plan.drafting import read_encoding

    graph, plan = bundle.model.ir.graph, bundle.plan
    target = bundle.target
    pinned = {name: entry.type for name, entry in plan.nodes.items()}
    ids = subgraphs(graph, target, place(graph, target, None, pinned.get))
    noise = bundle.noise | {entry["name"]: entry for entry in bundle.manifest.comparison}
    rows: list[tuple[str, ...]] = []
    for node in graph:
        name, placement = str(node.name), plan.nodes[str(node.name)]
        output = str(node.outputs[0].name)
        source = read_encoding(node, 0, plan.tensors, plan.edges)
        result = plan.tensors.get(output)
        entry = noise.get(output)
        threshold = "--" if source is None or source.axis is not None else f"{source.qmax * float(source.scales):.6g}"
        kinds = f"{source.dtype if source else 'float'}/{result.dtype if result else placement.type}"
        rows.append(
            (
                name, placement.unit, ids[name], node.op_type, f"{entry['cosine']:.6f}" if entry else "--",
                decibel(entry["sqnr_db"]) if entry else "--", threshold, kinds,
            )
        )  # fmt: skip
    return rows


def node_table(bundle: Bundle) -> None:
    """Print :func:`node_rows`."""
    print_table(f"Nodes, float against integers on {bundle.manifest.compared_on}", NODE_COLUMNS, node_rows(bundle), 4)


def output_table(bundle: Bundle) -> None:
    """Cosine, L1, L2 and Chebyshev distance of every output as the vendor prints them, and the SQNR.

    L1 is the mean absolute difference, L2 the Euclidean norm of the differences divided by their number (inferred
    from published tables), Chebyshev the largest difference.
    """
    sizes = {out.name: math.prod(out.shape) for out in bundle.manifest.outputs}
    rows = []
    for entry in bundle.manifest.comparison:
        rms = entry.get("rms", 0.0)
        second = rms / math.sqrt(sizes.get(entry["name"], 1))
        rows.append(
            (
                entry["name"], f"{entry['cosine']:.6f}", f"{entry['mean_abs']:.6f}", f"{second:.6f}",
                f"{entry['max_abs']:.6f}", decibel(entry["sqnr_db"]),
            )
        )  # fmt: skip
    title = f"Outputs on {bundle.manifest.compared_on}"
    print_table(title, ("Output", "Cosine", "L1", "L2", "Chebyshev", "SQNR dB"), rows)


def search_table(search: Mapping[str, Any] | None, scores: Mapping[str, float]) -> None:
    """The vendor's default search and the method ``auto``, candidate by candidate; nothing without a search."""
    if search is None:
        return
    rows = []
    for entry in search["candidates"]:
        name = entry["name"]
        cosine = "--" if entry["cosine"] is None else f"{entry['cosine']:.6f}"
        score = f"{scores[name]:.2f}" if name in scores else "--"
        mark = "selected by the vendor's rule" if name == search["selected"] else entry["skipped"]
        rows.append((name, mark, cosine, score))
    tried = {entry["name"] for entry in search["candidates"]}
    rows += [(name, "auto", "--", f"{value:.2f}") for name, value in scores.items() if name not in tried]
    print_table("Calibration search", ("candidate", "", "cosine, first sample", "SQNR dB, outputs"), rows, 2)
    say("- the cosine ends the vendor's search; ranges are kept by the SQNR on several images")
