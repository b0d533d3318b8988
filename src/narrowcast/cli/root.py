"""The application that all commands register on, and the options that several of them have."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Annotations", "Attention", "BundleFolder", "Color", "Engine", "Force", "Fresh", "Json", "KeepHead", "Labels",
    "Limit", "Mean", "Quiet", "Resize", "Runtime", "Scale", "Size", "SkipMissing", "StrictImages", "TargetName",
    "Threads", "Workers", "app",
]  # fmt: skip

app = typer.Typer(
    name="narrowcast",
    help="Turn a trained vision model into 8/16-bit integers for an edge chip, and see what the chip will compute.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

BundleFolder = Annotated[Path, typer.Argument(help="Bundle folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no hint at what to do next.")]
TargetName = Annotated[
    str, typer.Option("--target", "-t", help="Chip: a name (see 'narrowcast targets') or a YAML file.")
]
Size = Annotated[str | None, typer.Option(help="HEIGHTxWIDTH of the input, for a model with dynamic axes.")]
KeepHead = Annotated[bool, typer.Option("--keep-head", help="Do not cut the decode arithmetic off.")]
Mean = Annotated[str | None, typer.Option(help="Subtracted, pixel units: one value, or one a channel.")]
Scale = Annotated[str | None, typer.Option(help="Factor after the mean: one value, or one a channel.")]
Color = Annotated[str | None, typer.Option(help="What the model eats: rgb, bgr or gray.")]
Resize = Annotated[str | None, typer.Option(help="letterbox, stretch or center-crop.")]
Engine = Annotated[str | None, typer.Option(help="integer, qdq or float [the first that the bundle has].")]
Limit = Annotated[int | None, typer.Option(help="Use at most this many images, spread evenly.", min=1)]
Annotations = Annotated[Path | None, typer.Option(help="COCO JSON: instances or person_keypoints.")]
Labels = Annotated[Path | None, typer.Option(help="For classifiers: lines of 'file index'.")]
SkipMissing = Annotated[bool, typer.Option("--skip-missing", help="Annotated images may be missing.")]
StrictImages = Annotated[
    bool, typer.Option("--strict-images", help="Stop at an unreadable image instead of leaving it out.")
]
Workers = Annotated[int | None, typer.Option(help="Images in work at once [one a core].", min=1)]
Fresh = Annotated[bool, typer.Option("--fresh", help="Do not go on from an interrupted run.")]
Runtime = Annotated[str | None, typer.Option(help="Version of the chip's runtime; the newest known by default.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Threads = Annotated[int, typer.Option(help="Threads of onnxruntime; 0 for all cores.", min=0)]
Attention = Annotated[str, typer.Option(help="keep, or rewrite: Softmax as operators that stay on the chip.")]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from narrowcast import __version__

        sys.stdout.write(f"narrowcast {__version__}\n")
        raise typer.Exit
