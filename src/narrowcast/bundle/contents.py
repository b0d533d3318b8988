"""What a quantized network puts into a bundle, made in one way whoever makes the bundle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from narrowcast.base.errors import UserError
from narrowcast.base.progress import phase, track
from narrowcast.base.writing import inside
from narrowcast.bundle.manifest import (
    INTEGER_FILE,
    MANIFEST_FILE,
    NODES_FILE,
    PLAN_FILE,
    PREPARED_FILE,
    QDQ_FILE,
    TARGET_FILE,
    Manifest,
    OutputInfo,
)
from narrowcast.bundle.mixed import LostColumns, lost_columns, lost_parts
from narrowcast.calibrate import ImageSet
from narrowcast.chips import Target, support, write_target
from narrowcast.engine.integer import IntegerGraph, dequantized, integer_bytes
from narrowcast.engine.network import QuantizedNetwork
from narrowcast.engine.noise import Noise, compare_tensors
from narrowcast.engine.qdq import Factors, factored, undo_factors
from narrowcast.engine.verify import qdq_distance
from narrowcast.graph.model import Model
from narrowcast.graph.run import with_data
from narrowcast.ops.net import dims, named
from narrowcast.ops.units import inline_units
from narrowcast.plan import Plan, plan_to_json
from narrowcast.plan.invariants import violations

__all__ = [
    "NO_CHIP_FILE", "NO_INTEGERS", "Content", "Contents", "Extra", "float_bytes", "json_bytes", "make_contents",
    "output_info", "output_of", "proto_bytes", "write_contents",
]  # fmt: skip

#: Makes further files of a bundle, such as the chip's own model file, from the graph that was lowered, which is the
#: user's or one with corrected weights, and from the factors in it.
Extra = Callable[[Model, Plan, Target, Factors], Mapping[str, bytes]]
#: Of a file: its bytes, or what makes them when they are written, so that those of one file are in memory at a time.
Content = bytes | Callable[[], bytes]
#: How notes on files that could not be made begin.
NO_INTEGERS, NO_CHIP_FILE = f"no {INTEGER_FILE}", "no model file for the chip"
#: Images on which every tensor is compared, and the QDQ graph with the exact integers.
_TENSOR_IMAGES, _DISTANCE_IMAGES = 4, 2
#: Images on which a column that never changes counts as constant, at most.
WATCHED_IMAGES = 8


@dataclass(frozen=True)
class Contents:
    """What a quantized network puts into a bundle.

    Attributes:
        files: by name, without those of the user's model. Among them, where there are such, the float graph that the
            integers come from (if it is not the user's), the exact integers, and what ``extra`` made.
        entries: of the manifest: what is measured on the files.
        notes: on the integers and the chip's files.
    """

    files: Mapping[str, Content]
    entries: dict[str, Any]
    notes: tuple[str, ...]


@phase("compare")
def make_contents(
    model: Model,
    network: QuantizedNetwork,
    floating: onnx.ModelProto,
    images: ImageSet,
    threads: int = 0,
    extra: Extra | None = None,
    runtime: str | None = None,
    watched: ImageSet | None = None,
) -> Contents:
    """Make the files of a quantized network and compare it with the float model.

    Args:
        model: whose graph ``network`` holds, perhaps with other weights.
        network: to write.
        floating: the user's float graph.
        images: that chose nothing.
        threads: of onnxruntime; 0 for all cores.
        extra: makes further files; where it cannot, a note says why.
        runtime: version of the chip's runtime; ``None`` for the newest known.
        watched: on which columns of outputs are watched; by default ``images``.

    Raises:
        UserError: the plan breaks a rule of the target.
    """
    plan, target = network.plan, network.target
    for wrong in violations(network.model.graph, plan, target, runtime):
        raise UserError(f"the plan breaks a rule of {target.name}: {wrong}", "please report the model")
    qdq, contrib = network.qdq()
    integers, notes = _integers(network)
    best = qdq if integers is None else dequantized(integers)
    lowered_from = undo_factors(ir.to_proto(network.model), network.factors)
    names = {name: name for name in model.output_names}
    outputs = compare_tensors(floating, best, names, track(images, "compare", len(images)), threads)
    seen, pairs = list(islice(images, _TENSOR_IMAGES)), _tensor_pairs(network.model.graph, plan)
    tensors = compare_tensors(lowered_from, qdq, pairs, seen, threads)
    watched = (images if watched is None else watched).spread(WATCHED_IMAGES)
    steps = {name: float(code.scales) for name, code in plan.tensors.items() if not code.scales.ndim}
    lost = lost_parts(network.model.graph, lowered_from, qdq, pairs, seen, threads, steps)
    lost += lost_columns(model.ir.graph, floating, best, track(watched, "columns", len(watched)), threads, steps)
    chip, refused = _chip_files(replace(model, ir=network.model), network, extra)
    few = islice(images, _DISTANCE_IMAGES)
    distances = [] if integers is None else qdq_distance(integers, qdq, few, threads=threads)
    entries = {
        "comparison": _rows(outputs),
        "qdq_distance": [row.to_dict() for row in distances],
        "lost_columns": [entry.to_dict() for entry in lost],
        "int16_domain": int16_domain(plan, contrib),
    }
    files: dict[str, Content] = {
        **({PREPARED_FILE: partial(float_bytes, network.model)} if network.changed else {}),
        QDQ_FILE: partial(proto_bytes, qdq),
        PLAN_FILE: plan_to_json(plan).encode(),
        TARGET_FILE: write_target(target).encode(),
        **({} if integers is None else {INTEGER_FILE: partial(integer_bytes, integers)}),
        **chip,
        NODES_FILE: json_bytes(_rows(tensors)),
    }
    return Contents(files, entries, (*notes, *refused, *(_said(entry, network, runtime) for entry in lost)))


def _said(lost: LostColumns, network: QuantizedNetwork, runtime: str | None) -> str:
    """The note on a loss, with the option that gives the node more bits on the chip."""
    node, target = named(network.model.graph).get(lost.node), network.target
    narrow = node is not None and target.float_nodes and "int16" not in support(node, target, runtime).types
    return lost.note("--float" if narrow else "--int16")


def _integers(network: QuantizedNetwork) -> tuple[IntegerGraph | None, Sequence[str]]:
    """The exact integer graph with its notes, or a note on why there is none."""
    try:
        integers = network.integers()
    except UserError as error:
        return None, (f"{NO_INTEGERS}: {error}",)
    return integers, integers.notes


def _chip_files(
    model: Model, network: QuantizedNetwork, extra: Extra | None
) -> tuple[Mapping[str, bytes], Sequence[str]]:
    """The chip's own files, or a note on why there are none."""
    if extra is None:
        return {}, ()
    try:
        return extra(model, network.plan, network.target, network.factors), ()
    except UserError as error:  # the bundle is good for everything else
        return {}, (f"{NO_CHIP_FILE}: {error}",)


def _tensor_pairs(graph: ir.Graph, plan: Plan) -> dict[str, str]:
    """Tensors that exist as integers, with their names in the QDQ graph."""
    pairs = {}
    for node in graph:
        for output in node.outputs:
            name = str(output.name)
            encoding = plan.tensors.get(name)
            if encoding is not None and encoding.dtype != "int32":
                pairs[name] = name if output.is_graph_output() else f"{name}_dequantized"
    return pairs


def _rows(noises: Mapping[str, Noise]) -> list[dict[str, Any]]:
    return [noise.row(name) for name, noise in noises.items()]


def int16_domain(plan: Plan, contrib: bool) -> str:
    """Domain of the QDQ graph's 16-bit operators for the manifest, empty where it has none."""
    wide = any(encoding.dtype == "int16" for encoding in plan.tensors.values())
    return "" if not wide else "com.microsoft" if contrib else "ai.onnx"


def output_of(value: ir.Value, plan: Plan, factors: Factors) -> OutputInfo:
    """An output of a graph for the manifest."""
    shape = dims(value)
    kind = "float32" if value.dtype in (None, ir.DataType.FLOAT) else value.dtype.name.lower()
    info = OutputInfo(str(value.name), shape, "NCHW" if len(shape) == 4 else "", kind)
    return output_info(info, plan, factors)


def output_info(output: OutputInfo, plan: Plan, factors: Factors) -> OutputInfo:
    """The same output as another plan encodes it; unchanged where the plan does not."""
    coded = plan.tensors.get(output.name)
    if coded is None:
        return output
    if output.name in factors:
        coded = factored(coded, factors[output.name])
    return replace(output, chip_dtype=coded.dtype, scale=coded.scale, zero_point=coded.zero_point, axis=coded.axis)


def proto_bytes(proto: onnx.ModelProto) -> bytes:
    """An ONNX file: equal graphs give equal bytes."""
    return bytes(with_data(proto).SerializeToString(deterministic=True))


def float_bytes(model: ir.Model) -> bytes:
    """The ONNX file of a prepared float graph, in operators that every runtime knows."""
    return proto_bytes(inline_units(ir.to_proto(model)))


def json_bytes(data: Any) -> bytes:
    """A JSON file."""
    return (json.dumps(data, indent=1) + "\n").encode()


def write_contents(folder: Path, manifest: Manifest, files: Mapping[str, Content]) -> Manifest:
    """Write files and the manifest into a new folder; returns the manifest with the hashes of the files added."""
    hashes = {}
    for name, content in files.items():
        data = content() if callable(content) else content
        hashes[name] = hashlib.sha256(data).hexdigest()
        inside(folder, name).write_bytes(data)
        del data
    manifest = replace(manifest, files={**manifest.files, **hashes})
    (folder / MANIFEST_FILE).write_text(manifest.to_json())
    return manifest
