"""The engines at work: ``verify`` (integers against the slow reference), ``run`` (raw outputs and every integer
tensor, for comparing with a board) and ``bench``."""

from __future__ import annotations

import json as json_module
import re
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from narrowcast.base.errors import UserError
from narrowcast.base.progress import on_interrupt
from narrowcast.cli.options import BundleFolder, Engine, Force, Json, Quiet, StrictImages, app
from narrowcast.cli.quantize import after
from narrowcast.cli.tables import print_json, print_table, say, suggest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from narrowcast.bundle import Bundle
    from narrowcast.bundle.bench import BenchResult, NodeTime


def _some_inputs(
    bundle: Bundle, images: Path | None, limit: int, strict: bool
) -> tuple[list[NDArray[np.float32]], tuple[str, ...]]:
    """Model inputs of a person's images, or of embedded ones, and notes on images left out."""
    from narrowcast.bundle.store import chip_input
    from narrowcast.calibrate import images as find_images
    from narrowcast.zoo import sample

    source = images or sample(bundle.manifest.meaning.sample).validation
    found = find_images(source, bundle.manifest.preprocess, limit=limit, strict=strict).usable()
    return [chip_input(tensor, bundle.manifest) for tensor in found], found.notes


def _refuse(violations: list[str], json: bool) -> NoReturn:
    """Integers of a wrong plan mean nothing: both sides would repeat its mistake."""
    if json:
        print_json({"violations": violations})
    else:
        for line in violations:
            say(line)
        say(f"the plan breaks {len(violations)} rule{'s' if len(violations) != 1 else ''}: quantize the model again")
    raise typer.Exit(1)


@app.command()
def verify(
    path: BundleFolder,
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
    from narrowcast.base.progress import phase, set_quiet, track

    set_quiet(quiet or json)
    with phase("start"):
        from narrowcast.bundle import open_bundle
        from narrowcast.bundle.manifest import PLAN_FILE
        from narrowcast.engine.verify import verify
    bundle = open_bundle(path)
    if bundle.violations:
        _refuse(bundle.violations, json)
    graph = bundle.integer_graph
    bundle.file(PLAN_FILE)  # the plan of these integers, not one that was edited since
    inputs, notes = _some_inputs(bundle, images, limit, strict_images)
    target = bundle.target
    rows = verify(bundle.prepared.ir, bundle.plan, target, graph, track(inputs, "verify", len(inputs)))
    wrong = [row for row in rows if row.differing]
    differing, total = sum(row.differing for row in rows), sum(row.total for row in rows)
    if json:
        counts = {"images": len(inputs), "differing": differing, "total": total}
        print_json({"violations": [], **counts, "notes": list(notes), "rows": [asdict(row) for row in rows]})
    else:
        for note in notes:
            say(f"- {note}")
        shown = rows if everything else wrong
        if shown:
            cells = [
                (row.tensor, row.node, row.op_type, f"{row.differing}", f"{row.total}", f"{row.largest}")
                for row in shown
            ]
            print_table("", ("tensor", "node", "type", "differing", "values", "largest, steps"), cells, 3)
        where = "" if images is not None else " embedded"
        say(
            f"{differing} of {total} values in {len(rows)} tensors differ from the slow reference, on {len(inputs)}"
            f"{where} image{'s' if len(inputs) != 1 else ''}"
        )
        if not wrong:
            suggest(*after(bundle)[-1:])
    if wrong:
        raise typer.Exit(1)


@app.command()
def run(
    path: BundleFolder,
    source: Annotated[Path, typer.Option("--input", help="Image, or .npy file with one model input.")],
    engine: Annotated[str, typer.Option(help="integer, qdq or float.")] = "integer",
    dump_dir: Annotated[
        Path | None, typer.Option(help="Folder for every intermediate integer tensor, to compare with a board.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Run one input and show the raw outputs."""
    from narrowcast.base.progress import phase

    with phase("start"):
        from narrowcast.base.writing import check_folder, new_folder
        from narrowcast.bundle import open_bundle
    bundle = open_bundle(path)
    place = None if dump_dir is None else check_folder(dump_dir, "index.json", force, "--dump-dir")
    tensor = _one_input(bundle, source)
    tensors, encodings = _tensors(bundle, engine, tensor, place is not None)
    wanted = dict.fromkeys((*bundle.manifest.user_outputs, *(out.name for out in bundle.manifest.outputs)))
    outputs = [name for name in wanted if name in tensors]
    rows = [
        {"tensor": name, "shape": list(tensors[name].shape), "dtype": str(tensors[name].dtype),
         "min": tensors[name].min().item(), "max": tensors[name].max().item(), **encodings.get(name, {})}
        for name in outputs
    ]  # fmt: skip
    if place is not None:
        with new_folder(place, "--dump-dir") as folder:
            _write_tensors(folder, tensors, encodings)
    if json:
        print_json(rows)
        return
    cells = [
        (str(r["tensor"]), "x".join(map(str, r["shape"])), str(r["dtype"]), f"{r['min']:g}", f"{r['max']:g}")
        for r in rows
    ]
    print_table(f"{path}, engine {engine}", ("output", "shape", "type", "least", "largest"), cells, 3)
    if dump_dir is not None:
        say(f"{len(tensors)} tensors written to {dump_dir} (index.json says what each holds)")
    elif engine == "integer":
        suggest(("narrowcast", "run", path, "--input", source, "--dump-dir", "tensors"), why="every integer tensor")


def _one_input(bundle: Bundle, source: Path) -> NDArray[np.float32]:
    from narrowcast.calibrate import images

    if not source.exists():
        raise UserError(f"{source} does not exist", "give an image, or a .npy file with one model input")
    found = images(source, bundle.manifest.preprocess)
    if len(found) != 1:
        raise UserError(f"{source} holds {len(found)} inputs", "give one")
    return next(iter(found))


def _tensors(
    bundle: Bundle, engine: str, tensor: NDArray[np.float32], everything: bool
) -> tuple[dict[str, NDArray[Any]], dict[str, dict[str, Any]]]:
    """Tensors by name, and how integers are read."""
    if engine != "integer":
        if everything:
            raise UserError(f"only the engine integer gives every tensor, not {engine}", "leave --dump-dir out")
        return bundle.engine(engine).run(tensor), {}
    from dataclasses import asdict

    from narrowcast.bundle.store import chip_input
    from narrowcast.engine.integer import IntegerRunner

    graph, tensor = bundle.integer_graph, chip_input(tensor, bundle.manifest)
    runner = IntegerRunner(graph, all_tensors=everything)
    found = runner.run(tensor)
    tensors = {**(runner.integers(tensor) if everything else {}), **found, **bundle.quantized.joined(found)}
    known = {**graph.encodings, **{name: code for name, code in graph.outputs.items() if code is not None}}
    return tensors, {name: asdict(code) for name, code in known.items() if name in tensors}


def _write_tensors(folder: Path, tensors: dict[str, NDArray[Any]], encodings: dict[str, dict[str, Any]]) -> None:
    import numpy as np

    index = []
    for number, (name, values) in enumerate(tensors.items()):
        file = f"{number:04d}{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}.npy"
        np.save(folder / file, values)
        index.append({"tensor": name, "file": file, "shape": list(values.shape), **encodings.get(name, {})})
    (folder / "index.json").write_text(json_module.dumps(index, indent=1) + "\n")


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
