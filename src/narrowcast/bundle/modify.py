"""A bundle whose ends are integers: dequantize, quantize and passive nodes removed, as ``hb_model_modifier`` does."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.errors import UserError, nearest
from narrowcast.base.progress import phase
from narrowcast.base.writing import Place, inside, new_folder
from narrowcast.bundle.contents import float_bytes, json_bytes, output_of, proto_bytes, write_contents
from narrowcast.bundle.kits import of_a_vendor
from narrowcast.bundle.manifest import (
    FLOAT_FILE,
    INTEGER_FILE,
    JOIN_FILE,
    NODES_FILE,
    PLAN_FILE,
    PREPARED_FILE,
    QDQ_FILE,
    Manifest,
    OutputInfo,
    check_out,
)
from narrowcast.bundle.store import Bundle, open_bundle
from narrowcast.engine.integer import integer_bytes
from narrowcast.engine.network import QuantizedNetwork
from narrowcast.engine.qdq import with_integer_input, with_integer_outputs
from narrowcast.graph.ends import REMOVABLE, Removed, remove_ends, transposed_layout
from narrowcast.ops.net import dims
from narrowcast.plan import Encoding, Plan, plan_to_json
from narrowcast.plan.drafting import restricted

__all__ = ["ALL", "KINDS", "modify"]

ALL = "all"
#: What ``remove`` takes.
KINDS = ("Quantize", "Dequantize", *REMOVABLE)
#: How hb_mapper names the node behind an output.
_SUFFIXES = ("_raw_HzDequantize", "_HzDequantize", "_Dequantize")


@phase("modify")
def modify(
    bundle: Bundle,
    *,
    out: str | Path,
    remove_dequantize: Sequence[str] = (),
    remove: Sequence[str] = (),
    nodes: Sequence[str] = (),
    force: bool = False,
    lenient: bool = False,
) -> Bundle:
    """Write a bundle with other ends.

    Args:
        bundle: to start from; not changed.
        out: folder to write; with ``force`` it may be the bundle's own.
        remove_dequantize: outputs (or ``"all"``) that leave every graph but the float one as integers, in the type
            of the plan. A name may end in ``_HzDequantize``; a node that writes an output, or the output's name
            before the decode head was cut off, names the output too.
        remove: kinds of nodes (:data:`KINDS`) to take off the ends, in this order. ``Quantize``: the input becomes
            the quantized image. ``Dequantize``: as ``remove_dequantize`` of all.
        nodes: nodes to take off the ends, by name; names that end in ``_HzDequantize`` are outputs.
        force: replace an existing bundle.
        lenient: kinds of nodes that stand at no end are passed over.

    Returns:
        The new bundle; its quantized graphs were run beside the old ones on a random image.

    Raises:
        UserError: nothing to remove, an unknown name, or an output without an encoding.
    """
    if not (remove_dequantize or remove or nodes):
        raise UserError("nothing to remove is named", "give --remove-dequantize all, or --remove with a kind of node")
    for kind in remove:
        if kind not in KINDS:
            raise UserError(f"{kind} nodes cannot be removed", nearest(kind, KINDS, 0.3))
    place = check_out(out, force)
    ends = tuple(kind for kind in remove if kind not in ("Quantize", "Dequantize"))
    inner = [name for name in nodes if not name.endswith(_SUFFIXES)]
    change = _Change(bundle.manifest, bundle.network, {})
    if ends or inner:
        change = _shortened(change, bundle, ends, inner, lenient)
    if "Quantize" in remove:
        change = _integer_input(change)
    wanted = [ALL] if "Dequantize" in remove and (not lenient or _has_integers(change.manifest)) else []
    wanted += [*remove_dequantize, *(name for name in nodes if name.endswith(_SUFFIXES))]
    names = _outputs(change, wanted)
    before = tuple(change.manifest.modified.get("dequantize", ()))
    merged = tuple(o.name for o in change.manifest.outputs if o.name in {*before, *names})
    change = change.with_modified(dequantize=list(merged))
    return _write(place, change, bundle)


@dataclass(frozen=True)
class _Change:
    """A bundle on its way: its manifest, its network, and the files that changed, by name."""

    manifest: Manifest
    network: QuantizedNetwork
    files: Mapping[str, bytes]
    gone: tuple[str, ...] = ()
    shortened: bool = False

    def with_modified(self, **entries: Any) -> _Change:
        return replace(self, manifest=replace(self.manifest, modified={**self.manifest.modified, **entries}))

    @property
    def integer_input(self) -> bool:
        return bool(self.manifest.modified.get("input_rounding"))


def _has_integers(manifest: Manifest) -> bool:
    return any(out.scale is not None for out in manifest.outputs)


def _aliases(graph: ir.Graph) -> dict[str, str]:
    """Other names of the outputs: the node that writes one, and what exporters call its result."""
    found = {}
    for value in graph.outputs:
        node = value.producer()
        if node is not None and len(node.outputs) == 1:
            found.update({str(node.name): str(value.name), f"{node.name}_output_0": str(value.name)})
    return found


def _outputs(change: _Change, wanted: Sequence[str]) -> list[str]:
    """Names of outputs that a person asked for."""
    known, aliases = {out.name: out for out in change.manifest.outputs}, _aliases(change.network.model.graph)
    names: list[str] = []
    for entry in wanted:
        if entry == ALL:
            names += [out.name for out in change.manifest.outputs if out.scale is not None]
            continue
        plain = [entry.removesuffix(suffix) for suffix in _SUFFIXES if entry.endswith(suffix)] or [entry]
        name = next((name for name in (*plain, *(aliases.get(word, "") for word in plain)) if name in known), None)
        if name is None:
            raise UserError(f"no output of this bundle is named {entry}", nearest(entry, [*known, ALL], 0.3))
        if known[name].scale is None:
            raise UserError(f"{name} is computed in float, so it has no integers", "remove the float node behind it")
        names.append(name)
    if wanted and not names:
        raise UserError("all outputs are computed in float", "remove the float nodes at the tail first")
    return names


def _shortened(change: _Change, bundle: Bundle, kinds: Sequence[str], nodes: Sequence[str], lenient: bool) -> _Change:
    model, removed = remove_ends(change.network.model, kinds, nodes, lenient=lenient)
    if not removed:
        return change
    if bundle.manifest.join and any(entry.end == "tail" for entry in removed):
        raise UserError(f"the outputs are joined by {JOIN_FILE}, which needs them as they are", "remove nothing there")
    plan = restricted(change.network.plan, model.graph, change.network.target)
    names = [entry.node for entry in removed]
    files = {PLAN_FILE: plan_to_json(plan).encode()}
    files[FLOAT_FILE] = float_bytes(remove_ends(bundle.model.ir, (), names)[0])
    if PREPARED_FILE in bundle.manifest.files:
        files[PREPARED_FILE] = float_bytes(model)
    gone = of_a_vendor(bundle.manifest.files)
    manifest = _described(change.manifest, change.network.model, model, plan, removed)
    if gone:
        manifest = replace(manifest, notes=(*manifest.notes, f"{', '.join(gone)} left out: its ends are the old ones"))
    left = {out.name for out in manifest.outputs}
    factors = {name: values for name, values in change.network.factors.items() if name in left}
    network = replace(change.network, model=model, plan=plan, factors=factors)
    changed = replace(change, manifest=manifest, network=network, files=files, gone=gone, shortened=True)
    earlier = list(change.manifest.modified.get("removed", ()))
    return changed.with_modified(removed=[*earlier, *({"node": r.node, "type": r.op_type} for r in removed)])


def _described(
    manifest: Manifest, before: ir.Model, after: ir.Model, plan: Plan, removed: Sequence[Removed]
) -> Manifest:
    """The manifest of the shorter graph."""
    spec = manifest.preprocess
    for entry in removed:
        if entry.end == "head":
            node = next(node for node in before.graph if node.name == entry.node)
            layout = transposed_layout(node)
            if layout is None:
                raise UserError(f"{entry.node} is no change between NCHW and NHWC", "keep it")
            spec = replace(spec, layout=layout)
    known = {out.name: out for out in manifest.outputs}
    outputs = tuple(known.get(str(value.name)) or output_of(value, plan, {}) for value in after.graph.outputs)
    names = {out.name for out in outputs}
    meaning = manifest.meaning
    for entry in removed:
        meaning = meaning.without(entry.op_type) if entry.end == "tail" else meaning
    listed = ", ".join(f"{entry.op_type} {entry.node}" for entry in removed)
    return replace(
        manifest,
        input_shape=dims(after.graph.inputs[0]),
        preprocess=spec,
        outputs=outputs,
        **meaning.record(),
        comparison=[row for row in manifest.comparison if row["name"] in names],
        qdq_distance=[row for row in manifest.qdq_distance if row["name"] in names],
        notes=(*manifest.notes, f"removed: {listed}"),
    )


def _integer_input(change: _Change) -> _Change:
    if change.network.plan.tensors.get(change.manifest.input_name) is None:
        raise UserError(f"the input {change.manifest.input_name} is read in float", "keep its Quantize node")
    note = f"the quantized graphs take {change.manifest.input_name} as integers"
    manifest = replace(change.manifest, notes=(*change.manifest.notes, note))
    return replace(change, manifest=manifest).with_modified(input_rounding=change.network.target.quantize_rounding)


def _encoding(out: OutputInfo) -> Encoding:
    assert out.scale is not None
    return Encoding(out.chip_dtype, out.scale, out.zero_point, out.axis)


def _quantized_files(change: _Change, bundle: Bundle) -> dict[str, bytes]:
    """The QDQ and the integer graph with the wanted ends."""
    changed = change.shortened or change.integer_input
    as_made = not changed and not bundle.manifest.modified
    qdq = bundle.graph(QDQ_FILE) if as_made else change.network.qdq()[0]
    if change.integer_input:
        qdq = with_integer_input(qdq, change.network.plan.tensors[change.manifest.input_name])
    names = change.manifest.modified.get("dequantize", ())
    qdq = with_integer_outputs(qdq, {out.name: _encoding(out) for out in change.manifest.outputs if out.name in names})
    files = {QDQ_FILE: proto_bytes(qdq)}
    if changed and INTEGER_FILE in bundle.manifest.files:
        files[INTEGER_FILE] = integer_bytes(change.network.integers(change.integer_input))
    return files


def _write(place: Place, change: _Change, bundle: Bundle) -> Bundle:
    files = {**change.files, **_quantized_files(change, bundle)}
    if change.shortened:
        kept = set(change.network.plan.tensors)
        files[NODES_FILE] = json_bytes([row for name, row in bundle.noise.items() if name in kept])
    known = {name: digest for name, digest in bundle.manifest.files.items() if name not in change.gone}
    with new_folder(place) as folder:
        for name in known.keys() - files.keys():
            shutil.copyfile(bundle.file(name), inside(folder, name))
        write_contents(folder, replace(change.manifest, files=known), files)
        _compare(bundle, open_bundle(folder))
    return open_bundle(place.path)


def _compare(before: Bundle, after: Bundle) -> None:
    """Run old and new graphs on a random image: what both give out must be the same numbers."""
    shape = before.manifest.input_shape
    tensor = np.random.default_rng(0).random(shape, dtype=np.float32)
    other = tensor
    if after.manifest.preprocess.layout != before.manifest.preprocess.layout:
        other = tensor.transpose((0, 3, 1, 2) if after.manifest.preprocess.layout == "NCHW" else (0, 2, 3, 1))
    for engine in before.engines:
        old, new = _reals(before, engine, tensor), _reals(after, engine, np.ascontiguousarray(other))
        for name in old.keys() & new.keys():
            step = float(np.max(after.manifest.encodings[name].scale)) if name in after.manifest.encodings else 0.0
            allowed = step * 0.51 + 1e-5 * float(np.abs(old[name]).max(initial=0.0))
            if not np.abs(old[name] - new[name]).max(initial=0.0) <= allowed:
                raise UserError(f"{name} of the engine {engine} changed with its ends", "please report the model")


def _reals(bundle: Bundle, engine: str, tensor: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    predictor = bundle.engine(engine, 1)
    encodings = predictor.encodings or {}
    found: dict[str, NDArray[np.float64]] = {}
    for name, values in predictor.runner.run(tensor).items():
        found[name] = encodings[name].real(values) if name in encodings else np.asarray(values, np.float64)
    return found
