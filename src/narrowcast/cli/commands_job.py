"""The commands of the main job. Heavy imports happen inside the commands, so that ``--help`` is instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from narrowcast.cli.root import (
    Annotations,
    Attention,
    Color,
    Engine,
    Force,
    Fresh,
    Json,
    KeepHead,
    Labels,
    Limit,
    Mean,
    Quiet,
    Resize,
    Runtime,
    Scale,
    Size,
    SkipMissing,
    StrictImages,
    TargetName,
    Workers,
    app,
)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for what the demo writes.")] = Path("narrowcast-demo"),
    target: TargetName = "esp32p4",
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Do the whole job on embedded models and images, offline."""
    from narrowcast.cli import demo as command

    command.run(out, target, force, quiet)


@app.command()
def targets(json: Json = False) -> None:
    """List the chips."""
    from narrowcast.cli import tables

    tables.targets(json)


@app.command()
def check(
    model: Annotated[Path, typer.Argument(help="ONNX file.")],
    target: TargetName = "onnx",
    size: Size = None,
    keep_head: KeepHead = False,
    attention: Attention = "keep",
    runtime: Runtime = None,
    everything: Annotated[bool, typer.Option("--all", help="Every node, not only those that need attention.")] = False,
    json: Json = False,
) -> None:
    """Say where every node will run on a chip.

    Says what to do about those that cannot; takes a second.
    """
    from narrowcast.cli import check as command

    command.run(model, target, size, keep_head, runtime, everything, json, attention)


