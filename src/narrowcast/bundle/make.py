"""The main job: a float model and images become a measured bundle, and a bundle one of another network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from narrowcast.base.errors import UserError
from narrowcast.base.progress import phase, track
from narrowcast.base.writing import Place, new_folder
from narrowcast.bundle.check import findings
from narrowcast.bundle.choosing import Job, check_effort, choose, vendor_search
from narrowcast.bundle.contents import (
    NO_CHIP_FILE,
    NO_INTEGERS,
    WATCHED_IMAGES,
    Content,
    float_bytes,
    make_contents,
    output_info,
    output_of,
    proto_bytes,
    write_contents,
)
from narrowcast.bundle.kits import Origin, chip_files
from narrowcast.bundle.manifest import FLOAT_FILE, JOIN_FILE, VERSION, Manifest, check_out, versions
from narrowcast.bundle.mixed import LOST, part, without
from narrowcast.bundle.store import Bundle
from narrowcast.calibrate import METHODS, Images, ImageSet, TensorStatistics, collect
from narrowcast.calibrate import images as find_images
from narrowcast.chips import Target, load_target
from narrowcast.engine.network import QuantizedNetwork
from narrowcast.graph import Model, load
from narrowcast.ops.net import dims
from narrowcast.plan import Draft, Pins, draft

__all__ = ["quantize", "remake"]

#: Calibration images that show the sizes of what an output joins.
PART_IMAGES = 8


def quantize(
    model: Model | str | Path,
    images: Images,
    target: str = "onnx",
    *,
    out: str | Path | None = None,
    method: str = "auto",
    percentile: float = 99.99,
    pins: Pins | None = None,
    runtime: str | None = None,
    force: bool = False,
    threads: int = 0,
    command: Sequence[str] = (),
    search: str = "auto",
    effort: str = "standard",
    output_factors: bool | None = None,
) -> Bundle:
    """Quantize a model and write the bundle, with the chip's own model file where we write that.

    Args:
        model: from :func:`narrowcast.load`, or the path of one.
        images: calibration images: what :func:`narrowcast.images` gives or takes. A tenth is held back for the
            comparison; unreadable files and second copies are left out.
        target: name of a target, or the path of a target file.
        out: folder to write; by default named after the model and the target, in the current folder.
        method: calibration method, or ``"auto"`` to try several and keep the best one.
        percentile: for the method of that name, in percent.
        pins: types and encodings to fix.
        runtime: version of the chip's runtime; the newest known by default.
        force: replace an existing bundle.
        threads: of onnxruntime; 0 for all cores.
        command: recorded in the manifest.
        search: ``"hb-mapper"``: the method ``"auto"`` also tries what the vendor's default search tries.
        effort: ``"fast"`` chooses ranges only; ``"standard"`` and ``"max"`` also correct weights, biases and outputs,
            each where it lowers the loss in task units on calibration images that it was not made from.
        output_factors: outputs may leave with a scale a channel, which the reader of the integers has to know; by
            default where all that reads them on the chip does.

    Returns:
        The bundle on disk.

    Raises:
        UserError: see the functions called, and what the runtime would refuse, which is said before anything slow
            starts; nothing is left half-written.
    """
    if method not in (*METHODS, "auto"):
        raise UserError(f"unknown calibration method {method!r}", f"use auto, {', '.join(METHODS)}")
    if not 50 < percentile <= 100:
        raise UserError(f"a percentile of {percentile} keeps too little", "use a value from 99 to 100")
    check_effort(effort)
    chip = load_target(target)
    model = model if isinstance(model, Model) else load(model)
    _check_runtime(model, chip, runtime, pins)
    origin = Origin({"source": model.source, "sha256": model.sha256}, model.meaning, bool(output_factors))
    place = check_out(out if out is not None else f"{Path(model.source).stem}-{chip.name}", force)
    with phase("plan"):
        drafted = draft(model.ir.graph, chip, pins, runtime)
    found = find_images(images, model.preprocess).usable()
    calibration, held = found.hold_back()
    with phase("check"):
        difference = _difference(model, calibration)
        whole = model.ir.graph
        model = part(model, drafted, calibration.spread(PART_IMAGES), threads)
    if model.join is not None:
        drafted = draft(model.ir.graph, chip, without(pins, whole, model.ir.graph), runtime)
    float_model = model.to_proto()
    statistics = _statistics(model, float_model, drafted, calibration, threads)
    spread = chip.outputs.factors if output_factors is None else output_factors
    job = Job(model, float_model, drafted, statistics, calibration, held, method, percentile, threads, spread)
    vendor = vendor_search(job, search) if search != "auto" else None
    choice = choose(job, effort, vendor)
    network = choice.network
    compared = held if len(held) else calibration
    watched = replace(held, sources=(*held.sources, *calibration.spread(WATCHED_IMAGES).sources))
    extra = chip_files(chip, origin, runtime)
    made = make_contents(model, network, float_model, compared, threads, extra, runtime, watched)
    record = {
        "method": choice.method,
        "requested": method,
        "effort": effort,
        "output_factors": spread,
        **choice.record,
        "images": calibration.hashes(),
        "held_back": held.hashes(),
        "seed": 0,
        **(vendor.record if vendor is not None else {}),
    }
    said = [model.assumption] if model.assumption else []
    manifest = replace(
        _manifest(model, network, runtime),
        **made.entries,
        calibration=record,
        difference_to_source=difference,
        notes=(
            *model.notes, *said, *found.notes, *network.notes, *choice.notes,
            *_factor_notes(job, effort, network), *made.notes,
        ),
        command=tuple(command),
    )
    files = {FLOAT_FILE: partial(float_bytes, model.ir), **made.files}
    if model.join is not None:
        files[JOIN_FILE] = proto_bytes(model.join.proto)
    return _write(place, manifest, files)


def _check_runtime(model: Model, chip: Target, runtime: str | None, pins: Pins | None) -> None:
    """Raises ``UserError`` for the first thing that the chip's runtime cannot run."""
    for row in findings(model, chip, runtime, pins):
        if row.severity == "error":
            where = f"{row.node} ({row.op_type})" if row.node != "--" else model.source
            raise UserError(f"{chip.runtime.name} cannot run {where}: {row.problem}", row.remedy)


