"""The command ``inspect``."""

from __future__ import annotations

import json as json_module
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from narrowcast.cli.quantize import distance_sentence
from narrowcast.cli.tables import comparison_table, decibel, print_json, print_table, say

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
        print_json(json_module.loads((path / "manifest.json").read_text()))
        return
    _bundle(bundle)
    if nodes:
        _nodes(bundle)


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


def _scale(scale: float | tuple[float, ...] | None) -> str:
    if scale is None:
        return "-"
    if isinstance(scale, tuple):
        return f"{len(scale)} values, {min(scale):.3g} to {max(scale):.3g}"
    return f"{scale:.6g}"


def _bundle(bundle: Bundle) -> None:
    manifest = bundle.manifest
    say(f"{bundle.path}: {manifest.task} model {manifest.model['source']} for {manifest.target} ({manifest.runtime})")
    spec = manifest.preprocess
    coding = manifest.input_encoding
    integer = (
        f"{coding['dtype']}, scale {_scale(coding['scale'])}, zero point {coding['zero_point']}"
        if coding
        else "float32"
    )
    say(f"input  {manifest.input_name} {'x'.join(map(str, manifest.input_shape))}, {integer}")
    say(
        f"       {spec.resize} {spec.height}x{spec.width}, {spec.color.upper()}, "
        f"(pixel - {_list(spec.mean)}) * {_list(spec.scale)}"
    )
    rows = [
        (
            out.name,
            "x".join(map(str, out.shape)),
            out.layout or "-",
            out.chip_dtype,
            _scale(out.scale),
            str(out.zero_point) if out.scale is not None else "-",
            "-" if out.axis is None else str(out.axis),
        )
        for out in manifest.outputs
    ]
    print_table("", ("output", "shape", "layout", "leaves as", "scale", "zero point", "axis"), rows, 4)
    plan = bundle.plan
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
        f"Outputs against float on {len(manifest.calibration['held_back'])} held-back images",
        manifest.comparison,
        "output",
    )
    if manifest.qdq_distance:
        say(distance_sentence(manifest.qdq_distance))


def _list(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.6g}" for value in values)


def _nodes(bundle: Bundle) -> None:
    import onnx

    from narrowcast.bundle.store import FLOAT_FILE, NODES_FILE

    noise: dict[str, Any] = {e["name"]: e for e in json_module.loads((bundle.path / NODES_FILE).read_text())}
    outputs = {node.name: node.output[0] for node in onnx.load(str(bundle.path / FLOAT_FILE)).graph.node}
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
                _scale(encoding.scale) if encoding else "-",
                decibel(entry["sqnr_db"]) if entry else "-",
            )
        )
    print_table("Nodes", ("node", "unit", "type", "reason", "output scale", "SQNR dB"), rows, 4)
