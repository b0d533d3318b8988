"""Commands about the board, and about settings files.

Heavy imports happen inside the commands, so that ``--help`` is instant.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from narrowcast.cli.root import BundleFolder, Engine, Force, Json, Quiet, Runtime, StrictImages, app


@app.command()
def verify(
    bundle: BundleFolder,
    images: Annotated[Path | None, typer.Option(help="Images to run [embedded ones].")] = None,
    limit: Annotated[int, typer.Option(help="How many of them.", min=1)] = 3,
    strict_images: StrictImages = False,
    everything: Annotated[bool, typer.Option("--all", help="List every tensor, not only those that differ.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare the integers with a slow independent reference.

    Tensor by tensor, bit for bit.
    """
    from narrowcast.cli import verify as command

    command.run(bundle, images, limit, everything, json, quiet, strict_images)


@app.command()
def run(
    bundle: BundleFolder,
    input_: Annotated[Path, typer.Option("--input", help="Image, or .npy file with one model input.")],
    engine: Annotated[str, typer.Option(help="integer, qdq or float.")] = "integer",
    dump_dir: Annotated[
        Path | None, typer.Option(help="Folder for every intermediate integer tensor, to compare with a board.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Run one input and show the raw outputs."""
    from narrowcast.cli import run as command

    command.run(bundle, engine, input_, dump_dir, force, json)


@app.command()
def bench(
    bundle: BundleFolder,
    threads: Annotated[str, typer.Option(help="Frames in work at once, each on one thread; several runs: 1,2.")] = "1",
    frames: Annotated[int, typer.Option(help="Measured frames of each run.", min=1)] = 200,
    image: Annotated[Path | None, typer.Option(help="Image to run [an embedded one].")] = None,
    engine: Engine = None,
    profile: Annotated[bool, typer.Option("--profile", help="Also the time of every node.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure latency and frames per second on this machine.

    Stage by stage: preprocessing, inference, decoding.
    """
    from narrowcast.cli import bench as command

    command.run(bundle, threads, frames, image, engine, profile=profile, json=json, quiet=quiet)


@app.command()
def modify(
    bundle: BundleFolder,
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
    from narrowcast.cli import modify as command

    command.run(bundle, remove_dequantize or [], remove or [], node or [], out, force=force, json=json)


@app.command()
def deploy(
    bundle: BundleFolder,
    kit: Annotated[str | None, typer.Option(help="rdk-x5, tros or espdl [the first that the chip has].")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder, or .espdl file, to write.")] = None,
    images: Annotated[Path | None, typer.Option(help="Images for calibration data and test vectors.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use at most this many of them.", min=1)] = None,
    strict_images: StrictImages = False,
    test_vectors: Annotated[int, typer.Option(help="Inputs with results; one .espdl file each.", min=0)] = 0,
    runtime: Runtime = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write what the board and its vendor's tools need."""
    from narrowcast.cli import deploy as command

    command.run(bundle, kit, out, images, limit, test_vectors, runtime, force, json, quiet, strict_images)


config_app = typer.Typer(help="Settings in YAML: their schema, and hb_mapper's.")
app.add_typer(config_app, name="config")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of narrowcast's YAML."""
    from narrowcast.cli import config as command

    command.schema()


@config_app.command("convert")
def config_convert(
    file: Annotated[Path, typer.Argument(help="hb_mapper's YAML, or narrowcast's.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write [print it].")] = None,
    force: Force = False,
) -> None:
    """Turn hb_mapper's YAML into narrowcast's, or the other way."""
    from narrowcast.cli import config as command

    command.convert(file, out, force)
