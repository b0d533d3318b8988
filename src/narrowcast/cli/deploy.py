"""The command ``deploy``.

The command ``modify``.

The commands ``config schema`` and ``config convert``.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from narrowcast.base.errors import printable
from narrowcast.base.progress import is_quiet
from narrowcast.base.writing import write_file
from narrowcast.cli.options import BundleFolder, Force, Json, Quiet, Runtime, StrictImages, app
from narrowcast.cli.tables import print_json, print_table, say, suggest

if TYPE_CHECKING:
    from narrowcast.bundle.kits import Delivery


@app.command()
def modify(
    path: BundleFolder,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    remove_dequantize: Annotated[
        list[str] | None, typer.Option(help="Output that leaves as integers, several times, or all.")
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option(help="Kind of node to take off the ends: Transpose, Reshape, Softmax, Quantize, Dequantize, ..."),
    ] = None,
    node: Annotated[list[str] | None, typer.Option(help="Node to take off the ends, by name.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Take nodes off the ends, as hb_model_modifier does.

    Dequantize, quantize and passive nodes.
    """
    from narrowcast.base.progress import phase

    with phase("start"):
        from narrowcast.bundle import open_bundle
        from narrowcast.bundle.modify import modify
    bundle = open_bundle(path)
    changed = modify(
        bundle,
        out=out,
        remove_dequantize=_split(remove_dequantize),
        remove=_split(remove),
        nodes=_split(node),
        force=force,
    )
    manifest = changed.manifest
    if json:
        outputs = [{"name": o.name, "dtype": o.chip_dtype, "shape": list(o.shape)} for o in manifest.outputs]
        print_json({"bundle": str(out), **manifest.modified, "outputs": outputs})
        return
    for entry in manifest.modified.get("removed", ()):
        say(f"- removed {entry['type']} {entry['node']}")
    if "input_rounding" in manifest.modified and manifest.input_encoding is not None:
        code = manifest.input_encoding
        say(f"- {manifest.input_name} enters as {code['dtype']}, scale {code['scale']:.6g}, zero point "
            f"{code['zero_point']}")  # fmt: skip
    integers = set(manifest.modified["dequantize"])
    rows = [
        (o.name, "x".join(map(str, o.shape)), o.chip_dtype if o.name in integers else "float32",
         "-" if o.axis is None or o.name not in integers else str(o.axis))
        for o in manifest.outputs
    ]  # fmt: skip
    print_table("", ("output", "shape", "leaves as", "scales along axis"), rows, 4)
    say(f"{out} written")
    suggest(("narrowcast", "inspect", out))


def _split(names: Sequence[str] | None) -> list[str]:
    """Names given one by one or with ``,``, ``;`` or spaces between."""
    return [part for name in names or () for part in re.split(r"[,;\s]+", name) if part]


#: Folders with more files than this are shown as one line.
_SHOWN = 8


@app.command()
def deploy(
    path: BundleFolder,
    kit: Annotated[str | None, typer.Option(help="rdk-x5, tros or espdl [the first that the chip has].")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder, or .espdl file, to write.")] = None,
    images: Annotated[Path | None, typer.Option(help="Images for calibration data and test vectors.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use at most this many of them.", min=1)] = None,
    strict_images: StrictImages = False,
    test_vectors: Annotated[int, typer.Option(help="Inputs with results; one .espdl file each.", min=0)] = 0,
    runtime: Runtime = None,
    ranges: Annotated[
        str, typer.Option(help="Whose ranges and weights a vendor's tool takes: plan, or vendor (it finds its own).")
    ] = "plan",
    compile_: Annotated[
        bool, typer.Option("--compile", help="Run the vendor's compiler, as you installed it, on the package.")
    ] = False,
    toolchain: Annotated[Path | None, typer.Option(help="Its environment [default: what is on the path].")] = None,
    optimization: Annotated[str, typer.Option(help="O0 (seconds, the same integers) to O3 (many minutes).")] = "O3",
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write what the board and its vendor's tools need."""
    from narrowcast.base.progress import phase, set_quiet

    set_quiet(quiet or json)
    with phase("start"):
        from narrowcast.bundle import open_bundle
        from narrowcast.bundle.kits import chosen_kit, compiled, compiler_of, deploy
        from narrowcast.calibrate import images as find_images
        from narrowcast.zoo import sample
    bundle = open_bundle(path)
    name = chosen_kit(bundle, kit)
    if compile_:
        compiler_of(name)  # before anything is written
    embedded = images is None and test_vectors > 0
    source = sample(bundle.manifest.meaning.sample).validation if embedded else images
    found = find_images(source, bundle.manifest.preprocess, strict=strict_images) if source is not None else None
    made = deploy(
        bundle, name, out, images=found, limit=limit, test_vectors=test_vectors, force=force, runtime=runtime,
        ranges=ranges,  # type: ignore[arg-type]  # checked there
    )  # fmt: skip
    made = compiled(made, name, toolchain, optimization) if compile_ else made
    if json:
        print_json({"kit": name, **_plain(made)})
        return
    _print_delivery(made, name)
    if embedded:
        say("- test vectors are of embedded images; give your own with --images")


def _plain(made: Delivery) -> dict[str, Any]:
    return {**asdict(made), "path": str(made.path)}


def _print_delivery(made: Delivery, kit: str) -> None:
    say(f"{made.path} written (kit {kit})")
    folders = Counter(str(Path(file).parent) for file in made.files)
    for file in made.files:
        if folders[str(Path(file).parent)] <= _SHOWN:
            say(f"  {file}")
    for folder, count in folders.items():
        if count > _SHOWN:
            say(f"  {folder}/ ({count} files)")
    for key, value in made.facts.items():
        text = (
            ", ".join(map(str, value))
            if isinstance(value, list)
            else f"{value:g}"
            if isinstance(value, float)
            else value
        )
        say(f"{key}: {text}")
    for note in made.notes:
        say(f"- {note}")
    if is_quiet():
        return
    say("next:")
    for step in made.steps:
        sys.stdout.write(f"  {printable(step)}\n")  # whole, so that it can be pasted


config_app = typer.Typer(help="Settings in YAML: their schema, and hb_mapper's.")
app.add_typer(config_app, name="config")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of narrowcast's YAML."""
    from narrowcast.bundle.settings import settings_schema

    sys.stdout.write(settings_schema().rstrip("\n") + "\n")


@config_app.command("convert")
def config_convert(
    file: Annotated[Path, typer.Argument(help="hb_mapper's YAML, or narrowcast's.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write [print it].")] = None,
    force: Force = False,
) -> None:
    """Turn hb_mapper's YAML into narrowcast's, or the other way."""
    from narrowcast.chips.rdk.hb_mapper import convert

    converted = convert(file)
    if out is None:
        sys.stdout.write(converted.text.rstrip("\n") + "\n")
        for note in converted.notes:
            sys.stderr.write(f"note: {printable(note)}\n")
        return
    write_file(out, converted.text, force=force)
    for note in converted.notes:
        say(f"- {note}")
    say(f"{out} written in the form of {converted.form}")
    suggest(("narrowcast", "quantize", "--config", out))
