"""The main job: a float model and images become a measured bundle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import onnx_ir as ir

from narrowcast.bundle.choosing import AUTO_METHODS, Candidate, Job, check_effort, choose, vendor_search
from narrowcast.bundle.compare import Comparison, compare_tensors
from narrowcast.bundle.folder import check_out, new_folder
from narrowcast.bundle.manifest import VERSION, Manifest, OutputInfo, versions
from narrowcast.bundle.store import (
    FLOAT_FILE,
    INTEGER_FILE,
    NODES_FILE,
    PLAN_FILE,
    PREPARED_FILE,
    QDQ_FILE,
    TARGET_FILE,
    Bundle,
)
from narrowcast.calibrate import METHODS, ImageSet, collect
from narrowcast.errors import UserError
from narrowcast.graph.model import Model
from narrowcast.graph.units import inline_units
from narrowcast.improve import State
from narrowcast.lower.distance import qdq_distance
from narrowcast.lower.factors import factored, undo_factors, with_factors
from narrowcast.lower.integer import IntegerGraph, dequantized, integer_bytes, lower_integer
from narrowcast.plan import Draft, Encoding, Pins, Plan, draft, plan_to_json
from narrowcast.progress import track
from narrowcast.targets import Target, load_target, write_target

__all__ = ["AUTO_METHODS", "quantize"]

#: Makes further files of a bundle from the graph that was lowered, which is the user's or one with corrected weights.
Extra = Callable[[Model, Plan, Target], Mapping[str, bytes]]
#: Held-back images on which the QDQ graph is compared with the exact integers.
DISTANCE_IMAGES = 2


def quantize(
    model: Model,
    images: ImageSet,
    target: str = "onnx",
    *,
    out: str | Path,
    method: str = "auto",
    percentile: float = 99.99,
    pins: Pins | None = None,
    runtime: str | None = None,
    force: bool = False,
    threads: int = 0,
    command: Sequence[str] = (),
    extra: Extra | None = None,
    search: str = "auto",
    effort: str = "standard",
) -> Bundle:
    """Quantize a model and write the bundle.

    Args:
        model: from :func:`narrowcast.load`.
        images: calibration images, from :func:`narrowcast.images`; a tenth is held back for the comparison.
        target: name of a target, or the path of a target file.
        out: folder to write.
        method: calibration method, or ``"auto"`` to try several and keep the best one.
        percentile: for the method of that name, in percent.
        pins: types and encodings to fix.
        runtime: version of the chip's runtime.
        force: replace an existing bundle.
        threads: of onnxruntime; 0 for all cores.
        command: recorded in the manifest.
        extra: makes further files for the bundle, such as the chip's own model file.
        search: ``"hb-mapper"``: the method ``"auto"`` also tries what the vendor's default search tries.
        effort: ``"fast"`` chooses ranges only; ``"standard"`` and ``"max"`` also correct weights, biases and outputs,
            each where it lowers the loss in task units on calibration images that it was not made from.

    Returns:
        The bundle on disk.

    Raises:
        UserError: see the functions called; nothing is left half-written.
    """
    if method not in (*METHODS, "auto"):
        raise UserError(f"unknown calibration method {method!r}", f"use auto, {', '.join(METHODS)}")
    if not 50 < percentile <= 100:
        raise UserError(f"a percentile of {percentile} keeps too little", "use a value from 99 to 100")
    check_effort(effort)
    path = check_out(out, force)
    drafted = draft(model.ir.graph, load_target(target), pins, runtime)
    calibration, held = images.hold_back()
    difference = {
        key: max(value, model.difference.get(key, 0.0)) for key, value in _first_difference(model, calibration).items()
    }
    float_model = model.to_proto()
    wanted = drafted.wanted_statistics()
    try:
        statistics = collect(float_model, wanted, track(calibration, "calibrate", len(calibration)), threads=threads)
    except FloatingPointError as error:
        raise UserError(f"{model.source} computes {error}", "check the model and the image") from error
    job = Job(model, float_model, drafted, statistics, calibration, method, percentile, threads)
    vendor = vendor_search(job) if search != "auto" else None
    choice = choose(job, effort, vendor)
    chosen, state, chip = choice.candidate, choice.candidate.state, load_target(target)
    integers, why_not = _integers(state, chip)
    lowered = dequantized(integers) if integers is not None else chosen.proto
    outputs = compare_tensors(
        float_model, lowered, {n: n for n in model.output_names}, track(held, "compare", len(held)), threads
    )
    lowered_from = undo_factors(ir.to_proto(state.model), state.factors)
    nodes = compare_tensors(lowered_from, chosen.proto, _node_pairs(drafted, chosen.plan), islice(held, 4), threads)
    record = {
        "method": chosen.method,
        "requested": method,
        "effort": effort,
        **choice.record,
        "images": calibration.hashes(),
        "held_back": held.hashes(),
        "seed": 0,
        **({"hb_search": vendor.to_dict()} if vendor is not None else {}),
    }
    manifest = _manifest(model, drafted, chosen, record, outputs, runtime, command)
    reason = [f"no {INTEGER_FILE}: {why_not}"] if integers is None else integers.notes
    distance = [] if integers is None else _distance(integers, chosen, held, threads)
    notes = (*manifest.notes, *choice.notes, *reason)
    manifest = replace(manifest, difference_to_source=difference, notes=notes, qdq_distance=distance)
    files = {} if integers is None else {INTEGER_FILE: integer_bytes(integers)}
    if extra is not None:
        try:
            files.update(extra(replace(model, ir=state.model), chosen.plan, chip))
        except UserError as error:  # the bundle is good for everything else
            manifest = replace(manifest, notes=(*manifest.notes, f"no model file for the chip: {error}"))
    return _write(path, manifest, model, chosen, nodes, {TARGET_FILE: write_target(chip).encode(), **files})


def _integers(state: State, target: Target) -> tuple[IntegerGraph | None, str]:
    """The exact integer graph, or why there is none."""
    try:
        return with_factors(lower_integer(state.model, state.plan, target), state.factors), ""
    except UserError as error:
        return None, str(error)


def _distance(integers: IntegerGraph, chosen: Candidate, images: ImageSet, threads: int) -> list[dict[str, Any]]:
    """How far the usual QDQ graph is from the integers at the outputs."""
    few = islice(images, DISTANCE_IMAGES)
    rows = qdq_distance(integers, chosen.proto, few, threads=threads)
    return [row.to_dict() for row in rows]


def _first_difference(model: Model, images: ImageSet) -> dict[str, float]:
    """The prepared graph against the original on a real image."""
    return model.compare(next(iter(images)))


def _node_pairs(drafted: Draft, plan: Plan) -> dict[str, str]:
    """Tensors that exist as integers, with their names in the QDQ graph."""
    pairs = {}
    for node in drafted.graph:
        for output in node.outputs:
            name = str(output.name)
            encoding = plan.tensors.get(name)
            if encoding is not None and encoding.dtype != "int32":
                pairs[name] = name if output.is_graph_output() else f"{name}_dequantized"
    return pairs


def _shape(value: ir.Value) -> tuple[int, ...]:
    return tuple(int(dim) for dim in value.shape or ())


def _output(value: ir.Value, state: State) -> OutputInfo:
    name, shape = str(value.name), _shape(value)
    layout = "NCHW" if len(shape) == 4 else ""
    coded: Encoding | None = state.plan.tensors.get(name)
    if coded is None:
        return OutputInfo(name, shape, layout, "float32")
    if name in state.factors:
        coded = factored(coded, state.factors[name])
    return OutputInfo(name, shape, layout, coded.dtype, coded.scale, coded.zero_point, coded.axis)


def _manifest(
    model: Model,
    drafted: Draft,
    chosen: Candidate,
    calibration: dict[str, Any],
    comparison: Sequence[Comparison],
    runtime: str | None,
    command: Sequence[str],
) -> Manifest:
    image = model.ir.graph.inputs[0]
    encoding = chosen.plan.tensors.get(model.input_name)
    outputs = [_output(value, chosen.state) for value in model.ir.graph.outputs]
    int16 = any(entry.dtype == "int16" for entry in chosen.plan.tensors.values())
    return Manifest(
        version=VERSION,
        task=model.task,
        target=drafted.target.name,
        runtime=f"{drafted.target.runtime.name} {runtime or drafted.target.runtime.versions[-1]}",
        model={"source": model.source, "sha256": model.sha256},
        input_name=model.input_name,
        input_shape=_shape(image),
        input_encoding=None
        if encoding is None
        else {"dtype": encoding.dtype, "scale": encoding.scale, "zero_point": encoding.zero_point},
        preprocess=model.preprocess,
        outputs=tuple(outputs),
        head=model.head,
        softmax_missing=model.softmax_missing,
        classes=model.classes,
        skeleton=model.skeleton,
        calibration=calibration,
        difference_to_source={},
        comparison=[entry.to_dict() for entry in comparison],
        qdq_distance=[],
        int16_domain="" if not int16 else "com.microsoft" if chosen.contrib else "ai.onnx",
        notes=(*model.notes, *chosen.state.notes),
        command=tuple(command),
        versions=versions(),
    )


def _write(
    path: Path,
    manifest: Manifest,
    model: Model,
    chosen: Candidate,
    nodes: Sequence[Comparison],
    more: Mapping[str, bytes],
) -> Bundle:
    files = {
        FLOAT_FILE: inline_units(model.to_proto()).SerializeToString(deterministic=True),
        **_prepared(chosen.state),
        QDQ_FILE: chosen.proto.SerializeToString(deterministic=True),
        PLAN_FILE: plan_to_json(chosen.plan).encode(),
        **more,
        NODES_FILE: (json.dumps([entry.to_dict() for entry in nodes], indent=1) + "\n").encode(),
    }
    manifest = replace(manifest, files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
    with new_folder(path) as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        (folder / "manifest.json").write_text(manifest.to_json())
    return Bundle(path, manifest)


def _prepared(state: State) -> dict[str, bytes]:
    """The float graph that the integers come from, where it is not the user's."""
    if not state.changed:
        return {}
    return {PREPARED_FILE: inline_units(ir.to_proto(state.model)).SerializeToString(deterministic=True)}
