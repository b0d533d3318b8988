"""What the vendor's tool is given of a bundle: the float model as it should see it, and the plan in its own words.

The model's outputs are channels last in the vendor's order, and every node has a name; hb_mapper's YAML says which node
runs where and in which type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from narrowcast.base.errors import UserError
from narrowcast.base.reading import parse_yaml
from narrowcast.bundle import Bundle
from narrowcast.bundle.kits import Ranges
from narrowcast.bundle.settings import QuantizeSettings
from narrowcast.chips import Target
from narrowcast.chips.rdk.delivery import (
    Markers,
    pixel_terms,
    settled,
    shaped,
    undelivered,
    with_markers,
    without_markers,
)
from narrowcast.chips.rdk.hb_mapper import CalibrationParameters, from_settings, parse_hb_mapper, write_hb_mapper
from narrowcast.chips.rdk.opset import OPSET, to_opset_11
from narrowcast.graph.run import Runner
from narrowcast.ops.facts import Kind, facts
from narrowcast.ops.net import computed_inputs, copied
from narrowcast.ops.units import inline_units
from narrowcast.plan import Plan, draft
from narrowcast.plan.drafting import read_encoding
from narrowcast.plan.structure import is_passive
from narrowcast.tasks import Task
from narrowcast.tasks.objects import Objects
from narrowcast.vision import Preprocess

__all__ = [
    "WORKING_DIR", "Exported", "ExportedOutput", "check_camera", "export", "hb_settings", "hb_yaml", "load_settings",
    "prefix", "verify",
]  # fmt: skip

WORKING_DIR = "model_output"
#: Largest difference of an output, as a share of its largest magnitude, that counts as the same computation.
TOLERANCE = 1e-4
_TO_CHANNELS_LAST = (0, 2, 3, 1)
#: How a tensor is called whose name an output took, and how the vendor's tool calls the node behind a tensor.
_BEFORE, _DEQUANTIZE = "_raw", "_HzDequantize"
#: Behind accumulators with a scale a channel, the vendor's tool computes these in float when they end the graph.
_FLOAT_TAILS = ("Concat", "MaxPool", "Slice", "Split", "Resize")


@dataclass(frozen=True)
class ExportedOutput:
    """An output of the exported model.

    Attributes:
        name: as in the bundle.
        shape: (1, H, W, C) for maps, (1, C, 1, 1) for the scores of a classifier.
        layout: ``"NHWC"`` for maps, else ``""``.
        dequantize: the node with which the vendor's tool turns this output into float, empty where it does so before
            the last node of the graph.
        moved: a Transpose to NHWC was added.
    """

    name: str
    shape: tuple[int, ...]
    layout: str
    dequantize: str
    moved: bool = False


@dataclass(frozen=True)
class Exported:
    """A model for hb_mapper.

    Attributes:
        proto: opset 11, IR 7.
        outputs: in order.
        floating: the float graph that it computes, but for ranges.
        undelivered: what the plan decides and the tool does not take, a line each.
    """

    proto: onnx.ModelProto
    outputs: tuple[ExportedOutput, ...]
    floating: onnx.ModelProto
    undelivered: tuple[str, ...] = ()


def vendor_order(names: Sequence[str], meaning: Task) -> list[str]:
    """Output names in the order of the vendor's model zoo and robot software: class, box, extra a stride, proto."""
    if not isinstance(meaning, Objects):
        return list(names)
    box, classes, *extra = (role.stem for role in meaning.roles)
    ordered = [f"{stem}_s{stride}" for stride in meaning.spec.strides for stem in (classes, box, *extra)]
    return ordered + [name for name in names if name not in ordered]


