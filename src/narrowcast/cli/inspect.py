"""The command ``inspect``."""

from __future__ import annotations

import json as json_module
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from narrowcast.cli.model_info import describe_input, print_tensors, scale_text, tensor_info
from narrowcast.cli.quantize import distance_sentence
from narrowcast.cli.tables import comparison_table, decibel, print_json, print_table, say, suggest

if TYPE_CHECKING:
    from narrowcast.bundle import Bundle

__all__ = ["run"]


def run(path: Path, nodes: bool, json: bool) -> None:
    """Show a bundle, what is known of a float model, or an .espdl file."""
    if path.suffix == ".espdl":
        from narrowcast.cli.espdl import inspect_espdl

        inspect_espdl(path, nodes, json)
        return
    if path.suffix in (".onnx", ".pt"):
        _model(path, json)
        return
    from narrowcast.bundle import open_bundle

    bundle = open_bundle(path)
    if json:
        tensors = [asdict(entry) for entry in tensor_info(bundle.manifest)]
        print_json({**json_module.loads(bundle.manifest.to_json()), "tensors": tensors})
        return
    _bundle(bundle)
    if nodes:
        _nodes(bundle)
    suggest(("narrowcast", "verify", path), *((("narrowcast", "deploy", path),) if bundle.target.kits else ()))


def _model(path: Path, json: bool) -> None:
    from narrowcast.graph import load

    model = load(path)
    outputs = [(str(v.name), "x".join(str(d) for d in v.shape or ())) for v in model.ir.graph.outputs]
    if json:
        spec = model.preprocess.to_dict()
        print_json(
            {
                "task": model.task,
                "input": model.input_name,
                "preprocess": spec,
                "outputs": dict(outputs),
                "classes": list(model.classes),
                "notes": list(model.notes),
            }
        )
        return
    say(f"{model.source}: {model.task}, {model.ir.graph.num_nodes()} nodes, input {model.input_name}")
    for note in model.notes:
        say(f"- {note}")
    print_table("", ("output", "shape"), outputs, 2)
    suggest(("narrowcast", "check", path))


def _bundle(bundle: Bundle) -> None:
    from narrowcast.bundle.store import PLAN_FILE
    from narrowcast.plan import read_plan

    manifest = bundle.manifest
    say(f"{bundle.path}: {manifest.task} model {manifest.model['source']} for {manifest.target} ({manifest.runtime})")
    say(describe_input(manifest))
    print_tensors(manifest)
    if manifest.join:
        whole = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in manifest.join["joined"].items())
        say(f"joined in float by run, predict and evaluate to {whole} ({manifest.join['file']})")
    plan = read_plan(bundle.path / PLAN_FILE)
    if bundle.plan_edited:
        say(f"- {PLAN_FILE} was edited by hand: make a bundle of it with quantize --plan {bundle.path / PLAN_FILE}")
    places = Counter((entry.unit, entry.type) for entry in plan.nodes.values())
    kinds = Counter(encoding.dtype for encoding in plan.tensors.values())
    say("nodes   " + ", ".join(f"{count} on {unit} in {kind}" for (unit, kind), count in sorted(places.items())))
    say(
        "tensors "
        + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        + f"; {len(plan.edges)} requantized on an edge"
    )
    sizes = [
        (name, f"{(bundle.path / name).stat().st_size / 1e6:.2f} MB", digest[:12])
        for name, digest in manifest.files.items()
    ]
    print_table("", ("file", "size", "SHA-256"), sizes)
    comparison_table(
        f"Outputs against float on {manifest.compared_on}",
        manifest.comparison,
        "output",
    )
    if manifest.qdq_distance:
        say(distance_sentence(manifest.qdq_distance))


def _nodes(bundle: Bundle) -> None:
    from narrowcast.bundle.store import FLOAT_FILE

    noise = bundle.noise
    outputs = {node.name: node.output[0] for node in bundle.graph(FLOAT_FILE).graph.node if node.output}
    rows = []
    for name, placement in bundle.plan.nodes.items():
        tensor = outputs.get(name, "")
        encoding = bundle.plan.tensors.get(tensor)
        entry = noise.get(tensor)
        rows.append(
            (
                name,
                placement.unit,
                placement.type,
                placement.reason,
                scale_text(encoding.scale) if encoding else "-",
                decibel(entry["sqnr_db"]) if entry else "-",
            )
        )
    print_table("Nodes", ("node", "unit", "type", "reason", "output scale", "SQNR dB"), rows, 4)
