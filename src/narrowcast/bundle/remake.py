"""A bundle with other weights or another plan: every file that depends on them is made again, as ``quantize`` does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from narrowcast.bundle.compare import compare_tensors
from narrowcast.bundle.folder import check_out, new_folder
from narrowcast.bundle.manifest import Manifest, OutputInfo, versions
from narrowcast.bundle.store import (
    FLOAT_FILE,
    INTEGER_FILE,
    NODES_FILE,
    PLAN_FILE,
    PREPARED_FILE,
    QDQ_FILE,
    TARGET_FILE,
    Bundle,
    open_bundle,
)
from narrowcast.calibrate import ImageSet
from narrowcast.errors import UserError
from narrowcast.graph.model import Model
from narrowcast.graph.units import inline_units
from narrowcast.improve import State
from narrowcast.lower.distance import qdq_distance
from narrowcast.lower.factors import factored, undo_factors, with_factors
from narrowcast.lower.integer import IntegerGraph, dequantized, integer_bytes, lower_integer
from narrowcast.plan import Plan, plan_to_json
from narrowcast.progress import track
from narrowcast.targets import Target, write_target

__all__ = ["lowered", "remake", "state_of"]

#: Makes further files of a bundle, such as the chip's own model file.
Extra = Callable[[Model, Plan, Target], Mapping[str, bytes]]
#: Images on which every tensor, and the QDQ graph, is compared.
_TENSOR_IMAGES, _DISTANCE_IMAGES = 4, 2


def state_of(bundle: Bundle) -> State:
    """The quantized network that a bundle holds.

    Raises:
        UserError: the ends of the bundle were changed since.
    """
    if bundle.manifest.modified:
        raise UserError(f"the ends of {bundle.path} were changed by modify", "modify the result instead")
    changed = PREPARED_FILE in bundle.manifest.files
    return State(bundle.prepared.ir, bundle.plan, factors=bundle.factors, changed=changed)


def lowered(state: State, target: Target) -> tuple[onnx.ModelProto, bool]:
    """The graph that tells best what the chip gives, with float outputs: the exact integers where there are any.

    Returns:
        The graph, and whether it holds the exact integers; otherwise it is the QDQ graph.
    """
    integers, _ = _integers(state, target)
    return (state.lower()[0], False) if integers is None else (dequantized(integers), True)


def _integers(state: State, target: Target) -> tuple[IntegerGraph | None, str]:
    try:
        return with_factors(lower_integer(state.model, state.plan, target), state.factors), ""
    except UserError as error:
        return None, str(error)


def remake(
    bundle: Bundle,
    state: State,
    record: Mapping[str, Any],
    images: ImageSet,
    *,
    out: str | Path,
    force: bool = False,
    threads: int = 0,
    command: Sequence[str] = (),
    extra: Extra | None = None,
) -> Bundle:
    """Write a bundle with other weights or another plan.

    Args:
        bundle: to start from; not changed.
        state: the new weights and plan.
        record: joins the manifest's ``calibration``; JSON-ready.
        images: that chose nothing; the comparison with float is made on them.
        out: folder to write.
        force: replace an existing bundle.
        threads: of onnxruntime; 0 for all cores.
        command: recorded in the manifest.
        extra: makes further files.

    Returns:
        The new bundle.

    Raises:
        UserError: the folder exists or cannot be written; nothing is left half-written.
    """
    path = check_out(out, force)
    target, model = bundle.target, replace(bundle.prepared, ir=state.model)
    qdq, contrib = state.lower()
    integers, why_not = _integers(state, target)
    floating, best = bundle.model.to_proto(), qdq if integers is None else dequantized(integers)
    names = {name: name for name in model.output_names}
    compared = compare_tensors(floating, best, names, track(images, "compare", len(images)), threads)
    own = undo_factors(ir.to_proto(state.model), state.factors)
    rows = compare_tensors(own, qdq, _pairs(state), islice(images, _TENSOR_IMAGES), threads)
    files = {**_files(state, qdq, integers), NODES_FILE: _json([row.to_dict() for row in rows])}
    notes = [f"no {INTEGER_FILE}: {why_not}"] if integers is None else list(integers.notes)
    if extra is not None:
        try:
            files.update(extra(model, state.plan, target))
        except UserError as error:  # the bundle is good for everything else
            notes.append(f"no model file for the chip: {error}")
    manifest = replace(
        _manifest(bundle.manifest, state, notes, contrib),
        calibration={**bundle.manifest.calibration, **record},
        comparison=[row.to_dict() for row in compared],
        qdq_distance=[] if integers is None else _distance(integers, qdq, images, threads),
        command=tuple(command),
    )
    return _write(path, replace(bundle, manifest=manifest), files)


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=1) + "\n").encode()


def _files(state: State, qdq: onnx.ModelProto, integers: IntegerGraph | None) -> dict[str, bytes]:
    """The graphs and the plan."""
    files = {QDQ_FILE: qdq.SerializeToString(deterministic=True), PLAN_FILE: plan_to_json(state.plan).encode()}
    if state.changed:
        files[PREPARED_FILE] = inline_units(ir.to_proto(state.model)).SerializeToString(deterministic=True)
    if integers is not None:
        files[INTEGER_FILE] = integer_bytes(integers)
    return files


def _manifest(before: Manifest, state: State, notes: Sequence[str], contrib: bool) -> Manifest:
    """The manifest with the new outputs and notes; those about files that are made again are replaced."""
    made_again = (f"no {INTEGER_FILE}", "no model file for the chip")
    kept = [note for note in before.notes if not note.startswith(made_again)]
    wide = any(encoding.dtype == "int16" for encoding in state.plan.tensors.values())
    return replace(
        before,
        outputs=tuple(_output(output, state) for output in before.outputs),
        int16_domain="" if not wide else "com.microsoft" if contrib else "ai.onnx",
        notes=tuple(dict.fromkeys([*kept, *notes])),
        versions={**before.versions, **versions()},
    )


def _pairs(state: State) -> dict[str, str]:
    """Tensors that exist as integers, with their names in the QDQ graph."""
    pairs = {}
    for node in state.model.graph:
        for output in node.outputs:
            name = str(output.name)
            encoding = state.plan.tensors.get(name)
            if encoding is not None and encoding.dtype != "int32":
                pairs[name] = name if output.is_graph_output() else f"{name}_dequantized"
    return pairs


def _distance(graph: IntegerGraph, qdq: onnx.ModelProto, images: ImageSet, threads: int) -> list[dict[str, Any]]:
    rows = qdq_distance(graph, qdq, islice(images, _DISTANCE_IMAGES), threads=threads)
    return [row.to_dict() for row in rows]


def _output(output: OutputInfo, state: State) -> OutputInfo:
    coded = state.plan.tensors.get(output.name)
    if coded is None:
        return output
    if output.name in state.factors:
        coded = factored(coded, state.factors[output.name])
    return replace(output, chip_dtype=coded.dtype, scale=coded.scale, zero_point=coded.zero_point, axis=coded.axis)


def _write(path: Path, bundle: Bundle, files: Mapping[str, bytes]) -> Bundle:
    """Write the new files, and the user's float graph as it was."""
    floating = (bundle.path / FLOAT_FILE).read_bytes()
    every = {FLOAT_FILE: floating, TARGET_FILE: write_target(bundle.target).encode(), **files}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in every.items()}
    with new_folder(path) as folder:
        for name, data in every.items():
            (folder / name).write_bytes(data)
        (folder / "manifest.json").write_text(replace(bundle.manifest, files=hashes).to_json())
    return open_bundle(path)
