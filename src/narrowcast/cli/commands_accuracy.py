"""Commands about accuracy. Heavy imports happen inside the commands, so that ``--help`` is instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from narrowcast.cli.root import (
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
)


@app.command()
def analyze(
    bundle: BundleFolder,
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
    from narrowcast.cli import analyze as command

    command.run(
        bundle, images, limit, graphwise=graphwise, layerwise=layerwise, ablate=ablate, sensitivity=sensitivity,
        evaluation=evaluation, out=out, json=json, quiet=quiet, force=force, threads=threads,
        strict=strict_images,
    )  # fmt: skip


@app.command()
def tune(
    bundle: BundleFolder,
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
    from narrowcast.cli import tune as command

    command.run(
        bundle, images, annotations=annotations, labels=labels, max_drop=max_drop, int16_budget=int16_budget,
        budget_unit=budget_unit, metric=metric, out=out, limit=limit, loss_images=loss_images,
        skip_missing=skip_missing, workers=workers, fresh=fresh, force=force, json=json, quiet=quiet,
        strict=strict_images,
    )  # fmt: skip


@app.command()
def finetune(
    bundle: BundleFolder,
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
    from narrowcast.cli import finetune as command

    command.run(
        bundle, images, steps=steps, batch=batch, scope=scope, rate=rate, scale_rate=scale_rate, limit=limit,
        seed=seed, device=device, out=out, force=force, threads=threads, json=json, quiet=quiet,
        strict=strict_images,
    )  # fmt: skip