def _factor_notes(job: Job, effort: str, network: QuantizedNetwork) -> tuple[str, ...]:
    """What a person has to know of the scales of the outputs."""
    chip = job.drafted.target
    if chip.outputs.factors or job.model.head is None:
        return ()
    if network.factors:
        names = ", ".join(network.factors)
        return (f"{names}: a scale a channel, which {chip.runtime.name}'s own decode does not know",)
    if job.factors or effort == "fast":
        return ()
    return (f"outputs have one scale, as {chip.runtime.name}'s own decode reads them; see --output-factors",)


def _difference(model: Model, images: ImageSet) -> dict[str, float]:
    """The prepared graph against the original: the larger of what loading found and what a real image shows."""
    found = model.compare(next(iter(images)))
    return {key: max(value, model.difference.get(key, 0.0)) for key, value in found.items()}


def _statistics(
    model: Model, float_model: onnx.ModelProto, drafted: Draft, images: ImageSet, threads: int
) -> dict[str, TensorStatistics]:
    """What calibration sees."""
    wanted = drafted.wanted_statistics()
    try:
        return collect(float_model, wanted, track(images, "calibrate", len(images)), threads=threads)
    except FloatingPointError as error:
        raise UserError(f"{model.source} computes {error}", "check the model and the image") from error


def _manifest(model: Model, network: QuantizedNetwork, runtime: str | None) -> Manifest:
    """The manifest, but for what is measured and what is known of the way to it."""
    plan, chip = network.plan, network.target.runtime
    code = plan.tensors.get(model.input_name)
    return Manifest(
        version=VERSION,
        target=network.target.name,
        runtime=f"{chip.name} {runtime or chip.versions[-1]}",
        model={"source": model.source, "sha256": model.sha256},
        input_name=model.input_name,
        input_shape=dims(model.ir.graph.inputs[0]),
        input_encoding=None
        if code is None
        else {"dtype": code.dtype, "scale": code.scale, "zero_point": code.zero_point},
        preprocess=model.preprocess,
        outputs=tuple(output_of(value, plan, network.factors) for value in model.ir.graph.outputs),
        **model.meaning.record(),
        classes=model.classes,
        skeleton=model.skeleton,
        calibration={},
        difference_to_source={},
        comparison=[],
        qdq_distance=[],
        assumed=list(model.assumed),
        join=model.join.describe(JOIN_FILE) if model.join is not None else {},
        int16_domain="",
        notes=(),
        command=(),
        versions=versions(),
    )


def _write(place: Place, manifest: Manifest, files: Mapping[str, Content]) -> Bundle:
    with phase("write"), new_folder(place) as folder:
        return Bundle(place.path, write_contents(folder, manifest, files))


def remake(
    bundle: Bundle,
    network: QuantizedNetwork,
    record: Mapping[str, Any],
    images: ImageSet,
    *,
    out: str | Path | Place,
    force: bool = False,
    threads: int = 0,
    command: Sequence[str] = (),
) -> Bundle:
    """Write a bundle with other weights or another plan: every file that depends on them is made again.

    Args:
        bundle: to start from; not changed.
        network: the new weights and plan.
        record: joins the manifest's ``calibration``; JSON-ready.
        images: that chose nothing; the comparison with float is made on them.
        out: folder to write, or its place as :func:`narrowcast.bundle.manifest.check_out` found it.
        force, threads, command: as :func:`quantize` takes them.

    Returns:
        The new bundle.

    Raises:
        UserError: the folder exists or cannot be written; nothing is left half-written.
    """
    place = out if isinstance(out, Place) else check_out(out, force)
    before = bundle.manifest
    floating = bundle.model.to_proto()
    extra = chip_files(network.target, Origin.of(before), before.runtime_version)
    made = make_contents(bundle.prepared, network, floating, images, threads, extra, before.runtime_version)
    kept = [note for note in before.notes if not note.startswith((NO_INTEGERS, NO_CHIP_FILE, LOST))]
    manifest = replace(
        before,
        **made.entries,
        outputs=tuple(output_info(output, network.plan, network.factors) for output in before.outputs),
        notes=tuple(dict.fromkeys([*kept, *made.notes])),
        calibration={**before.calibration, **record},
        versions={**before.versions, **versions()},
        command=tuple(command),
        files={},
    )
    own: dict[str, Content] = {n: bundle.file(n).read_bytes for n in (FLOAT_FILE, JOIN_FILE) if n in before.files}
    files = {FLOAT_FILE: own.pop(FLOAT_FILE), **made.files, **own}
    return _write(place, manifest, files)
