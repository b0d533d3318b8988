"""The command ``run``: raw outputs and every integer tensor, for comparing with a board."""

from __future__ import annotations

import json as json_module
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from narrowcast.base.errors import UserError
from narrowcast.cli.tables import print_json, print_table, say, suggest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from narrowcast.bundle import Bundle

__all__ = ["run"]


def run(path: Path, engine: str, source: Path, dump: Path | None, force: bool, json: bool) -> None:
    """Run one input, print the outputs, write the tensors."""
    from narrowcast.base.progress import phase

    with phase("start"):
        from narrowcast.base.writing import check_folder, new_folder
        from narrowcast.bundle import open_bundle
    bundle = open_bundle(path)
    place = None if dump is None else check_folder(dump, "index.json", force, "--dump-dir")
    tensor = _input(bundle, source)
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
            _write(folder, tensors, encodings)
    if json:
        print_json(rows)
        return
    cells = [
        (str(r["tensor"]), "x".join(map(str, r["shape"])), str(r["dtype"]), f"{r['min']:g}", f"{r['max']:g}")
        for r in rows
    ]
    print_table(f"{path}, engine {engine}", ("output", "shape", "type", "least", "largest"), cells, 3)
    if dump is not None:
        say(f"{len(tensors)} tensors written to {dump} (index.json says what each holds)")
    elif engine == "integer":
        suggest(("narrowcast", "run", path, "--input", source, "--dump-dir", "tensors"), why="every integer tensor")


def _input(bundle: Bundle, source: Path) -> NDArray[np.float32]:
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

    from narrowcast.bundle.integer_input import chip_input
    from narrowcast.lower.integer import IntegerRunner

    graph, tensor = bundle.integer_graph, chip_input(tensor, bundle.manifest)
    runner = IntegerRunner(graph, all_tensors=everything)
    found = runner.run(tensor)
    tensors = {**(runner.integers(tensor) if everything else {}), **found, **bundle.quantized.joined(found)}
    known = {**graph.encodings, **{name: code for name, code in graph.outputs.items() if code is not None}}
    return tensors, {name: asdict(code) for name, code in known.items() if name in tensors}


def _write(folder: Path, tensors: dict[str, NDArray[Any]], encodings: dict[str, dict[str, Any]]) -> None:
    import numpy as np

    index = []
    for number, (name, values) in enumerate(tensors.items()):
        file = f"{number:04d}{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}.npy"
        np.save(folder / file, values)
        index.append({"tensor": name, "file": file, "shape": list(values.shape), **encodings.get(name, {})})
    (folder / "index.json").write_text(json_module.dumps(index, indent=1) + "\n")
