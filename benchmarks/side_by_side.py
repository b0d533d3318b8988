"""narrowcast beside onnxruntime, NNCF and ESP-PPQ: same cut float graph, same images, same decode, one run.

    python benchmarks/side_by_side.py [--data ../shared/data] [--model yolo11n-pose.onnx] [--target bayes-e]
        [--limit 50] [--scored 224] [--work out/side-by-side] [--venv FOLDER]

The other tools are installed into an environment of their own. Every tool gets the float graph with its head cut off,
in standard operators, and the same model inputs; each runs in its own process, which measures wall seconds, CPU seconds
and peak memory. Then all results are scored here on the same labelled images: average precision with the share of the
float model's that is kept (95 % interval, paired over images), and the noise of the raw outputs.

Results are kept in the work folder under everything that they depend on, so that an interrupted run goes on. Exit
status 2: data are missing, or the tools cannot be installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx

import narrowcast
from narrowcast.bundle import Predictor
from narrowcast.calibrate import images
from narrowcast.evaluate import CocoData, coco
from narrowcast.graph import Model, load
from narrowcast.ops.units import inline_units
from narrowcast.vision import preprocess, read_image
from peers.install import InstallError, install
from peers.scores import metrics, noise, predictions, predictor

HERE = Path(__file__).resolve().parent
TARGETS = ("onnx", "bayes-e", "esp32p4")


@dataclass(frozen=True)
class Tool:
    """One row of the table.

    Attributes:
        name: as printed.
        script: in ``benchmarks/peers``.
        settings: of the script.
        images: calibration images.
        rules: number formats, in words.
    """

    name: str
    script: str
    settings: dict[str, Any]
    images: int
    rules: str

    @property
    def folder(self) -> str:
        """Name of the folder of its results, which targets with the same rules share."""
        digest = short_digest(json.dumps(self.settings, sort_keys=True))
        return "".join(c if c.isalnum() else "-" for c in self.name) + f"-{digest}"


def stop(text: str) -> NoReturn:
    """Say why and end with 2."""
    print(text, file=sys.stderr)
    sys.exit(2)


def own_tools(options: argparse.Namespace, work: Path) -> list[Tool]:
    """Rows of narrowcast."""
    rules = {"onnx": "asymmetric", "bayes-e": "symmetric, int32 outputs", "esp32p4": "powers of two"}[options.target]
    folder = str(options.data / "coco/calib_images")
    common = {"images": folder, "limit": options.limit, "target": options.target}
    rows = [
        Tool(
            f"narrowcast {effort}", "ours.py",
            {**common, "model": str(options.data / "models" / options.model), "effort": effort},
            options.limit, rules,
        )
        for effort in options.effort
    ]  # fmt: skip
    if options.tune:
        start = str(work / rows[-1].folder / "bundle")
        rows.append(Tool("narrowcast tune", "ours.py", {**common, "start": start, "budget": 0.1}, options.limit, rules))
    return rows


def other_tools(options: argparse.Namespace) -> list[Tool]:
    """Rows of the other tools, with the target's rules as far as each can express them."""
    symmetric = options.target != "onnx"
    free = "free scales, symmetric" if symmetric else "free scales, asymmetric"
    few = min(options.percentile_images, options.limit)
    rows = [
        Tool("onnxruntime MinMax", "ort_static.py", {"method": "MinMax", "symmetric": symmetric}, options.limit, free),
        Tool("onnxruntime Percentile", "ort_static.py", {"method": "Percentile", "symmetric": symmetric}, few, free),
        Tool(
            "NNCF performance", "nncf_ptq.py", {"preset": "performance"}, options.limit,
            "free scales, symmetric, float outputs",
        ),
        Tool(
            "NNCF mixed", "nncf_ptq.py", {"preset": "mixed"}, options.limit, "free scales, asymmetric, float outputs"
        ),
    ]  # fmt: skip
    if options.target == "esp32p4":
        count = min(options.esp_images, options.limit)
        for name, algorithm, correct in (("kl", "kl", False), ("percentile + bias correction", "percentile", True)):
            settings = {"target": options.target, "algorithm": algorithm, "bias_correction": correct}
            rows.append(Tool(f"ESP-PPQ {name}", "esp_ppq_ptq.py", settings, count, "powers of two"))
    return rows