def export(bundle: Bundle, ranges: Ranges = "plan") -> Exported:
    """Convert a bundle's float graph.

    Args:
        bundle: quantized for one of the tool's chips.
        ranges: ``"plan"``: the weights that the plan rounds, and its encodings in the graph. ``"vendor"``: the user's
            graph alone. Corrected weights belong to our ranges, and the tool then finds its own.

    Raises:
        UserError: an operator that opset 11 cannot express, numbers that are not float32, or an encoding that the tool
            cannot be given.
    """
    markers, undone = Markers(), tuple[str, ...]()
    if ranges == "vendor":
        proto = inline_units(bundle.model.to_proto())
        floating = copied(proto)
    else:
        undone = tuple(undelivered(bundle))
        model = settled(bundle)
        floating = inline_units(ir.to_proto(model))
        model, markers = shaped(model, bundle)
        proto = inline_units(ir.to_proto(model))
    names = [value.name for value in proto.graph.output]
    _name_nodes(proto)
    converted = to_opset_11(proto)
    meaning = bundle.manifest.meaning
    ordered = vendor_order(names, meaning)
    scores = meaning.one_answer and not bundle.manifest.integer_outputs
    made = {name for node in converted.graph.node for name in node.output}
    outputs = _set_outputs(converted, ordered, scores)
    onnx.checker.check_model(converted, full_check=True)
    if ranges == "vendor":
        return Exported(converted, outputs, floating)
    moved = {name for node in converted.graph.node for name in node.output} - made
    renamed = {name: before for name in names if (before := f"{name}{_BEFORE}") in moved}
    single = {name for name, encoding in bundle.plan.tensors.items() if encoding.dtype != "int32"}
    single |= {str(node.outputs[0].name) for node in bundle.prepared.ir.graph if facts(node).kind is Kind.LINEAR}
    outputs = tuple(replace(o, dequantize=f"{o.name}{_DEQUANTIZE}") if o.name in single else o for o in outputs)
    return Exported(with_markers(converted, markers, renamed), outputs, floating, undone)


def _name_nodes(proto: onnx.ModelProto) -> None:
    """Give nodes without a name (the insides of an activation unit) one after the named node that they lead to."""
    reader = {name: node for node in reversed(proto.graph.node) for name in node.input}
    taken = {node.name for node in proto.graph.node}
    for node in proto.graph.node:
        if node.name:
            continue
        end = node
        while not end.name and end.output[0] in reader:
            end = reader[end.output[0]]
        stem = f"{end.name or end.output[0]}_{node.op_type}"
        name = next(name for name in (stem, *(f"{stem}_{i}" for i in range(1, len(taken) + 2))) if name not in taken)
        taken.add(name)
        node.name = name


def _set_outputs(proto: onnx.ModelProto, ordered: Sequence[str], scores: bool) -> tuple[ExportedOutput, ...]:
    """Put the outputs in order, in place: maps channels last; with ``scores``, class scores with four axes (TROS)."""
    graph = proto.graph
    shapes = {v.name: tuple(dim.dim_value for dim in v.type.tensor_type.shape.dim) for v in graph.output}
    kinds = {v.name: v.type.tensor_type.elem_type for v in graph.output}
    outputs = []
    for name in ordered:
        shape = shapes[name]
        makers = {output: node for node in graph.node for output in node.output}
        maker = makers.get(name)
        if len(shape) == 4 and maker is not None and _permutation(maker) == _TO_CHANNELS_LAST:
            node = _dequantize_node(makers, maker.input[0], name, shape[3])
            outputs.append(ExportedOutput(name, shape, "NHWC", node))
        elif len(shape) == 4 and shape[2:] != (1, 1):
            moved = tuple(shape[axis] for axis in _TO_CHANNELS_LAST)
            node = _dequantize_node(makers, name, name, shape[1], f"{name}{_BEFORE}")
            before = _rename(graph, name)
            graph.node.append(
                helper.make_node("Transpose", [before], [name], f"{name}_to_NHWC", perm=_TO_CHANNELS_LAST)
            )
            outputs.append(ExportedOutput(name, moved, "NHWC", node, moved=True))
        elif scores and len(shape) == 2:
            moved = (*shape, 1, 1)
            before = _rename(graph, name)
            graph.initializer.append(numpy_helper.from_array(np.asarray(moved, np.int64), f"{name}_shape"))
            graph.node.append(helper.make_node("Reshape", [before, f"{name}_shape"], [name], f"{name}_to_4d"))
            outputs.append(ExportedOutput(name, moved, "", f"{before}{_DEQUANTIZE}"))
        else:
            outputs.append(ExportedOutput(name, shape, "", f"{name}{_DEQUANTIZE}"))
    del graph.output[:]
    graph.output.extend(helper.make_tensor_value_info(o.name, kinds[o.name], o.shape) for o in outputs)
    return tuple(outputs)