@app.command()
def prepare(
    model: Annotated[Path, typer.Argument(help="ONNX file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="ONNX file to write.")],
    attention: Attention = "keep",
    size: Size = None,
    keep_head: KeepHead = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write the tidied float graph that quantize works on.

    The decode head is cut off, constants are folded, operators are stock ones.
    """
    from narrowcast.cli import prepare as command

    command.run(model, out, attention, size, keep_head, force=force, json=json)


@app.command()
def quantize(
    model: Annotated[
        Path | None, typer.Argument(help="Float model: ONNX file, or .pt with your own 'yolo' command.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Calibration images: a folder, a list file, or a .npy batch of model inputs.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with any of these settings; options win.")] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="Chip: a name (see 'targets') or a YAML file [onnx]."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Calibration: auto, minmax, mean-minmax, percentile, kl, mse or lp [auto].")
    ] = None,
    percentile: Annotated[float | None, typer.Option(help="For the method 'percentile' [99.99].")] = None,
    limit: Limit = None,
    strict_images: StrictImages = False,
    plan: Annotated[Path | None, typer.Option(help="Edited plan.json whose types and pins are kept.")] = None,
    int16: Annotated[list[str] | None, typer.Option(help="Node (or pattern with *) to run at 16 bits.")] = None,
    float_: Annotated[list[str] | None, typer.Option("--float", help="Node (or pattern) to leave in float.")] = None,
    size: Size = None,
    mean: Mean = None,
    scale: Scale = None,
    color: Color = None,
    resize: Resize = None,
    camera: Annotated[str | None, typer.Option(help="Simulate the board's camera: nv12-full or nv12-studio.")] = None,
    keep_head: KeepHead = False,
    attention: Annotated[
        str | None, typer.Option(help="keep, or rewrite: Softmax as operators that stay on the chip [keep].")
    ] = None,
    effort: Annotated[
        str | None, typer.Option(help="fast: ranges only; standard: corrected weights too; max: longer [standard].")
    ] = None,
    search: Annotated[
        str | None, typer.Option(help="What the method auto tries: auto, or hb-mapper's candidates too [auto].")
    ] = None,
    output_factors: Annotated[
        bool | None,
        typer.Option("--output-factors", help="Outputs with a scale a channel [where the chip's readers can]."),
    ] = None,
    runtime: Runtime = None,
    force: Force = False,
    threads: Annotated[int | None, typer.Option(help="Threads of onnxruntime; 0 for all cores.", min=0)] = None,
    save_intermediates: Annotated[
        Path | None, typer.Option(help="Folder for the four models under hb_mapper's names.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also print a table of all tensors.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn a float model into integers and compare the two.

    Compared on images held back from calibration.
    """
    from narrowcast.cli import quantize as command

    options = {
        "model": model, "images": images, "out": out, "target": target, "method": method, "percentile": percentile,
        "limit": limit, "plan": plan, "int16": int16, "float": float_, "size": size, "mean": mean, "scale": scale,
        "color": color, "resize": resize, "camera": camera, "keep_head": keep_head or None, "runtime": runtime,
        "threads": threads, "attention": attention, "effort": effort, "search": search,
        "output_factors": output_factors,
    }  # fmt: skip
    command.run(
        config, options, force=force, verbose=verbose, json=json, quiet=quiet, save_intermediates=save_intermediates,
        strict=strict_images,
    )  # fmt: skip


@app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, float ONNX file, or any .espdl file.")],
    nodes: Annotated[bool, typer.Option("--nodes", help="Also every node: unit, type, scale, noise.")] = False,
    json: Json = False,
) -> None:
    """Show inputs, outputs, scales, placement and sizes."""
    from narrowcast.cli import inspect as command

    command.run(bundle, nodes, json)


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, or a float ONNX file.")],
    images: Annotated[Path, typer.Option(help="Folder of the labelled images.")],
    annotations: Annotations = None,
    labels: Labels = None,
    engine: Annotated[
        list[str] | None, typer.Option(help="Graph to score, several times: float, integer, qdq [float and integer].")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="ultralytics (score 0.001, NMS 0.7) or rdk (score 0.25, NMS 0.7).")
    ] = "ultralytics",
    conf: Annotated[float | None, typer.Option(help="Least score, instead of the protocol's.")] = None,
    iou: Annotated[float | None, typer.Option(help="Overlap above which two boxes are one object.")] = None,
    max_detections: Annotated[int | None, typer.Option(help="Detections an image at most [300].")] = None,
    limit: Annotated[int | None, typer.Option(help="Score this many images, drawn at random.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of the draw and of the intervals.", min=0)] = 0,
    camera: Annotated[
        str | None, typer.Option(help="What the board's camera format costs: rgb, nv12-full or nv12-studio.")
    ] = None,
    mean: Mean = None,
    scale: Scale = None,
    color: Color = None,
    resize: Resize = None,
    skip_missing: SkipMissing = False,
    workers: Workers = None,
    fresh: Fresh = False,
    save_predictions: Annotated[
        Path | None, typer.Option(help="COCO result JSON to write; '-float' and so on is added for several graphs.")
    ] = None,
    strict_images: StrictImages = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure AP or top-1 on labelled images.

    Float and quantized side by side, with 95 % intervals.
    """
    from narrowcast.cli import evaluate as command

    command.run(
        bundle, images, annotations, labels, engine or [],
        {"camera": camera, "mean": mean, "scale": scale, "color": color, "resize": resize},
        protocol=protocol, conf=conf, iou=iou, max_detections=max_detections, limit=limit, seed=seed,
        skip_missing=skip_missing, workers=workers, fresh=fresh, save_predictions=save_predictions, force=force,
        strict=strict_images, json=json, quiet=quiet,
    )  # fmt: skip


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, or a float ONNX file.")],
    image: Annotated[Path, typer.Argument(help="Image, folder of images, or video.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Picture, folder of pictures or .mp4 to write.")
    ] = None,
    conf: Annotated[float, typer.Option(help="Least score, 0..1.")] = 0.25,
    iou: Annotated[float, typer.Option(help="Overlap above which two boxes are one object.")] = 0.7,
    top_k: Annotated[int, typer.Option(help="Classes to show, for classifiers.", min=1)] = 5,
    engine: Engine = None,
    strict_images: StrictImages = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Detect or classify in images or a video.

    Prints what is found, draws boxes, masks and skeletons with --out.
    """
    from narrowcast.cli import predict as command

    command.run(
        bundle, image, out, conf=conf, iou=iou, top_k=top_k, engine=engine, force=force, json=json, quiet=quiet,
        strict=strict_images,
    )  # fmt: skip
