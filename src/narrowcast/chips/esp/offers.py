"""What the folder adds to the rooms that ask; see :mod:`narrowcast.chips.vendors`."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from pathlib import Path

from narrowcast.base.errors import UserError
from narrowcast.base.reading import reading
from narrowcast.bundle import Manifest
from narrowcast.bundle.kits import Delivery, Description, Kit, Request, Table
from narrowcast.chips import Target
from narrowcast.chips.esp.codec import read_espdl
from narrowcast.chips.esp.file import describe
from narrowcast.chips.esp.kit import check_runtime, deploy_espdl, espdl_files, parser_notes
from narrowcast.chips.esp.model import build_espdl
from narrowcast.graph import Model
from narrowcast.plan import Plan

__all__ = ["KITS"]


def _deploy(request: Request) -> Delivery:
    if request.test_vectors and request.images is None:
        raise UserError("test vectors need images", "add --images FOLDER")
    inputs = list(islice(request.images or (), request.test_vectors))
    if len(inputs) < request.test_vectors:
        raise UserError(f"{request.test_vectors} test vectors, {len(inputs)} images", "give more --images")
    paths = deploy_espdl(request.bundle, request.out, images=inputs, runtime=request.runtime, force=request.force)
    path, manifest = paths[0], request.bundle.manifest
    notes = (
        *parser_notes(manifest.meaning, {out.name: out.chip_dtype for out in manifest.outputs}),
        *_parts_notes(manifest),
    )
    if request.bundle.factors:
        notes = (
            *notes,
            "outputs carry a factor a channel (metadata output_factors): only a decode that divides by it fits",
        )
    facts = {"bytes": path.stat().st_size, "test vectors": len(inputs)}
    return Delivery(path, tuple(str(each) for each in paths[1:]), (f"narrowcast inspect {path}",), notes, facts)


def _parts_notes(manifest: Manifest) -> tuple[str, ...]:
    """That a file holds the parts of outputs, for a reader that does not join them."""
    join = manifest.join
    if not join:
        return ()
    kinds = ", ".join(dict.fromkeys(step["op"] for step in join["steps"]))
    return (
        f"the file gives {', '.join(join['parts'])}, the parts of {', '.join(join['joined'])}: your program joins "
        f"them in float, by {kinds} (manifest.json of the bundle lists the steps under join)",
    )


def _rehearse(model: Model, plan: Plan, target: Target, runtime: str | None) -> None:
    build_espdl(model.ir, plan, target, runtime=runtime)


def _describe(path: Path) -> Description:
    file = read_espdl(path)
    with reading(path, "copy or export it again"):
        found = describe(file)
    test = "with" if found.test_vector else "without"
    lines = (
        f"{path}: {found.producer or 'unknown producer'}, {len(found.nodes)} nodes, {test} a test vector",
        f"{found.bytes:,} bytes, of them {found.constant_bytes:,} constants ({found.weight_bytes:,} packed filters); "
        f"largest tensor between nodes {found.largest_activation:,} bytes",
        *(f"{key}: {value}" for key, value in found.metadata.items()),
    )
    values = [(v.direction, v.name, v.dtype, v.shape, str(v.exponent)) for v in found.values]
    operators = [(name, str(count)) for name, count in found.operators.items()]
    nodes = [
        (n.name, n.op_type, n.type, n.shape, n.exponents, n.weight_layout, n.weight_exponents, n.details,
         f"{n.bytes:,}")
        for n in found.nodes
    ]  # fmt: skip
    columns = ("node", "type", "kernel", "shape", "exponents", "weights", "weight exp.", "details", "bytes")
    return Description(
        lines,
        Table(("", "name", "type", "shape", "exponent"), values, 4),
        Table(("operator", "nodes"), operators),
        Table(columns, nodes, 8),
        asdict(found),
    )


KITS = (
    Kit(
        "espdl",
        "model file for Espressif's ESP-DL",
        _deploy,
        suffix=".espdl",
        files=espdl_files,
        check=check_runtime,
        rehearse=_rehearse,
        describe=_describe,
    ),
)