def _permutation(node: onnx.NodeProto) -> tuple[int, ...]:
    """Order of the axes of a Transpose, empty for other nodes."""
    perm = next((entry.ints for entry in node.attribute if entry.name == "perm"), ())
    return tuple(perm) if node.op_type == "Transpose" else ()


def _dequantize_node(
    makers: Mapping[str, onnx.NodeProto], tensor: str, output: str, channels: int, renamed: str = ""
) -> str:
    """Name of the node that turns a map into float (seen in hb_mapper 1.24.3).

    Accumulators with a scale a channel are dequantized before the last Transpose, so the node is named after the tensor
    there. What has one scale (one channel, or requantized to 8 or 16 bits) moves as integers first.

    Args:
        makers: node by the tensor that it writes.
        tensor: before the last Transpose.
        output: of the graph.
        channels: of the map.
        renamed: what ``tensor`` is called in the file, where that is something else.
    """
    maker = makers.get(tensor)
    if maker is not None and maker.op_type in _FLOAT_TAILS and any(_per_channel(makers, x) for x in maker.input):
        return ""
    before = channels > 1 and _per_channel(makers, tensor)
    return f"{(renamed or tensor) if before else output}{_DEQUANTIZE}"


def _per_channel(makers: Mapping[str, onnx.NodeProto], tensor: str) -> bool:
    """Whether a tensor leaves the vendor's chip as accumulators with a scale a channel."""
    node = makers.get(tensor)
    if node is None:
        return False
    if node.op_type == "Relu":  # part of the convolution, as an Add behind it is
        return _per_channel(makers, node.input[0])
    operands = [makers.get(name) for name in node.input]
    if node.op_type == "Mul":  # by a constant a channel: becomes a convolution
        return any(operand is None for operand in operands)
    return node.op_type == "Conv" or (
        node.op_type == "Add" and any(operand is not None and operand.op_type == "Conv" for operand in operands)
    )


def _rename(graph: onnx.GraphProto, name: str) -> str:
    """Give a tensor another name, so that an output can take its own."""
    before = f"{name}{_BEFORE}"
    for node in graph.node:
        node.output[:] = [before if output == name else output for output in node.output]
        node.input[:] = [before if entry == name else entry for entry in node.input]
    return before


def verify(exported: Exported, inputs: Sequence[NDArray[np.float32]], threads: int = 0) -> float:
    """Run the bundle's float graph and the exported one, without its ranges.

    Args:
        exported: from :func:`export`.
        inputs: model inputs; one of random pixels is added.
        threads: of onnxruntime.

    Returns:
        The largest difference of an output, as a share of that output's largest magnitude.

    Raises:
        UserError: it is above 1e-4.
    """
    left = Runner(exported.floating, threads)
    right = Runner(without_markers(exported.proto), threads)
    random = np.random.default_rng(0).random(left.input_shape).astype(np.float32)
    worst, where = 0.0, ""
    for tensor in (*inputs, random):
        expected, actual = left.run(tensor), right.run(tensor)
        for output in exported.outputs:
            wanted = np.asarray(expected[output.name], np.float32)
            wanted = wanted.transpose(_TO_CHANNELS_LAST) if output.moved else wanted.reshape(output.shape)
            given = np.asarray(actual[output.name], np.float32)
            difference = float(np.abs(wanted - given).max(initial=0.0)) / float(np.abs(wanted).max(initial=1e-6))
            if not difference <= worst:
                worst, where = difference, output.name
    if not worst <= TOLERANCE:
        raise UserError(
            f"the model at opset {OPSET} computes something else ({where} differs by {worst:.2g} of its range)",
            "please report this model",
        )
    return worst


