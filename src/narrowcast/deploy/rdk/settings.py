"""The plan's decisions in hb_mapper's words: which node runs where and in which type, and the YAML that says so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from narrowcast.base.errors import UserError
from narrowcast.base.yaml_files import parse_yaml
from narrowcast.bundle import Bundle
from narrowcast.chips import Target
from narrowcast.config import QuantizeSettings, from_settings, parse_hb_mapper, write_hb_mapper
from narrowcast.ops.net import computed_inputs
from narrowcast.plan import Plan, draft
from narrowcast.plan.drafting import read_encoding
from narrowcast.plan.structure import is_passive
from narrowcast.vision import Preprocess

__all__ = ["WORKING_DIR", "Decisions", "check_camera", "decisions", "hb_settings", "hb_yaml", "prefix"]

WORKING_DIR = "model_output"


@dataclass(frozen=True)
class Decisions:
    """Where the plan differs from what the vendor's tool does unasked. Node names, in graph order.

    Attributes:
        int16: nodes whose output has 16 bits.
        int8: nodes that go to the BPU only because they are asked to.
        float_: nodes left on the CPU that the BPU could run.
        int16_inputs: nodes that read 16 bits; ``node#1`` where only that input does.
    """

    int16: tuple[str, ...] = ()
    int8: tuple[str, ...] = ()
    float_: tuple[str, ...] = ()
    int16_inputs: tuple[str, ...] = ()


def decisions(graph: ir.Graph, plan: Plan, target: Target) -> Decisions:
    """Compare a plan with the tool's defaults.

    Args:
        graph: prepared graph of the plan.
        plan: of a bundle.
        target: the chip.
    """
    default = draft(graph, target).placement
    int16: list[str] = []
    int8: list[str] = []
    float_: list[str] = []
    wide: list[str] = []
    for node in graph:
        name = str(node.name)
        placement = plan.nodes[name]
        if is_passive(node, target):
            continue  # it carries its input's type
        if placement.type == "float32":
            float_ += [name] if default[name].type != "float32" else []
            continue
        encodings = [plan.tensors.get(str(output.name)) for output in node.outputs]
        if placement.type == "int16" or any(entry is not None and entry.dtype == "int16" for entry in encodings):
            int16.append(name)
        elif placement.unit != default[name].unit:
            int8.append(name)
        wide += _wide_inputs(node, plan)
    return Decisions(tuple(int16), tuple(int8), tuple(float_), tuple(wide))


def _wide_inputs(node: ir.Node, plan: Plan) -> list[str]:
    name = str(node.name)
    computed = computed_inputs(node)
    read = {index: read_encoding(node, index, plan.tensors, plan.edges) for index, _ in computed}
    wide = [index for index, encoding in read.items() if encoding is not None and encoding.dtype == "int16"]
    if len(wide) == len(computed):
        return [name] if wide else []
    return [f"{name}#{index}" for index in wide]


def prefix(bundle: Bundle) -> str:
    """The name of the compiled model, as the vendor's own models are called: model, chip, size, input."""
    spec = bundle.manifest.preprocess
    feed = "nv12" if spec.camera != "rgb" else spec.color
    stem = Path(bundle.manifest.model["source"]).stem
    name = f"{stem}_{bundle.manifest.target.replace('-', '')}_{spec.height}x{spec.width}_{feed}"
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
    return plain if plain[0].isalnum() else f"_{plain[1:]}"  # neither an option nor hidden


def check_camera(spec: Preprocess) -> None:
    """Refuse what the board's camera cannot feed.

    Raises:
        UserError: NV12 with an odd side.
    """
    if spec.camera != "rgb" and (spec.height % 2 or spec.width % 2):
        raise UserError(
            f"NV12 images have even sides, the model's input is {spec.height}x{spec.width}",
            "export the model with an even size, or quantize with --camera rgb",
        )


def hb_settings(bundle: Bundle, model: str, data: str, dtype: str) -> tuple[QuantizeSettings, tuple[str, ...]]:
    """What hb_mapper should do with the bundle's model, as our settings.

    Args:
        bundle: quantized for one of the tool's chips.
        model: name of the ONNX file beside the YAML.
        data: name of the folder of calibration files.
        dtype: of these files.

    Returns:
        The settings, and what a person should know.
    """
    manifest = bundle.manifest
    spec = manifest.preprocess
    check_camera(spec)
    found = decisions(bundle.model.ir.graph, bundle.plan, bundle.target)
    method = str(manifest.calibration["method"])
    values = {
        "model": model, "images": data, "calibration_data": dtype, "out": f"{WORKING_DIR}/{prefix(bundle)}",
        "target": manifest.target, "method": method if method in ("kl", "minmax") else "auto",
        "int16": found.int16, "int8": found.int8, "float": found.float_, "int16_inputs": found.int16_inputs,
        "input_name": manifest.input_name, "size": f"{spec.height}x{spec.width}", "mean": spec.mean,
        "scale": spec.scale, "color": spec.color, "layout": spec.layout, "camera": spec.camera,
    }  # fmt: skip
    notes = [] if values["method"] == method else [f"ranges: the tool searches its own; the bundle's are from {method}"]
    return QuantizeSettings.model_validate(values), tuple(notes)


def hb_yaml(settings: QuantizeSettings, notes: tuple[str, ...]) -> str:
    """The YAML text; what it says is read back by our own strict parser before anyone gets it.

    Raises:
        UserError: a combination that hb_mapper does not take.
    """
    config, unsaid = from_settings(settings)
    text = "".join(f"# {note}\n" for note in (*notes, *unsaid)) + write_hb_mapper(config)
    if parse_hb_mapper(parse_yaml(text, "hb_mapper.yaml")[0], "hb_mapper.yaml") != config:
        raise UserError("a name in the model cannot be written to hb_mapper.yaml", "rename it in plain letters")
    return text
