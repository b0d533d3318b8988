"""A bundle with other weights or another plan: every file that depends on them is made again, as ``quantize`` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from narrowcast.base.errors import UserError
from narrowcast.base.writing import Place, new_folder
from narrowcast.bundle.columns import LOST
from narrowcast.bundle.contents import (
    NO_CHIP_FILE,
    NO_INTEGERS,
    Content,
    Extra,
    int16_domain,
    integers_of,
    make_contents,
    output_info,
    write_contents,
)
from narrowcast.bundle.folder import check_out
from narrowcast.bundle.manifest import Manifest, versions
from narrowcast.bundle.store import (
    FLOAT_FILE,
    JOIN_FILE,
    NODES_FILE,
    PREPARED_FILE,
    TARGET_FILE,
    Bundle,
    open_bundle,
)
from narrowcast.calibrate import ImageSet
from narrowcast.chips import Target, write_target
from narrowcast.improve import State
from narrowcast.lower.integer import dequantized

__all__ = ["lowered", "remake", "state_of"]


def state_of(bundle: Bundle) -> State:
    """The quantized network that a bundle holds.

    Raises:
        UserError: the ends of the bundle were changed since, or its plan is wrong.
    """
    if bundle.manifest.modified:
        raise UserError(f"the ends of {bundle.path} were changed by modify", "modify the result instead")
    bundle.check_plan()
    changed = PREPARED_FILE in bundle.manifest.files
    return State(bundle.prepared.ir, bundle.plan, factors=bundle.factors, changed=changed)


def lowered(state: State, target: Target) -> tuple[onnx.ModelProto, bool]:
    """The graph that tells best what the chip gives, with float outputs: the exact integers where there are any.

    Returns:
        The graph, and whether it holds the exact integers; otherwise it is the QDQ graph.
    """
    integers, _ = integers_of(state, target)
    return (state.lower()[0], False) if integers is None else (dequantized(integers), True)


def remake(
    bundle: Bundle,
    state: State,
    record: Mapping[str, Any],
    images: ImageSet,
    *,
    out: str | Path | Place,
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
        out: folder to write, or its place as :func:`narrowcast.bundle.folder.check_out` found it.
        force: replace an existing bundle.
        threads: of onnxruntime; 0 for all cores.
        command: recorded in the manifest.
        extra: makes further files.

    Returns:
        The new bundle.

    Raises:
        UserError: the folder exists or cannot be written; nothing is left half-written.
    """
    place = out if isinstance(out, Place) else check_out(out, force)
    qdq, contrib = state.lower()
    made = make_contents(
        bundle.prepared, state, qdq, bundle.target, bundle.model.to_proto(), images, threads, extra,
        bundle.manifest.runtime_version,
    )  # fmt: skip
    known = bundle.manifest.files
    manifest = replace(
        _manifest(bundle.manifest, state, made.notes, contrib),
        calibration={**bundle.manifest.calibration, **record},
        comparison=made.comparison,
        qdq_distance=made.qdq_distance,
        lost_columns=made.lost_columns,
        command=tuple(command),
        files={},
    )
    files: dict[str, Content] = {
        **{name: bundle.file(name).read_bytes for name in (FLOAT_FILE, JOIN_FILE) if name in known},
        TARGET_FILE: write_target(bundle.target).encode(),
        **made.quantized,
        **made.prepared,
        **made.integer,
        NODES_FILE: made.nodes,
        **made.chip,
    }
    with new_folder(place) as folder:
        write_contents(folder, manifest, files)
    return open_bundle(place.path)


def _manifest(before: Manifest, state: State, notes: Sequence[str], contrib: bool) -> Manifest:
    """The manifest with the new outputs and notes; those about files that are made again are replaced."""
    kept = [note for note in before.notes if not note.startswith((NO_INTEGERS, NO_CHIP_FILE, LOST))]
    return replace(
        before,
        outputs=tuple(output_info(output, state.plan, state.factors) for output in before.outputs),
        int16_domain=int16_domain(state.plan, contrib),
        notes=tuple(dict.fromkeys([*kept, *notes])),
        versions={**before.versions, **versions()},
    )