def decisions(graph: ir.Graph, plan: Plan, target: Target) -> dict[str, list[str]]:
    """Where a plan differs from what the vendor's tool does unasked, by our settings: node names in graph order.

    ``int16``: nodes whose output has 16 bits; ``int8``: those that go to the BPU only because they are asked to;
    ``float``: those left on the CPU that the BPU could run; ``int16_inputs``: those that read 16 bits, ``node#1`` where
    only that input does.
    """
    default = draft(graph, target).placement
    found: dict[str, list[str]] = {"int16": [], "int8": [], "float": [], "int16_inputs": []}
    for node in graph:
        name = str(node.name)
        placement = plan.nodes[name]
        if is_passive(node, target):
            continue  # it carries its input's type
        if placement.type == "float32":
            found["float"] += [name] if default[name].type != "float32" else []
            continue
        encodings = [plan.tensors.get(str(output.name)) for output in node.outputs]
        if placement.type == "int16" or any(entry is not None and entry.dtype == "int16" for entry in encodings):
            found["int16"].append(name)
        elif placement.unit != default[name].unit:
            found["int8"].append(name)
        found["int16_inputs"] += _wide_inputs(node, plan)
    return found


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
    method = str(manifest.calibration["method"])
    values = {
        "model": model, "images": data, "calibration_data": dtype, "out": f"{WORKING_DIR}/{prefix(bundle)}",
        "target": manifest.target, "method": method if method in ("kl", "minmax") else "auto",
        "input_name": manifest.input_name, "size": f"{spec.height}x{spec.width}", "mean": spec.mean,
        "scale": spec.scale, "color": spec.color, "layout": spec.layout, "camera": spec.camera,
        **decisions(bundle.model.ir.graph, bundle.plan, bundle.target),
    }  # fmt: skip
    notes = [] if values["method"] == method else [f"ranges: the tool searches its own; the bundle's are from {method}"]
    return QuantizeSettings.model_validate(values), tuple(notes)


def load_settings(bundle: Bundle, model: str) -> QuantizeSettings:
    """The same where the model carries the plan: of the nodes, only those on the CPU are left to say."""
    settings, _ = hb_settings(bundle, model, "", "uint8")
    graph, plan = bundle.model.ir.graph, bundle.plan
    # all of them: between two ranges the tool takes to the BPU what it can, also what it computes wrongly there
    floats = [node for node in graph if plan.nodes[str(node.name)].type == "float32"]
    moving = [node for node in floats if is_passive(node, bundle.target)]
    left = tuple(str(node.name) for node in floats if node not in moving)
    if "int16" not in bundle.target.activation.types:  # a march without node_info
        left = settings.float_
    spec, encoding = bundle.manifest.preprocess, plan.tensors.get(bundle.manifest.input_name)
    said: dict[str, object] = {"method": "auto", "int16": (), "int8": (), "int16_inputs": (), "float_": left}
    if spec.camera == "rgb" and encoding is not None and encoding.dtype == "int8":
        channels = zip(*np.broadcast_arrays(spec.mean, spec.scale), strict=True)
        terms = [pixel_terms(float(mean), float(step), encoding) for mean, step in channels]
        said |= {"mean": tuple(mean for mean, _ in terms), "scale": tuple(step for _, step in terms)}
    return settings.model_copy(update=said)


def hb_yaml(settings: QuantizeSettings, notes: tuple[str, ...], *, load: bool = False) -> str:
    """The YAML text; what it says is read back by our own strict parser before anyone gets it.

    Args:
        settings: from :func:`hb_settings` or :func:`load_settings`.
        notes: for comments at the top.
        load: the tool takes the ranges from the model, and no images.

    Raises:
        UserError: a combination that hb_mapper does not take.
    """
    config, unsaid = from_settings(settings)
    if load:
        config = config.model_copy(update={"calibration_parameters": CalibrationParameters(calibration_type="load")})
    text = "".join(f"# {note}\n" for note in (*notes, *unsaid)) + write_hb_mapper(config)
    if parse_hb_mapper(parse_yaml(text, "hb_mapper.yaml")[0], "hb_mapper.yaml") != config:
        raise UserError("a name in the model cannot be written to hb_mapper.yaml", "rename it in plain letters")
    return text
