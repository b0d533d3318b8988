"""The command ``analyze``."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from narrowcast.base.errors import UserError, printable
from narrowcast.cli.options import BundleFolder, Force, Json, Quiet, StrictImages, Threads, app, beside
from narrowcast.cli.quantize import wider
from narrowcast.cli.tables import decibel, print_json, print_table, say, suggest

if TYPE_CHECKING:
    from narrowcast.analyze import Analysis
    from narrowcast.analyze.drawing import Pair
    from narrowcast.analyze.measure import Effect
    from narrowcast.bundle import Bundle
    from narrowcast.calibrate import ImageSet

#: Rows of a table on the terminal; the report has all.
_ROWS = 12
#: Pictures in the report.
_PICTURES = 4


@app.command()
def analyze(
    path: BundleFolder,
    images: Annotated[
        Path | None,
        typer.Option(help="Images, not those of the calibration; no labels [embedded ones]."),
    ] = None,
    limit: Annotated[int, typer.Option(help="How many of them.", min=1)] = 8,
    graphwise: Annotated[bool, typer.Option("--graphwise", help="Error of every tensor, all quantized.")] = False,
    layerwise: Annotated[bool, typer.Option("--layerwise", help="Error of the outputs, one node quantized.")] = False,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Weights, activations, head, backbone, branches alone.")
    ] = False,
    sensitivity: Annotated[bool, typer.Option("--sensitivity", help="What 16 bits at one node buy and cost.")] = False,
    evaluation: Annotated[
        Path | None, typer.Option(help="Report of 'evaluate --json', for the verdict on top.")
    ] = None,
    strict_images: StrictImages = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="HTML file [<bundle>-report.html].")] = None,
    force: Force = False,
    threads: Threads = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say where the accuracy goes, and write an HTML report.

    With what to do about it.
    """
    from narrowcast.base.progress import phase, set_quiet

    set_quiet(quiet or json)
    with phase("start"):
        from narrowcast.analyze import analyze
        from narrowcast.analyze.report import write_report
        from narrowcast.base.writing import check_file
        from narrowcast.bundle import open_bundle
        from narrowcast.bundle.analysis import subject_of, telling_images
        from narrowcast.calibrate import images as find_images
        from narrowcast.zoo import sample
    bundle = open_bundle(path)
    file = out or beside(path, "-report.html")
    check_file(file, force)
    scores = _evaluation(evaluation)
    source = images or sample(bundle.manifest.meaning.sample).validation
    found = find_images(source, bundle.manifest.preprocess, strict=strict_images)
    chosen, notes = telling_images(bundle, found, limit)
    if images is None:
        notes = (*notes, "these are drawings that come with narrowcast: give photographs with --images")
    everything = not (graphwise or layerwise or ablate or sensitivity)
    result = analyze(
        subject_of(bundle, chosen),
        graph=graphwise or everything,
        layers="all" if layerwise else "products" if everything else "none",
        parts=ablate or everything,
        wide=sensitivity,
        threads=threads,
        notes=notes,
    )
    if json:
        print_json(result.to_dict())
    else:
        print_analysis(result, bundle.manifest.target)
    with phase("draw"):
        pictures = _pictures(bundle, chosen)
    write_report(file, result, json_module.loads(bundle.manifest.to_json()), bundle.plan, pictures, scores)
    if not json:
        say(f"report: {file}")
        if images is not None:
            suggest(*wider(bundle, images))


def _evaluation(file: Path | None) -> dict[str, Any] | None:
    """What ``narrowcast evaluate --json`` printed."""
    if file is None:
        return None
    from narrowcast.base.reading import read_json, typed
    from narrowcast.evaluate import Report

    remedy = "give what 'narrowcast evaluate --json' printed"
    report = typed(Report, read_json(file, remedy), file, remedy)
    if not all(metrics.values for row in report.rows for metrics in row.metrics):
        raise UserError(f"{file} holds metrics without values", remedy)
    return report.to_dict()