def write_inputs(folder: Path, tensors: Iterable[np.ndarray], count: int) -> list[str]:
    """Model inputs as .npy files, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:04}.npy" for index in range(count)]
    if not all(path.exists() for path in paths):
        for path, tensor in zip(paths, tensors, strict=True):
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                np.save(file, tensor)
            partial.replace(path)
    return [str(path) for path in paths]


def short_digest(*parts: bytes | str) -> str:
    """12 digits that stand for these."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part if isinstance(part, bytes) else part.encode())
    return found.hexdigest()[:12]


def source_digest(*rooms: str) -> str:
    """Of the installed narrowcast or some of its rooms, so that results follow the code."""
    root = Path(narrowcast.__file__).parent
    folders = [root / room for room in rooms] or [root]
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".yaml"))
    return short_digest(*(path.read_bytes() for path in files))


def run_tool(tool: Tool, job: dict[str, Any], folder: Path, python: str) -> dict[str, Any]:
    """Run a tool's process, unless the same job is finished; its result, or ``{"failed": why}``."""
    own = tool.script == "ours.py"
    identity = {
        "data": job["data"], "inputs": [Path(name).name for name in job["inputs"]],
        "settings": tool.settings, "source": source_digest() if own else "", "script": tool.script,
    }  # fmt: skip
    key = short_digest(json.dumps(identity, sort_keys=True))
    result = folder / "result.json"
    if result.exists() and (known := json.loads(result.read_text()))["key"] == key:
        return dict(known)
    result.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "job.json"
    file.write_text(json.dumps({**job, "settings": tool.settings, "out": str(folder), "key": key}, indent=1))
    print(f"{tool.name}: {tool.images} images", flush=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (folder / "log.txt").open("w") as log:
        command = [python, str(HERE / "peers" / tool.script), str(file)]
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=folder)
    if done.returncode or not result.exists():
        lines = [line for line in (folder / "log.txt").read_text().splitlines() if line.strip()]
        return {"failed": f"exit {done.returncode}: {lines[-1] if lines else 'no output'}", "key": key}
    return dict(json.loads(result.read_text()))


def row(tool: Tool, result: dict[str, Any], found: Sequence[Any], sqnr: float | None) -> list[str]:
    """Cells of the table."""
    cells = [tool.name, str(tool.images), tool.rules]
    for entry in found:
        kept = ""
        if entry.retention is not None:
            low, high = entry.retention_interval
            kept = f"{entry.retention:.1%} [{low:.1%}, {high:.1%}]"
        cells += [f"{100 * entry.values['AP']:.2f}", kept]
    cells.append("" if sqnr is None else f"{sqnr:.1f}")
    cells += [f"{result[name]:.0f}" if name in result else "" for name in ("wall_s", "cpu_s", "peak_mb")]
    return cells


