"""The command ``quantize``."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from narrowcast.cli.options import change_preprocessing, parse_size
from narrowcast.cli.tables import comparison_table, print_json, say

if TYPE_CHECKING:
    from narrowcast.bundle import Bundle
    from narrowcast.plan import Pins

__all__ = ["report", "run"]


def run(
    model: Path,
    images: Path,
    out: Path,
    target: str,
    *,
    method: str,
    percentile: float,
    limit: int | None,
    plan: Path | None,
    int16: Sequence[str],
    floats: Sequence[str],
    size: str | None,
    preprocessing: Mapping[str, str | None],
    keep_head: bool,
    runtime: str | None,
    force: bool,
    threads: int,
    verbose: bool,
    json: bool,
    quiet: bool,
) -> None:
    """Quantize and print the comparison."""
    from narrowcast import bundle as bundles
    from narrowcast.bundle.folder import check_out
    from narrowcast.calibrate import images as find_images
    from narrowcast.graph import load
    from narrowcast.progress import set_quiet
    from narrowcast.targets import load_target

    set_quiet(quiet or json)
    start = time.perf_counter()
    load_target(target)  # a wrong name is said before anything slow
    check_out(out, force)
    pins = _pins(plan, int16, floats)
    loaded = load(model, size=parse_size(size), keep_head=keep_head)
    loaded = replace(loaded, preprocess=change_preprocessing(loaded.preprocess, preprocessing))
    found = find_images(images, loaded.preprocess, limit=limit)
    bundle = bundles.quantize(
        loaded, found, target, out=out, method=method, percentile=percentile, pins=pins, runtime=runtime, force=force,
        threads=threads, command=_command(sys.argv),
    )  # fmt: skip
    if json:
        print_json({"bundle": str(out), **_summary(bundle), "seconds": round(time.perf_counter() - start, 2)})
        return
    report(bundle, verbose)
    say(f"{out} written in {time.perf_counter() - start:.1f} s")


def _command(arguments: Sequence[str]) -> list[str]:
    """The command line without what only says where the result goes, so that equal work gives equal bytes."""
    kept, skip = ["narrowcast"], False
    for argument in arguments[1:]:
        if skip:
            skip = False
        elif argument in ("--out", "-o"):
            skip = True
        elif argument not in ("--force", "--json", "--quiet", "-q", "--verbose", "-v") and not argument.startswith(
            "--out="
        ):
            kept.append(argument)
    return kept


def _pins(plan: Path | None, int16: Sequence[str], floats: Sequence[str]) -> Pins:
    from narrowcast.plan import Pins, read_pins

    base = read_pins(plan) if plan is not None else Pins()
    return base.merged(Pins({**dict.fromkeys(int16, "int16"), **dict.fromkeys(floats, "float32")}))


def _summary(bundle: Bundle) -> dict[str, object]:
    manifest = bundle.manifest
    return {
        "task": manifest.task,
        "target": manifest.target,
        "method": manifest.calibration["method"],
        "scores": manifest.calibration["mean_output_sqnr_db"],
        "difference_to_source": manifest.difference_to_source,
        "comparison": manifest.comparison,
        "notes": list(manifest.notes),
    }


def report(bundle: Bundle, verbose: bool) -> None:
    """Print what was done and how far the integers are from float."""
    import json

    from narrowcast.bundle.store import NODES_FILE

    manifest = bundle.manifest
    for note in manifest.notes:
        say(f"- {note}")
    worst = ", ".join(f"{name} {value:.2g}" for name, value in manifest.difference_to_source.items())
    say(f"- largest difference of the prepared float graph to {manifest.model['source']}: {worst}")
    record = manifest.calibration
    scores = ", ".join(f"{name} {value:.1f}" for name, value in record["mean_output_sqnr_db"].items())
    say(f"- ranges by {record['method']} (mean output SQNR in dB: {scores})")
    held = len(record["held_back"])
    if verbose:
        nodes = json.loads((bundle.path / NODES_FILE).read_text())
        comparison_table(f"Tensors, float against {manifest.target} integers", nodes, "tensor")
    comparison_table(
        f"Outputs, float against {manifest.target} integers, on {held} image{'s' if held != 1 else ''} "
        "held back from calibration",
        manifest.comparison,
        "output",
    )
