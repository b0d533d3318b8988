"""The command ``quantize``."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from narrowcast.cli.options import change_preprocessing, parse_size
from narrowcast.cli.tables import comparison_table, print_json, say

if TYPE_CHECKING:
    from narrowcast.bundle import Bundle
    from narrowcast.config import QuantizeSettings
    from narrowcast.plan import Pins

__all__ = ["report", "run"]


def run(
    config: Path | None, options: Mapping[str, Any], *, force: bool, verbose: bool, json: bool, quiet: bool
) -> None:
    """Quantize and print the comparison."""
    from narrowcast import bundle as bundles
    from narrowcast.bundle.folder import check_out
    from narrowcast.calibrate import images as find_images
    from narrowcast.config import read_settings
    from narrowcast.graph import load
    from narrowcast.progress import set_quiet
    from narrowcast.targets import load_target

    set_quiet(quiet or json)
    start = time.perf_counter()
    settings = read_settings(config, options)
    load_target(settings.target)  # a wrong name is said before anything slow
    check_out(settings.out, force)
    pins = _pins(settings)
    loaded = load(settings.model, size=parse_size(settings.size), keep_head=settings.keep_head)
    changes = {name: getattr(settings, name) for name in ("mean", "scale", "color", "resize", "camera")}
    loaded = replace(loaded, preprocess=change_preprocessing(loaded.preprocess, changes))
    found = find_images(settings.images, loaded.preprocess, limit=settings.limit)
    bundle = bundles.quantize(
        loaded,
        found,
        settings.target,
        out=settings.out,
        method=settings.method,
        percentile=settings.percentile,
        pins=pins,
        runtime=settings.runtime,
        force=force,
        threads=settings.threads,
        command=_command(sys.argv),
    )
    if json:
        seconds = round(time.perf_counter() - start, 2)
        print_json({"bundle": str(settings.out), **_summary(bundle), "seconds": seconds})
        return
    report(bundle, verbose)
    say(f"{settings.out} written in {time.perf_counter() - start:.1f} s")


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


def _pins(settings: QuantizeSettings) -> Pins:
    from narrowcast.plan import Pins, read_pins

    base = read_pins(settings.plan) if settings.plan is not None else Pins()
    nodes = {**dict.fromkeys(settings.int16, "int16"), **dict.fromkeys(settings.float_, "float32")}
    return base.merged(Pins(nodes))


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