def print_table(title: str, families: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> None:
    """Markdown."""
    head = ["tool", "images", "rules"]
    for family in families:
        head += [f"{family} AP", "kept [95 %]"]
    head += ["SQNR dB", "wall s", "CPU s", "peak MB"]
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for cells in rows:
        print(f"| {' | '.join(cells)} |")
    print()
    for note in notes:
        print(f"- {note}")


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = HERE.parent
    parser.add_argument("--data", type=Path, default=root.parent / "shared" / "data")
    parser.add_argument("--model", default="yolo11n-pose.onnx")
    parser.add_argument("--target", choices=TARGETS, default="bayes-e")
    parser.add_argument("--limit", type=int, default=50, help="calibration images")
    parser.add_argument("--percentile-images", type=int, default=16, help="its calibrator keeps every activation")
    parser.add_argument("--esp-images", type=int, default=16, help="ESP-PPQ takes seconds an image")
    parser.add_argument("--scored", type=int, help="labelled images to score, drawn at random; all by default")
    parser.add_argument("--noise-images", type=int, default=8)
    parser.add_argument("--effort", nargs="+", default=["standard"], help="rows of narrowcast")
    parser.add_argument("--tune", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--only", nargs="*", help="rows whose name holds one of these words")
    parser.add_argument("--work", type=Path, default=root / "out" / "side-by-side")
    parser.add_argument("--venv", type=Path, help="environment of the other tools; in the work folder by default")
    return parser.parse_args()


def labelled(options: argparse.Namespace, model: Model) -> CocoData:
    """The images that are scored."""
    name = "person_keypoints_val.json" if model.task == "pose" else "instances_val.json"
    folder = options.data / "coco"
    return coco(folder / "images", folder / "annotations" / name, limit=options.scored, skip_missing=True)


def main() -> None:
    options = read_options()
    options.data, options.work = options.data.resolve(), options.work.resolve()
    path = options.data / "models" / options.model
    for needed in (path, options.data / "coco/calib_images", options.data / "coco/annotations"):
        if not needed.exists():
            stop(f"{needed} is missing: this benchmark needs real models and labelled images, see --data")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    model = load(path)
    if model.task == "classify":
        stop(f"{options.model} is a classifier: this benchmark scores models that detect")
    try:
        python = install((options.venv or options.work / "venv").resolve())
    except InstallError as error:
        stop(f"the other tools cannot be installed: {error}")
    compare(options, model, str(python))


def compare(options: argparse.Namespace, model: Model, python: str) -> None:
    """Run every tool, score, print."""
    work = options.work / Path(options.model).stem
    work.mkdir(parents=True, exist_ok=True)
    graph = work / "float.onnx"
    onnx.save(inline_units(model.to_proto()), str(graph))
    found = images(options.data / "coco/calib_images", model.preprocess, limit=options.limit)
    data = labelled(options, model)
    digest = short_digest(graph.read_bytes(), *found.hashes())
    tag = f"{len(data)}-{short_digest(*(file.name for file in data.files), data.source)}"
    views = (preprocess(read_image(file), model.preprocess)[0] for file in data.files)
    seen = f"{tag}-{source_digest('vision', 'evaluate')}.json"
    inputs = write_inputs(options.work / f"calibration-{digest}", found, len(found))
    scored = write_inputs(work / f"scored-{tag}", views, len(data))
    tools = [*own_tools(options, work), *other_tools(options)]
    if options.only:
        tools = [tool for tool in tools if any(word in tool.name for word in options.only)]
    reference = lambda: Predictor.of_model(model, threads=1)  # noqa: E731
    results = {"float": predictions(data, "float", reference, work / f"float-{seen}")}
    costs: dict[str, dict[str, Any]] = {}
    ratios: dict[str, float] = {}
    for tool in tools:
        chosen = [inputs[index * len(inputs) // tool.images] for index in range(min(tool.images, len(inputs)))]
        simulates = tool.script == "esp_ppq_ptq.py"
        job = {"graph": str(graph), "input": model.input_name, "inputs": chosen, "scored": scored if simulates else []}
        job["data"] = f"{digest} {tag if simulates else ''}"
        folder = work / tool.folder
        costs[tool.name] = cost = run_tool(tool, job, folder, sys.executable if tool.script == "ours.py" else python)
        if "failed" in cost:
            print(f"{tool.name} failed, {cost['failed']}; see {folder / 'log.txt'}", flush=True)
            continue
        make = predictor(model, folder, cost["key"], scored)
        results[tool.name] = predictions(data, tool.name, make, folder / f"found-{cost['key']}-{seen}")
        ratios[tool.name] = noise(reference, make, scored[: options.noise_images])
    report(options, model, data, tools, (results, costs, ratios), work)


def report(
    options: argparse.Namespace, model: Model, data: CocoData, tools: Sequence[Tool], found: tuple[Any, ...], work: Path
) -> None:
    """Print the table and write it as JSON."""
    results, costs, ratios = found
    table = metrics(data, model, results)
    families = [entry.family for entry in table["float"]]
    rows = [row(Tool("float", "", {}, 0, ""), {}, table["float"], None)]
    rows[0][1] = ""
    for tool in tools:
        if tool.name in table:
            rows.append(row(tool, costs[tool.name], table[tool.name], ratios[tool.name]))
        else:
            rows.append([tool.name, str(tool.images), costs[tool.name]["failed"], *[""] * (2 * len(families) + 4)])
    notes = [f"{name}: {cost['note']}" for name, cost in costs.items() if cost.get("note")]
    notes += [
        f"{name}: its own simulation takes {cost['simulation_s_per_image']:.1f} s an image"
        for name, cost in costs.items()
        if "simulation_s_per_image" in cost
    ]
    versions = {k: v for cost in costs.values() for k, v in cost.get("versions", {}).items()}
    notes.append(", ".join(f"{k} {v}" for k, v in versions.items()) + f"; {os.cpu_count()} cores")
    title = f"{options.model}, rules of {options.target}, {len(data)} labelled images"
    print_table(title, families, rows, notes)
    document = {"title": title, "families": families, "rows": rows, "notes": notes, "costs": costs, "sqnr_db": ratios}
    (work / f"table-{options.target}.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
