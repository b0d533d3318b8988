"""What several commands parse alike.

The application that all commands register on, and the options that several of them have.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from narrowcast.base.errors import UserError

if TYPE_CHECKING:
    from narrowcast.evaluate import CocoData, ImageNetData
    from narrowcast.vision.preprocess import Preprocess


app = typer.Typer(
    name="narrowcast",
    help="Turn a trained vision model into 8/16-bit integers for an edge chip, and see what the chip will compute.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no hint at what to do next.")]
TargetName = Annotated[
    str, typer.Option("--target", "-t", help="Chip: a name (see 'narrowcast targets') or a YAML file.")
]
Size = Annotated[str | None, typer.Option(help="HEIGHTxWIDTH of the input, for a model with dynamic axes.")]
KeepHead = Annotated[bool, typer.Option("--keep-head", help="Do not cut the decode arithmetic off.")]
Head = Annotated[
    str,
    typer.Option(help="What raw outputs are: detect, pose, segment; keypoints=17x3; box_s8=OUTPUT,cls_s8=OUTPUT,..."),
]
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


def beside(path: Path, ending: str) -> Path:
    """What is written by default: a name made from that of a bundle, in the folder where the bundle lies."""
    whole = path.absolute()
    return whole.with_name(f"{whole.name}{ending}")


def labelled_images(
    images: Path,
    annotations: Path | None,
    labels: Path | None,
    *,
    limit: int | None,
    seed: int = 0,
    skip_missing: bool = False,
) -> CocoData | ImageNetData | None:
    """Images with what ``--annotations`` or ``--labels`` says of them, ``None`` without either.

    Raises:
        UserError: both are given, or what reading them refuses.
    """
    from narrowcast.evaluate import coco, imagenet

    if annotations is not None and labels is not None:
        raise UserError("both --annotations and --labels are given", "give the one that fits the model")
    if annotations is not None:
        return coco(images, annotations, limit=limit, seed=seed, skip_missing=skip_missing)
    return imagenet(images, labels, limit=limit, seed=seed) if labels is not None else None


def check_head(bundle: Path, head: str) -> None:
    """Refuse ``--head`` for a bundle.

    Raises:
        UserError: it is given.
    """
    if head:
        raise UserError(f"--head is given, but {bundle} is a bundle, which knows its outputs", "give it to quantize")


def parse_size(text: str | None) -> tuple[int, int] | None:
    """``480x640`` (or ``640``) to height and width.

    Raises:
        UserError: anything else.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and len(part) < 7 and int(part) > 0 for part in parts):
        raise UserError(f"--size {text} is not understood", "write HEIGHTxWIDTH, such as 480x640")
    return int(parts[0]), int(parts[-1])


def change_preprocessing(spec: Preprocess, changes: Mapping[str, str | float | tuple[float, ...] | None]) -> Preprocess:
    """The model's own preprocessing with what the person asked for.

    Raises:
        UserError: an impossible value.
    """
    values: dict[str, Any] = {}
    for name, text in changes.items():
        if text is None:
            continue
        if name not in ("mean", "scale"):
            values[name] = text
            continue
        try:
            parts = (
                text.replace(",", " ").split()
                if isinstance(text, str)
                else text
                if isinstance(text, tuple)
                else (text,)
            )
            values[name] = tuple(float(part) for part in parts)
        except ValueError as error:
            raise UserError(f"--{name} {text} is not understood", "write one number, or one a channel") from error
    try:
        changed = replace(spec, **values)
    except ValueError as error:
        raise UserError(str(error), "see narrowcast quantize --help") from error
    if changed.camera.startswith("nv12") and (changed.height % 2 or changed.width % 2):
        raise UserError(
            f"NV12 has even sides, the model's input is {changed.height}x{changed.width}",
            "export the model with an even size, or feed it rgb",
        )
    return changed
