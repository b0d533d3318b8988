"""The command ``tune``.

The command ``finetune``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from narrowcast.base.errors import UserError
from narrowcast.base.progress import on_interrupt
from narrowcast.cli.options import (
    Annotations,
    BundleFolder,
    Force,
    Fresh,
    Json,
    Labels,
    Limit,
    Quiet,
    SkipMissing,
    StrictImages,
    Threads,
    Workers,
    app,
    beside,
    labelled_images,
)
from narrowcast.cli.quantize import after
from narrowcast.cli.tables import print_json, print_table, say, suggest

if TYPE_CHECKING:
    from narrowcast.bundle import Bundle
    from narrowcast.evaluate.tune import Wish


@app.command()
def tune(
    path: BundleFolder,
    images: Annotated[Path, typer.Option(help="Images; no labels needed, better with them.")],
    annotations: Annotations = None,
    labels: Labels = None,
    max_drop: Annotated[str, typer.Option(help="The most that the metric may drop against float.")] = "1%",
    int16_budget: Annotated[str, typer.Option(help="What may run at 16 bits: a share or a count.")] = "10%",
    budget_unit: Annotated[str, typer.Option(help="What the budget counts: convolutions or macs.")] = "convolutions",
    metric: Annotated[str | None, typer.Option(help="keypoints.AP, box.AP, mask.AP or top1 [the task's own].")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write [<bundle>-tuned].")] = None,
    limit: Annotated[int, typer.Option(help="Labelled images at most; half choose, half report.", min=2)] = 200,
    loss_images: Annotated[
        int | None, typer.Option(help="Images on which sets are compared [20 at 640x640, more below].", min=2)
    ] = None,
    skip_missing: SkipMissing = False,
    strict_images: StrictImages = False,
    workers: Workers = None,
    fresh: Fresh = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Give 16 bits to the nodes that gain most by it.

    As many as it takes until the drop is small enough, within a budget.
    """
    from narrowcast.base.progress import phase, set_quiet

    set_quiet(quiet or json)
    with phase("start"):
        from narrowcast.bundle import open_bundle
        from narrowcast.bundle.manifest import check_out
        from narrowcast.calibrate import images as find_images
        from narrowcast.evaluate.tune import tune
    bundle = open_bundle(path)
    labelled = annotations is not None or labels is not None
    wish = _wish(bundle, max_drop, int16_budget, budget_unit, metric, labelled)
    folder = out or beside(path, "-tuned")
    check_out(folder, force)
    if limit < 2:
        raise UserError(f"a limit of {limit} labelled images cannot be halved", "give 2 or more")
    data = labelled_images(images, annotations, labels, limit=limit, skip_missing=skip_missing)
    found = find_images(images, bundle.manifest.preprocess, strict=strict_images)
    command = ["narrowcast", "tune", "--max-drop", max_drop, "--int16-budget", int16_budget]
    command += ["--budget-unit", budget_unit, *(["--metric", metric] if metric is not None else [])]
    with on_interrupt("interrupted: measurements are kept, the same command goes on from there"):
        tuned = tune(
            bundle, found, out=folder, wish=wish, data=data, loss_images=loss_images, workers=workers or 0,
            fresh=fresh, force=force, command=command,
        )  # fmt: skip
    if json:
        print_json({"bundle": str(folder), **tuned.manifest.calibration["tune"]})
    else:
        print_tuned(tuned)
        say(f"{folder} written")
        suggest(*after(tuned))


def _wish(bundle: Bundle, max_drop: str, budget: str, unit: str, metric: str | None, labelled: bool) -> Wish:
    """The options, checked."""
    from narrowcast.evaluate.tune import Wish
    from narrowcast.improve.tune import parse_share
    from narrowcast.improve.wider import BUDGET_UNITS

    drop, relative = parse_share(max_drop, "--max-drop")
    if not relative:
        raise UserError(f"--max-drop {max_drop} is no share below 1", "write it as 1% or 0.01")
    target, meaning = bundle.manifest.target, bundle.manifest.meaning
    if unit not in BUDGET_UNITS:
        why = f"{target} has no cost model" if unit == "latency" else f"a budget cannot count {unit!r}"
        raise UserError(why, f"use {' or '.join(BUDGET_UNITS)}")
    number, is_share = parse_share(budget, "--int16-budget")
    if unit == "macs" and not is_share:
        raise UserError(f"--int16-budget {budget} is no share of the multiplications", "write it as 10%")
    known = meaning.metrics
    if metric is not None and metric not in known:
        raise UserError(f"a {meaning.name} model has no metric {metric!r}", f"use {', '.join(known) or 'none'}")
    if metric is not None and not labelled:
        remedy = f"give {meaning.labels[0]}, or leave --metric out to tune without"
        raise UserError(f"{metric} needs labelled images", remedy)
    return Wish(drop, number, unit, known[metric] if metric is not None else None)


def print_tuned(tuned: Bundle) -> None:
    """What each step bought, then the result in one line."""
    record = tuned.manifest.calibration["tune"]
    unit = record["wish"]["unit"]
    rows = []
    for index, step in enumerate(record["steps"]):
        drop = "" if step["drop"] is None else f"{step['drop']:.2%}"
        kept = "kept" if index <= record["kept_steps"] else "not needed"
        cost = f"{step['cost']:.0f}" if unit == "convolutions" else f"{step['share']:.2%}"
        gain = f"{step['gain']:.4f}" if index else ""
        rows.append(
            (step["action"], step["name"], kept, gain, f"{step['loss']:.4f}", drop, cost, f"{step['share']:.1%}")
        )
    images = len(record["images"]["choose"])
    columns = ("step", "of", "", "gain", "task loss", "drop", unit, "share")
    print_table(f"16 bits on {tuned.manifest.target}, chosen on {images} images", columns, rows, 3)
    for text in (*record["image_notes"], *_reported(record["report"])):
        say(f"- {text}")
    say(_last(record))