def _pictures(bundle: Bundle, images: ImageSet) -> list[Pair]:
    """Float beside quantized; none where the images are tensors or the outputs have no meaning."""
    import numpy as np

    from narrowcast.analyze.drawing import pair
    from narrowcast.vision import read_image

    manifest = bundle.manifest
    if not manifest.meaning.known:
        return []
    found: list[Pair] = []
    for source in images.sources:
        if (isinstance(source, np.ndarray) and source.dtype != np.uint8) or str(source).endswith(".npy"):
            continue
        pixels = source if isinstance(source, np.ndarray) else read_image(source)
        name = source.name if isinstance(source, Path) else f"image {len(found) + 1}"
        results = bundle.floating.predict(pixels), bundle.quantized.predict(pixels)
        found.append(pair(name, pixels, *results, manifest.classes, manifest.skeleton))
    found.sort(key=lambda entry: (-entry.difference, entry.name))
    return found[:_PICTURES]


def _effect_table(title: str, effects: list[Effect], first: str) -> None:
    from narrowcast.tasks import shown

    columns = [quantity for quantity in shown(effect.task for effect in effects) if quantity.short != "-"]
    rows = [
        (
            effect.name,
            f"{effect.task.loss:.4f}",
            *(q.text(effect.task.values[q.name]) if q.name in effect.task.values else "-" for q in columns),
            f"{effect.noise_ratio:.1e}",
            decibel(effect.worst_db),
            f"{effect.cosine:.5f}",
        )
        for effect in effects
    ]
    parts = (quantity.short or quantity.heading.replace(" - ", "-") for quantity in columns)
    headings = (first, "task loss", *parts, "noise ratio", "worst dB", "worst cos")
    print_table(title, headings, rows)


def print_analysis(result: Analysis, target: str) -> None:
    """Tables, then findings."""
    for note in result.notes:
        say(f"- {note}")
    if result.resolution:
        rows = [(r.name, r.dtype, r.quantity, f"{r.per_lsb:.3g} {r.unit}") for r in result.resolution]
        print_table(f"what one step of an output is worth on {target}", ("output", "type", "of", "one step"), rows, 3)
    parts = [entry.only for entry in result.ablation] or [result.everything]
    _effect_table(f"with only this quantized ({result.detections} objects)", parts, "part")
    without = [entry for entry in result.ablation if entry.without is not None]
    if without:
        _effect_table("with everything quantized but this", [e.without for e in without if e.without], "part")
    if result.layers:
        worst = sorted(result.layers, key=lambda effect: (-effect.task.loss, effect.name))[:_ROWS]
        _effect_table(f"only this node quantized, the worst {len(worst)} of {len(result.layers)}", worst, "node")
    if result.tensors:
        noisy = sorted(result.tensors, key=lambda entry: (entry.noise.sqnr_db, entry.name))[:_ROWS]
        cells = [
            (
                t.name,
                t.op,
                t.dtype,
                decibel(t.noise.sqnr_db),
                decibel(t.own_db),
                f"{t.clipped:.3%}",
                f"{t.unused_bits:.1f}",
            )
            for t in noisy
        ]
        headings = ("tensor", "of", "type", "so far dB", "own dB", "clipped", "unused bits")
        print_table(f"the noisiest {len(noisy)} of {len(result.tensors)} tensors", headings, cells, 3)
    if result.sensitivity:
        best = sorted(result.sensitivity, key=lambda entry: (-entry.gain, entry.name))[:_ROWS]
        chosen = {entry.name for entry in result.chosen}
        rows = [(e.name, "yes" if e.name in chosen else "", f"{e.gain:.4f}", f"{e.cost:.2%}") for e in best]
        print_table("at 16 bits, everything else as planned", ("node", "chosen", "gain", "of all MACs"), rows, 2)
    say("")
    for index, finding in enumerate(result.findings, 1):
        say(f"{index}. {finding.text}")
        if finding.command:
            sys.stdout.write(f"   {printable(finding.command)}\n")  # whole, so that it can be pasted
