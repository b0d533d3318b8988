"""The main job: a float model and images become a measured bundle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from narrowcast.bundle.compare import Comparison, compare_tensors, mean_sqnr
from narrowcast.bundle.folder import check_out, new_folder
from narrowcast.bundle.manifest import VERSION, Manifest, OutputInfo, versions
from narrowcast.bundle.store import FLOAT_FILE, INTEGER_FILE, NODES_FILE, PLAN_FILE, QDQ_FILE, Bundle
from narrowcast.calibrate import METHODS, ImageSet, TensorStatistics, collect
from narrowcast.calibrate.statistics import with_outputs
from narrowcast.errors import UserError
from narrowcast.graph.model import Model
from narrowcast.graph.run import Runner
from narrowcast.graph.units import inline_units
from narrowcast.improve import refine_ranges
from narrowcast.lower import lower_qdq
from narrowcast.lower.distance import qdq_distance
from narrowcast.lower.integer import IntegerGraph, dequantized, integer_bytes, lower_integer
from narrowcast.plan import Draft, Encoding, Pins, Plan, draft, finish, plan_to_json
from narrowcast.progress import track
from narrowcast.targets import Target, load_target

__all__ = ["AUTO_METHODS", "quantize"]

#: What the method "auto" tries. Which is best depends on the model (docs/calibration.md), so it is measured.
AUTO_METHODS = ("mse", "lp", "percentile", "mean-minmax")
#: Calibration images on which "auto" compares methods.
AUTO_IMAGES = 6
#: Images and trials of the refinement that follows. With three images it fitted them and lost on others (measured).
REFINE_IMAGES, REFINE_TRIALS = 6, 24


#: Makes further files of a bundle.
Extra = Callable[[Model, Plan, Target], Mapping[str, bytes]]
#: Held-back images on which the QDQ graph is compared with the exact integers.
DISTANCE_IMAGES = 2


@dataclass(frozen=True)
class _Candidate:
    method: str
    plan: Plan
    notes: list[str]
    proto: onnx.ModelProto
    contrib: bool


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
) -> Bundle:
    """Quantize a model and write the bundle.

    Args:
        model: from :func:`narrowcast.load`.
        images: calibration images, from :func:`narrowcast.images`; a tenth is held back for the comparison.
        target: name of a target, or the path of a target file.
        out: folder to write.
        method: calibration method, or ``"auto"`` to try several and keep the one with the least noise at the outputs.
        percentile: for the method of that name, in percent.
        pins: types and encodings to fix.
        runtime: version of the chip's runtime.
        force: replace an existing bundle.
        threads: of onnxruntime; 0 for all cores.
        command: recorded in the manifest.
        extra: makes further files for the bundle, such as the chip's own model file.

    Returns:
        The bundle on disk.

    Raises:
        UserError: see the functions called; nothing is left half-written.
    """
    if method not in (*METHODS, "auto"):
        raise UserError(f"unknown calibration method {method!r}", f"use auto, {', '.join(METHODS)}")
    if not 50 < percentile <= 100:
        raise UserError(f"a percentile of {percentile} keeps too little", "use a value from 99 to 100")
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
    chosen, scores = _choose(model, drafted, statistics, method, percentile, calibration, float_model, threads)
    chip = load_target(target)
    integers, why_not = _integers(model, chosen.plan, chip)
    lowered = dequantized(integers) if integers is not None else chosen.proto
    outputs = compare_tensors(
        float_model, lowered, {n: n for n in model.output_names}, track(held, "compare", len(held)), threads
    )
    nodes = compare_tensors(float_model, chosen.proto, _node_pairs(drafted, chosen.plan), islice(held, 4), threads)
    record = {
        "method": chosen.method,
        "requested": method,
        "mean_output_sqnr_db": scores,
        "images": calibration.hashes(),
        "held_back": held.hashes(),
        "seed": 0,
    }
    manifest = _manifest(model, drafted, chosen, record, outputs, runtime, command)
    notes = (*manifest.notes, *([f"no {INTEGER_FILE}: {why_not}"] if integers is None else integers.notes))
    distance = [] if integers is None else _distance(integers, chosen, held, threads)
    manifest = replace(manifest, difference_to_source=difference, notes=notes, qdq_distance=distance)
    files = {} if integers is None else {INTEGER_FILE: integer_bytes(integers)}
    if extra is not None:
        try:
            files.update(extra(model, chosen.plan, chip))
        except UserError as error:  # the bundle is good for everything else
            manifest = replace(manifest, notes=(*manifest.notes, f"no model file for the chip: {error}"))
    return _write(path, manifest, model, chosen, nodes, files)


def _integers(model: Model, plan: Plan, target: Target) -> tuple[IntegerGraph | None, str]:
    """The exact integer graph, or why there is none."""
    try:
        return lower_integer(model.ir, plan, target), ""
    except UserError as error:
        return None, str(error)


def _distance(integers: IntegerGraph, chosen: _Candidate, images: ImageSet, threads: int) -> list[dict[str, Any]]:
    """How far the usual QDQ graph is from the integers at the outputs."""
    few = islice(images, DISTANCE_IMAGES)
    rows = qdq_distance(integers, chosen.proto, few, threads=threads)
    return [{"name": r.tensor, "differing": round(r.share, 6), "largest": r.largest, "unit": r.unit} for r in rows]


def _first_difference(model: Model, images: ImageSet) -> dict[str, float]:
    """The prepared graph against the original on a real image."""
    return model.compare(next(iter(images)))


def _choose(
    model: Model,
    drafted: Draft,
    statistics: dict[str, TensorStatistics],
    method: str,
    percentile: float,
    calibration: ImageSet,
    float_model: onnx.ModelProto,
    threads: int,
) -> tuple[_Candidate, dict[str, float]]:
    """The plan of the asked method, or of the best of :data:`AUTO_METHODS`, refined, and scores in dB."""
    names = AUTO_METHODS if method == "auto" else (method,)
    few = list(islice(calibration, AUTO_IMAGES))
    pairs = _scored(model, drafted)
    found: dict[str, _Candidate] = {}
    scores: dict[str, float] = {}
    for name in track(names, "ranges"):
        found[name] = _candidate(model, drafted, statistics, name, percentile)
        scores[name] = round(mean_sqnr(compare_tensors(float_model, found[name].proto, pairs, few, threads)), 3)
    best = max(found.values(), key=lambda candidate: scores[candidate.method])
    if method != "auto":
        return best, scores
    runner = Runner(with_outputs(float_model, list(pairs)), threads, "basic")
    chosen, _, score = refine_ranges(
        model.ir,
        drafted,
        best.plan,
        [candidate.plan for candidate in found.values() if candidate is not best],
        few[:REFINE_IMAGES],
        [runner.run(tensor, list(pairs)) for tensor in few[:REFINE_IMAGES]],
        outputs=pairs,
        trials=REFINE_TRIALS,
        threads=threads,
    )
    if not chosen:
        return best, scores
    refined = _candidate(model, drafted, statistics, best.method, percentile, chosen)
    scores["refined"] = round(score, 3)
    return replace(refined, method=f"{best.method}, {len(chosen)} of them refined"), scores


def _scored(model: Model, drafted: Draft) -> dict[str, str]:
    """What methods are judged by: the outputs, or the logits where probabilities leave.

    A probability of a few images says next to nothing of the classes that they do not show.
    """
    last = model.ir.graph.outputs[0].producer()
    if model.task != "classify" or last is None or last.op_type != "Softmax" or last.inputs[0] is None:
        return {name: name for name in model.output_names}
    logits = str(last.inputs[0].name)
    return {logits: f"{logits}_dequantized" if logits in drafted.structure.of else logits}


def _candidate(
    model: Model,
    drafted: Draft,
    statistics: dict[str, TensorStatistics],
    method: str,
    percentile: float,
    chosen: Mapping[int, Encoding] | None = None,
) -> _Candidate:
    plan, notes = finish(drafted, statistics, method, percentile, chosen)
    return _Candidate(method, plan, notes, *lower_qdq(model.ir, plan))


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


def _manifest(
    model: Model,
    drafted: Draft,
    chosen: _Candidate,
    calibration: dict[str, Any],
    comparison: Sequence[Comparison],
    runtime: str | None,
    command: Sequence[str],
) -> Manifest:
    image = model.ir.graph.inputs[0]
    encoding = chosen.plan.tensors.get(model.input_name)
    outputs = []
    for value in model.ir.graph.outputs:
        name = str(value.name)
        shape = _shape(value)
        layout = "NCHW" if len(shape) == 4 else ""
        coded = chosen.plan.tensors.get(name)
        if coded is None:
            outputs.append(OutputInfo(name, shape, layout, "float32"))
        else:
            outputs.append(OutputInfo(name, shape, layout, coded.dtype, coded.scale, coded.zero_point, coded.axis))
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
        notes=(*model.notes, *chosen.notes),
        command=tuple(command),
        versions=versions(),
    )


def _write(
    path: Path,
    manifest: Manifest,
    model: Model,
    chosen: _Candidate,
    nodes: Sequence[Comparison],
    more: Mapping[str, bytes],
) -> Bundle:
    files = {
        FLOAT_FILE: inline_units(model.to_proto()).SerializeToString(deterministic=True),
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
