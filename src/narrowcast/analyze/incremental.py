"""Run variants of a graph without running again what they have in common with it.

Every tensor has a digest of how it is computed: operator, attributes, and the digests of what goes in (a Merkle tree).
A tensor of a variant whose digest also occurs in the base graph holds the same values, so the variant is cut there and
fed from the base. What is left is exactly the part that changed and what lies behind it. Nothing has to be said about
what was changed, and an output that no change reaches is known to be equal without running anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from narrowcast.graph.run import Runner, available_cores, open_session
from narrowcast.graph.weights import held_arrays
from narrowcast.ops.net import with_outputs

__all__ = ["Outputs", "Variant", "digests", "run_variants"]

Outputs = dict[str, NDArray[Any]]
#: Bytes of graphs that are kept ready to run at the same time.
_CHUNK_BYTES = 256 << 20


@dataclass(frozen=True)
class Variant:
    """A graph to run beside the base.

    Attributes:
        key: how its results are named.
        make: builds it; called once, shortly before it runs, so that not all variants are in memory at once.
    """

    key: str
    make: Callable[[], onnx.ModelProto]


@dataclass
class _Cut:
    """The part of a variant that differs from the base.

    Attributes:
        key: of the variant.
        graph: the part, serialized; empty when nothing differs.
        feeds: its input to the tensor of the base with the same values.
        outputs: outputs of the variant that differ.
        same: outputs of the variant to the tensor of the base with the same values.
        session: that runs the graph, once it is opened.
    """

    key: str
    graph: bytes
    feeds: dict[str, str]
    outputs: list[str]
    same: dict[str, str]
    session: onnxruntime.InferenceSession | None = None


def digests(proto: onnx.ModelProto) -> dict[str, bytes]:
    """How every tensor of a graph is computed, as a digest that does not depend on any name but the input's.

    Args:
        proto: nodes in topological order, no subgraphs.

    Returns:
        By tensor name. Equal digests mean equal values for equal inputs.
    """
    found: dict[str, bytes] = {"": b"absent"}
    for value in proto.graph.input:
        found[value.name] = _digest(b"input", value.name.encode())
    held = dict(held_arrays(proto))
    for tensor in proto.graph.initializer:
        array = held.get(tensor.name)
        content = tensor.raw_data or (numpy_helper.to_array(tensor) if array is None else array).tobytes()
        found[tensor.name] = _digest(b"constant", repr((tensor.data_type, list(tensor.dims))).encode(), content)
    for node in proto.graph.node:
        attributes = sorted(entry.SerializeToString(deterministic=True) for entry in node.attribute)
        head = f"{node.domain}:{node.op_type}".encode()
        own = _digest(head, *attributes, b"|", *(found[name] for name in node.input))
        for index, name in enumerate(node.output):
            if name:
                found[name] = _digest(own, str(index).encode())
    return found


def _digest(*parts: bytes) -> bytes:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.digest()


def run_variants(
    base: onnx.ModelProto,
    variants: Sequence[Variant],
    inputs: Sequence[NDArray[np.float32]],
    consume: Callable[[str, int, Outputs, set[str]], None],
    *,
    workers: int = 0,
    progress: Callable[[Iterable[Variant]], Iterable[Variant]] | None = None,
) -> None:
    """Run every variant on every input.

    Args:
        base: the graph that the variants differ from, nodes in topological order.
        variants: what to run; best in graph order, so that neighbours need the same tensors of the base.
        inputs: model inputs, each (1, C, H, W) or (1, H, W, C).
        consume: called with the variant's key, the index of the input, all outputs of the variant by name, and
            the names of those that cannot differ from the base's. Called from several threads, though never for the
            same key at the same time.
        workers: variants that run at the same time, with one thread each; 0 for one a core.
        progress: wraps the variants, to show how far it is.
    """
    known: dict[bytes, str] = {}
    for name, digest in digests(base).items():
        known.setdefault(digest, name)
    workers = workers or available_cores()
    shown = progress(variants) if progress is not None else variants
    with ThreadPoolExecutor(workers) as pool:
        for chunk in _chunks((_cut(variant, known) for variant in shown), _CHUNK_BYTES):
            list(pool.map(_open, chunk))
            wanted = {name for cut in chunk for name in (*cut.feeds.values(), *cut.same.values())}
            _run_chunk(base, chunk, sorted(wanted), inputs, consume, pool, workers)


def _chunks(cuts: Iterable[_Cut], limit: int) -> Iterator[list[_Cut]]:
    chunk: list[_Cut] = []
    for cut in cuts:
        chunk.append(cut)
        if sum(len(entry.graph) for entry in chunk) > limit:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _open(cut: _Cut) -> None:
    if cut.graph:
        cut.session = open_session(cut.graph, 1, "basic")


def _run_chunk(
    base: onnx.ModelProto,
    chunk: list[_Cut],
    wanted: list[str],
    inputs: Sequence[NDArray[np.float32]],
    consume: Callable[[str, int, Outputs, set[str]], None],
    pool: ThreadPoolExecutor,
    workers: int,
) -> None:
    runner = Runner(with_outputs(base, wanted), workers, "basic")
    for index, tensor in enumerate(inputs):
        needed = [name for name in wanted if name != runner.input_name]
        shared = runner.run(tensor, needed) if needed else {}  # an empty list would mean all outputs
        shared[runner.input_name] = tensor

        def one(cut: _Cut, index: int = index, shared: Outputs = shared) -> None:
            outputs: Outputs = {name: shared[source] for name, source in cut.same.items()}
            if cut.session is not None:
                feeds = {name: shared[source] for name, source in cut.feeds.items()}
                outputs.update(zip(cut.outputs, cut.session.run(cut.outputs, feeds), strict=True))
            consume(cut.key, index, outputs, set(cut.same))

        list(pool.map(one, chunk))


def _cut(variant: Variant, known: dict[bytes, str]) -> _Cut:
    proto = variant.make()
    found = digests(proto)
    names = [value.name for value in proto.graph.output]
    same = {name: known[found[name]] for name in names if found[name] in known}
    changed = [name for name in names if name not in same]
    makers = {name: node for node in proto.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    fixed = _fixed(proto)
    feeds: dict[str, str] = {}
    kept: set[str] = set()
    used: set[str] = set()
    queue = list(changed)
    while queue:
        name = queue.pop()
        if name in feeds or name in kept or name in used or not name:
            continue
        if name in constants:
            used.add(name)
        elif found[name] in known and name not in fixed:
            feeds[name] = known[found[name]]
        else:
            node = makers[name]
            kept.update(node.output)
            queue.extend(node.input)
    if not changed:
        return _Cut(variant.key, b"", {}, [], same)
    graph = _part(proto, kept, used, list(feeds), changed)
    return _Cut(variant.key, graph.SerializeToString(), feeds, changed, same)


def _fixed(proto: onnx.ModelProto) -> set[str]:
    """Tensors that no input reaches, such as dequantized weights: fed as inputs they could not be prepacked."""
    fixed = {"", *(tensor.name for tensor in proto.graph.initializer)}
    for node in proto.graph.node:
        if fixed.issuperset(node.input):
            fixed.update(node.output)
    return fixed


def _part(
    proto: onnx.ModelProto, kept: set[str], used: set[str], inputs: list[str], outputs: list[str]
) -> onnx.ModelProto:
    part = onnx.ModelProto(ir_version=proto.ir_version)
    part.opset_import.extend(proto.opset_import)
    part.functions.extend(proto.functions)
    part.graph.name = "part"
    part.graph.node.extend(node for node in proto.graph.node if kept.intersection(node.output))
    part.graph.initializer.extend(tensor for tensor in proto.graph.initializer if tensor.name in used)
    typed = {value.name: value for value in [*proto.graph.input, *proto.graph.value_info, *proto.graph.output]}
    for name in inputs:
        # every tensor of a lowered graph between its nodes that the base also has is float, unless it says otherwise
        kind = typed[name].type.tensor_type.elem_type if name in typed else onnx.TensorProto.FLOAT
        part.graph.input.append(onnx.helper.make_tensor_value_info(name, kind or onnx.TensorProto.FLOAT, None))
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return part