def _reported(report: dict[str, Any]) -> list[str]:
    """What the images say that chose nothing."""
    before, after = report["before"], report["after"]
    found = [f"on images that chose nothing the task loss goes from {before['loss']:.4f} to {after['loss']:.4f}"]
    for row in report.get("metrics", {}).get("rows", ()):
        for metrics in row["metrics"]:
            name, value = next(iter(metrics["values"].items()))
            if metrics["retention"] is not None and value is not None:
                low, high = metrics["retention_interval"] or (0.0, 0.0)
                kept = f"{metrics['retention']:.1%} of float [{low:.1%}, {high:.1%}]"
                found.append(f"{row['name']}: {metrics['family']} {name} {value:.2%}, {kept}")
    return found


def _last(record: dict[str, Any]) -> str:
    """The result in one line."""
    steps, report = record["steps"], record["report"]
    convolutions, macs = (record["cost"][unit] for unit in ("convolutions", "macs"))
    wide = f"{convolutions['wide']:.0f} of {convolutions['total']:.0f} convolutions at 16 bits"
    wide += f", {macs['share']:.1%} of MACs"
    drop = steps[record["kept_steps"]]["drop"]
    allowed = record["wish"]["max_drop"]
    met = "met" if drop is not None and drop <= allowed else "not met within the budget"
    before, after = report["before"]["drop"], report["after"]["drop"]
    if "metrics" in report:
        before, after = (1 - _retention(report, name) for name in ("before", "after"))
    return f"drop {before:.2%} -> {after:.2%} (at most {allowed:.2%} wanted: {met} on the choosing half); {wide}"


def _retention(report: dict[str, Any], name: str) -> float:
    """Of the first metric of a row."""
    row = next(row for row in report["metrics"]["rows"] if row["name"] == name)
    value = row["metrics"][0]["retention"]
    return 1.0 if value is None else float(value)


@app.command()
def finetune(
    path: BundleFolder,
    images: Annotated[Path, typer.Option(help="Images; no labels needed. 50 or more.")],
    steps: Annotated[int | None, typer.Option(help="Steps of the optimizer [200].", min=1)] = None,
    batch: Annotated[int | None, typer.Option(help="Images a step [4].", min=1)] = None,
    scope: Annotated[str | None, typer.Option(help="all weights, or branches: those of one output each [all].")] = None,
    rate: Annotated[float | None, typer.Option(help="Largest change of a weight in a step, in its steps.")] = None,
    scale_rate: Annotated[float | None, typer.Option(help="The same for the logarithm of scales [0].")] = None,
    limit: Limit = None,
    strict_images: StrictImages = False,
    seed: Annotated[int, typer.Option(help="Order of the images.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write [<bundle>-finetuned].")] = None,
    force: Force = False,
    threads: Threads = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Teach the quantized network with the float one.

    On images without labels; needs PyTorch: pip install narrowcast[finetune].
    """
    from narrowcast.base.progress import phase, set_quiet

    set_quiet(quiet or json)
    with phase("start"):
        from narrowcast.bundle import open_bundle
        from narrowcast.bundle.finetune import finetune
        from narrowcast.bundle.manifest import check_out
        from narrowcast.calibrate import images as find_images
        from narrowcast.improve.finetune import Settings, require_torch
    require_torch()
    bundle = open_bundle(path)
    given: dict[str, Any] = {"steps": steps, "batch": batch, "scope": scope, "rate": rate, "scale_rate": scale_rate}
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = Settings(**chosen, seed=seed, device=device)
    folder = out or beside(path, "-finetuned")
    check_out(folder, force)
    found = find_images(images, bundle.manifest.preprocess, limit=limit, strict=strict_images)
    command = ["narrowcast", "finetune", *(f"--{name.replace('_', '-')}={value}" for name, value in chosen.items())]
    options: dict[str, Any] = {"force": force, "threads": threads, "command": command}
    with on_interrupt("interrupted: nothing was written"):
        result = finetune(bundle, found, out=folder, settings=settings, **options)
    if json:
        print_json({"bundle": str(folder), **result.manifest.calibration["finetune"]})
    else:
        print_finetuned(result)
        say(f"{folder} written")
        suggest(*after(result))


def print_finetuned(bundle: Bundle) -> None:
    """Error before and after on the judging images, then the result in one line."""
    from narrowcast.tasks import shown

    quantities = sorted(shown(), key=lambda quantity: not (quantity.similarity and quantity.weight))
    record = bundle.manifest.calibration["finetune"]
    before, after = record["before"], record["after"]
    rows = [
        [name.replace("_", " "), f"{before[name]:.{digits}f}", f"{after[name]:.{digits}f}"]
        for name, digits in {"loss": 4, **{q.name: q.digits for q in quantities}}.items()
        if before.get(name) is not None and after.get(name) is not None
    ]
    for note in record["image_notes"]:
        say(f"- {note}")
    count = len(record["images"]["judge"])
    print_table(f"error on {count} images that taught nothing, {record['judged_by']}", ["", "before", "after"], rows)
    if not record["kept_step"]:
        say("nothing was better than the start: the weights are unchanged; try more images or another --rate")
        return
    change = after["loss"] / before["loss"] - 1 if before["loss"] else 0.0
    say(f"loss {before['loss']:.4f} -> {after['loss']:.4f} ({change:+.0%}) after {record['kept_step']} steps")
