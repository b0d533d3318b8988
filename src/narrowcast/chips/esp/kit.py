"""The ``.espdl`` file of a bundle: inside it, and on its own with test vectors; and what a version of ESP-DL cannot do
with a model, before anything slow starts.

Its outputs are named as ESP-DL's own post-processors fetch them; these read each with the exponent of its tensor alone.

The target's rules (``chips/*.yaml``) say which operators run in which types; facts about versions of the runtime stand
with the families of operators. Sources: ESP-DL's operator table of 2026-06 and its changelog.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.base.writing import check_file, write_file
from narrowcast.bundle import Bundle
from narrowcast.bundle.contents import Extra
from narrowcast.bundle.kits import Origin
from narrowcast.chips import Target
from narrowcast.chips.esp.codec import encode_espdl
from narrowcast.chips.esp.families import runtime_facts
from narrowcast.chips.esp.model import build_espdl, make_test_vectors
from narrowcast.chips.placement import RuntimeRow
from narrowcast.chips.support import runtime_version, support
from narrowcast.engine.qdq import Factors
from narrowcast.graph import Model
from narrowcast.plan import Plan
from narrowcast.tasks import Task
from narrowcast.tasks.objects import Objects

#: Its name inside a bundle.
ESPDL_FILE = "model.espdl"
#: What the post-processors of YOLO11 are written for.
_STRIDES, _BINS, _KEYPOINTS = 3, 16, (17, 3)


def espdl_files(origin: Origin, runtime: str | None) -> Extra:
    """What makes the file for a bundle.

    Args:
        origin: of the model.
        runtime: version of ESP-DL that will read the file; the newest known by default.
    """

    def make(model: Model, plan: Plan, chip: Target, factors: Factors) -> Mapping[str, bytes]:
        metadata, names = _metadata(origin, factors), parser_names(origin.meaning)
        file = build_espdl(model.ir, plan, chip, runtime=runtime, metadata=metadata, names=names)
        return {ESPDL_FILE: encode_espdl(file)}

    return make


def _metadata(origin: Origin, factors: Factors) -> dict[str, str]:
    """Text for the file.

    Raises:
        UserError: outputs with factors that nobody asked for.
    """
    if factors and not origin.factors:
        raise UserError(
            f"the outputs {', '.join(factors)} carry factors, which ESP-DL's post-processors do not know",
            "quantize again; with --output-factors the file keeps them",
        )
    names = parser_names(origin.meaning)
    told = {names.get(name, name): [round(float(f), 9) for f in values] for name, values in factors.items()}
    found = {"model": origin.source["source"], "model_sha256": origin.source["sha256"]}
    return found | ({"output_factors": json.dumps(told)} if told else {})


def deploy_espdl(
    bundle: Bundle,
    out: str | Path,
    *,
    images: Sequence[NDArray[np.float32]] = (),
    runtime: str | None = None,
    force: bool = False,
) -> list[Path]:
    """Write the model file for ESP-DL, whole or not at all; one for each test vector, as ``model->test()`` takes one.

    Args:
        bundle: quantized for a chip with the kit ``espdl``.
        out: file to write; further ones are named after it, ``<name>.test2.espdl`` and so on.
        images: model inputs; each file carries the integers of one and of its outputs, for the board to check.
        runtime: version of ESP-DL that will read the file; the newest known by default.
        force: replace existing files.

    Returns:
        The files, the one without a number first.

    Raises:
        UserError: another chip, an operator that ESP-DL does not have, outputs that its post-processors would read
            wrongly, a file that exists or cannot be written.
    """
    first = Path(out)
    paths = [first, *(first.with_name(f"{first.stem}.test{i}{first.suffix}") for i in range(2, len(images) + 1))]
    for path in paths:
        check_file(path, force)
    target = bundle.target
    if "espdl" not in target.kits:
        raise UserError(f"{bundle.path} was quantized for {target.name}", "quantize for a target with the kit espdl")
    model, plan, origin = bundle.prepared.ir, bundle.plan, Origin.of(bundle.manifest)
    metadata, names = _metadata(origin, bundle.factors), parser_names(origin.meaning)
    vectors = make_test_vectors(model, plan, target, images) if images else [None]
    files = [
        build_espdl(model, plan, target, runtime=runtime, test_vector=vector, metadata=metadata, names=names)
        for vector in vectors
    ]
    return [write_file(path, encode_espdl(file), force=force) for path, file in zip(paths, files, strict=True)]


def parser_names(meaning: Task) -> dict[str, str]:
    """Output to its name in the file: ``box0, score0, kpt0 | mc0`` of the smallest stride and so on, ``p``.

    Args:
        meaning: of the outputs; those without a known head keep their names.
    """
    if not isinstance(meaning, Objects):
        return {}
    strides = enumerate(meaning.spec.strides)
    names = {f"{role.stem}_s{stride}": f"{role.parser}{i}" for i, stride in strides for role in meaning.roles}
    return names | {role.stem: role.parser for role in meaning.shared}


def parser_notes(meaning: Task, types: Mapping[str, str]) -> tuple[str, ...]:
    """What a person has to know before a post-processor of ESP-DL reads the file.

    Args:
        meaning: of the outputs.
        types: output to its integer type.
    """
    head = meaning.head
    if head is None:
        return ()
    limits = {
        f"{_STRIDES} strides": len(head.strides) == _STRIDES,
        f"{_BINS} bins of a box side": head.reg_max == _BINS,
        f"{_KEYPOINTS[0]} keypoints of {_KEYPOINTS[1]} numbers": head.keypoint_shape in (None, _KEYPOINTS),
    }
    notes = [
        f"ESP-DL's yolo11 post-processor is made for {want}: decode this model yourself"
        for want, ok in limits.items()
        if not ok
    ]
    if len(set(types.values())) > 1:
        wide = ", ".join(name for name, kind in types.items() if kind != "int8")
        notes.append(
            f"ESP-DL's post-processors read all outputs in the type of box0, and {wide} differ: decode them yourself"
        )
    return tuple(notes)


def check_runtime(model: ir.Model, target: Target, runtime: str | None = None) -> list[RuntimeRow]:
    """What the runtime would refuse or compute wrongly if every node were int8.

    Args:
        model: prepared graph.
        target: the chip.
        runtime: version of ESP-DL, e.g. ``"3.3"``; the newest known by default.

    Returns:
        Findings in graph order.

    Raises:
        UserError: an unknown version.
    """
    version = runtime_version(runtime, target)
    rows = list(_inputs(model.graph))
    for node in model.graph:
        name, verdict = str(node.name), support(node, target, runtime)
        if not verdict.supported:
            rows.append(RuntimeRow(name, node.op_type, "--", "error", verdict.reason, verdict.remedy))
            continue
        rows += [
            RuntimeRow(name, node.op_type, "int8", fact.severity, fact.problem, fact.remedy)
            for fact in runtime_facts(node)
            if not fact.works(version) and fact.concerns(node, None, target)
        ]
    return rows


def _inputs(graph: ir.Graph) -> Iterator[RuntimeRow]:
    for value in graph.inputs:
        sizes = list(value.shape) if value.shape is not None else []
        if not all(isinstance(size, int) for size in sizes):
            yield RuntimeRow(str(value.name), "Input", "--", "error", "a dynamic shape", "export it with fixed sizes")
        elif len(sizes) > 2 and sizes[0] != 1:
            problem = f"batch {sizes[0]}, ESP-DL has only 1"
            yield RuntimeRow(str(value.name), "Input", "--", "error", problem, "export it with batch 1")
