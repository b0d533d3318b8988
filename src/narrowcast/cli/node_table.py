"""The tables that users of hb_mapper know: nodes, outputs, and the candidates of the calibration search."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from narrowcast.cli.tables import decibel, print_table, say

if TYPE_CHECKING:
    from narrowcast.bundle import Bundle

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
