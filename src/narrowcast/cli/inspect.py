"""The command ``inspect``.

Inputs and outputs of a bundle as ``hrt_model_exec model_info`` shows them.
"""

from __future__ import annotations

import json as json_module
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from narrowcast.cli.options import Json, app
from narrowcast.cli.quantize import distance_sentence
from narrowcast.cli.tables import comparison_table, decibel, print_json, print_table, say, suggest

if TYPE_CHECKING:
    from narrowcast.bundle import Bundle, Manifest
    from narrowcast.bundle.kits import Description


_BYTES = {"int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "float32": 4, "int64": 8}


@dataclass(frozen=True)
class TensorInfo:
    """One input or output on the chip.

    Attributes:
        direction: ``"input"`` or ``"output"``.
        name, shape, layout: as in the manifest; the chip aligns nothing at its ends, so this is the aligned shape too.
        type: ``"int8"``, ``"int16"``, ``"int32"`` or ``"float32"``.
        quanti_type: ``"NONE"``; ``"SHIFT"`` where every scale is a power of two; ``"SCALE"``.
        scale_data: scales, one or one a channel; empty for floats.
        zero_point: the integer that stands for 0.
        quantize_axis: channel axis of the scales.
        byte_size: of the whole tensor.
        strides: bytes from one index to the next, by axis.
    """

    direction: str
    name: str
    shape: tuple[int, ...]
    layout: str
    type: str
    quanti_type: str
    scale_data: tuple[float, ...]
    zero_point: int
    quantize_axis: int | None
    byte_size: int
    strides: tuple[int, ...]


def _info(
    direction: str,
    name: str,
    shape: tuple[int, ...],
    layout: str,
    kind: str,
    scale: float | Sequence[float] | None,
    zero_point: int,
    axis: int | None,
) -> TensorInfo:
    scales = () if scale is None else (float(scale),) if isinstance(scale, (int, float)) else tuple(map(float, scale))
    shifts = bool(scales) and all(math.frexp(value)[0] == 0.5 for value in scales)
    size = _BYTES[kind]
    strides = tuple(size * math.prod(shape[index + 1 :]) for index in range(len(shape)))
    quanti = "NONE" if not scales else "SHIFT" if shifts else "SCALE"
    bytes_ = size * math.prod(shape)
    return TensorInfo(direction, name, shape, layout, kind, quanti, scales, zero_point, axis, bytes_, strides)


def tensor_info(manifest: Manifest) -> list[TensorInfo]:
    """The input, then the outputs in order."""
    coding = manifest.input_encoding
    layout = manifest.preprocess.layout if len(manifest.input_shape) == 4 else ""
    first = _info(
        "input",
        manifest.input_name,
        manifest.input_shape,
        layout,
        str(coding["dtype"]) if coding else "float32",
        coding["scale"] if coding else None,
        int(coding["zero_point"]) if coding else 0,
        None,
    )
    return [
        first,
        *(
            _info("output", o.name, o.shape, o.layout, o.chip_dtype, o.scale, o.zero_point, o.axis)
            for o in manifest.outputs
        ),
    ]


def describe_input(manifest: Manifest) -> str:
    """How an image becomes the input, in one line."""
    spec = manifest.preprocess
    camera = "" if spec.camera == "rgb" else f", through {spec.camera}"
    return (
        f"image  {spec.resize} {spec.height}x{spec.width}, {spec.color.upper()}, "
        f"(pixel - {_numbers(spec.mean)}) * {_numbers(spec.scale)}{camera}"
    )


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.6g}" for value in values)


def scale_text(scale: float | Sequence[float] | None) -> str:
    """A scale, or how many there are and between what."""
    if scale is None or (not isinstance(scale, (int, float)) and not scale):
        return "-"
    if isinstance(scale, (int, float)):
        return f"{scale:.6g}"
    return f"{scale[0]:.6g}" if len(scale) == 1 else f"{len(scale)}: {min(scale):.3g} to {max(scale):.3g}"


def _scale_cell(info: TensorInfo) -> str:
    if not info.scale_data:
        return "-"
    low, high = min(info.scale_data), max(info.scale_data)
    text = f"{low:.6g}" if len(info.scale_data) == 1 else f"{low:.2g}..{high:.2g}"
    text += f", zero {info.zero_point}" if info.zero_point else ""
    return text if info.quantize_axis is None else f"{text} axis {info.quantize_axis}"


def print_tensors(manifest: Manifest) -> None:
    """The table; at most 100 columns wide with names of ordinary length."""
    rows = [
        (
            t.name,
            "x".join(map(str, t.shape)),
            t.layout or "-",
            f"{t.type} {t.quanti_type}",
            _scale_cell(t),
            f"{t.byte_size}",
            " ".join(map(str, t.strides)),
        )
        for t in tensor_info(manifest)
    ]
    columns = ("tensor", "shape", "layout", "type, quanti", "scale", "bytes", "strides, bytes")
    print_table("Input and outputs on the chip", columns, rows, 5)
    removed = manifest.modified.get("dequantize", ())
    quantized = [out.name for out in manifest.outputs if out.scale is not None]
    if quantized and len(removed) < len(quantized):
        left = len(quantized) - len(removed)
        say(f"qdq.onnx dequantizes {left} of {len(quantized)} integer outputs; 'narrowcast modify' removes that")
    elif removed:
        say("dequantize nodes are removed: every quantized graph gives these integers")
    if "input_rounding" in manifest.modified:
        say("the quantize node is removed: every quantized graph takes the image as these integers")


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder, float ONNX file, or any .espdl file.")],
    nodes: Annotated[bool, typer.Option("--nodes", help="Also every node: unit, type, scale, noise.")] = False,
    json: Json = False,
) -> None:
    """Show inputs, outputs, scales, placement and sizes."""
    if path.suffix in (".onnx", ".pt"):
        _print_model(path, json)
        return
    from narrowcast.bundle import open_bundle
    from narrowcast.bundle.kits import kits

    describe = next((kit.describe for kit in kits().values() if path.suffix == kit.suffix != "" and kit.describe), None)
    if describe is not None:
        _vendors_file(describe(path), nodes, json)
        return
    bundle = open_bundle(path)
    if json:
        tensors = [asdict(entry) for entry in tensor_info(bundle.manifest)]
        print_json({**json_module.loads(bundle.manifest.to_json()), "tensors": tensors})
        return
    _print_bundle(bundle)
    if nodes:
        _print_placements(bundle)
    suggest(("narrowcast", "verify", path), *((("narrowcast", "deploy", path),) if bundle.target.kits else ()))


def _vendors_file(found: Description, nodes: bool, json: bool) -> None:
    """Inputs and outputs, operators and sizes; every node on request."""
    if json:
        print_json(found.data)
        return
    for line in found.lines:
        say(line)
    for table in (found.values, found.nodes if nodes else found.operators):
        print_table("", table.columns, table.rows, table.left)
    if not nodes:
        say("--nodes shows every node")


def _print_model(path: Path, json: bool) -> None:
    from narrowcast.bundle import open_model
    from narrowcast.graph.files import NOTES_KEY, metadata

    model = open_model(path)
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
    translated = NOTES_KEY in metadata(model.original)  # integers already
    suggest(("narrowcast", "predict", path, "IMAGE") if translated else ("narrowcast", "check", path))


def _print_bundle(bundle: Bundle) -> None:
    from narrowcast.bundle.manifest import PLAN_FILE
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


def _print_placements(bundle: Bundle) -> None:
    from narrowcast.bundle.manifest import FLOAT_FILE

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
