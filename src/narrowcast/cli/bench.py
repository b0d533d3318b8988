"""The command ``bench``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from narrowcast.base.errors import UserError
from narrowcast.base.progress import on_interrupt
from narrowcast.cli.options import BundleFolder, Engine, Json, Quiet, app
from narrowcast.cli.tables import print_json, print_table, say, suggest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from narrowcast.bundle import Bundle
    from narrowcast.bundle.bench import BenchResult, NodeTime

#: Rows of the table of nodes.
_SHOWN_NODES = 25


@app.command()
def bench(
    path: BundleFolder,
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
    from narrowcast.base.progress import phase, set_quiet, track

    set_quiet(quiet or json)
    with phase("start"):
        from narrowcast.bundle import open_bundle
        from narrowcast.bundle.bench import bench
    counts = _counts(threads)
    bundle = open_bundle(path)
    chosen = engine or bundle.engines[0]
    picture, source = _picture(bundle, image)
    predictor = bundle.engine(chosen, 1)
    with on_interrupt("interrupted: nothing was measured to its end"):
        results = []
        for count in counts:
            progress: Any = partial(track, description=f"bench x{count}", total=frames)
            results.append(bench(predictor, picture, threads=count, frames=frames, progress=progress))
        nodes = _profile(bundle, chosen, picture, frames) if profile else []
    if json:
        print_json(
            {
                "bundle": str(path),
                "engine": chosen,
                "image": source,
                "runs": [result.to_dict() for result in results],
                **({"nodes": [vars(node) for node in nodes]} if profile else {}),
            }
        )
        return
    say(f"{path}, engine {chosen}, {source}: milliseconds on this computer, not on {bundle.manifest.target}")
    for result in results:
        _print_run(result)
    if profile:
        _print_nodes(nodes)
    else:
        suggest(("narrowcast", "bench", path, "--profile"), why="where the time goes")


def _counts(text: str) -> list[int]:
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isdecimal() and len(part) < 5 and int(part) > 0 for part in parts):
        raise UserError(f"--threads {text} is not understood", "write numbers such as 1,2")
    return [int(part) for part in parts]


def _picture(bundle: Bundle, image: Path | None) -> tuple[NDArray[np.uint8], str]:
    from narrowcast.vision.preprocess import read_image
    from narrowcast.zoo import sample

    source = f"image {image}"
    if image is None:
        image, source = sorted(sample(bundle.manifest.meaning.sample).validation.iterdir())[0], "embedded image"
    try:
        return read_image(image), source
    except ValueError as error:
        raise UserError(str(error), "give another --image") from error


def _profile(bundle: Bundle, engine: str, picture: NDArray[np.uint8], frames: int) -> list[NodeTime]:
    from narrowcast.bundle.bench import profile
    from narrowcast.bundle.manifest import FLOAT_FILE, QDQ_FILE
    from narrowcast.bundle.store import ENGINE_FILES, chip_input
    from narrowcast.vision.preprocess import preprocess

    file = ENGINE_FILES[engine]
    tensor, _ = preprocess(picture, bundle.manifest.preprocess)
    values = tensor if file == FLOAT_FILE else chip_input(tensor, bundle.manifest)
    level = "basic" if file == QDQ_FILE else "all"
    return profile(bundle.file(file), values, frames=min(frames, 20), level=level)


def _print_run(result: BenchResult) -> None:
    rows = [
        (name, *(f"{value:.3f}" for value in (t.average, t.minimum, t.maximum, t.p50, t.p99)))
        for name, t in result.stages.items()
    ]
    many = "s" if result.threads != 1 else ""
    title = f"{result.threads} thread{many}, {result.frames} frames: {result.fps:.1f} FPS"
    print_table(title, ("stage, ms", "average", "min", "max", "p50", "p99"), rows)


def _print_nodes(nodes: list[NodeTime]) -> None:
    by_type: dict[str, float] = {}
    for node in nodes:
        by_type[node.op_type] = by_type.get(node.op_type, 0.0) + node.average_ms
    total = sum(by_type.values()) or 1.0
    kinds: Iterator[tuple[str, float]] = iter(sorted(by_type.items(), key=lambda entry: -entry[1]))
    rows = [(kind, f"{ms:.3f}", f"{ms / total:.1%}") for kind, ms in kinds]
    print_table("Operators, one thread", ("operator", "ms", "share"), rows)
    slow = [(n.node, n.op_type, f"{n.average_ms:.3f}", f"{n.share:.1%}") for n in nodes[:_SHOWN_NODES]]
    print_table(f"The slowest {len(slow)} of {len(nodes)} nodes", ("node", "type", "ms", "share"), slow, 2)
