"""Run many partly quantized variants of a model without what they have in common, and say what each changes.

Every tensor has a digest of how it is computed: operator, attributes, and the digests of what goes in (a Merkle tree).
A tensor of a variant whose digest also occurs in the base graph holds the same values, so the variant is cut there and
fed from the base. What is left is exactly the part that changed and what lies behind it. Nothing has to be said about
what was changed, and an output that no change reaches is known to be equal without running anything.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from narrowcast.analyze.subject import Subject
from narrowcast.base.progress import track
from narrowcast.engine.cutting import fixed_tensors, part_of
from narrowcast.engine.noise import Noise
from narrowcast.graph.run import Runner, available_cores, held_arrays, open_session
from narrowcast.ops.net import with_outputs
from narrowcast.plan.types import Plan
from narrowcast.tasks import Look, TaskError, TaskJudge, combine

Outputs = dict[str, NDArray[Any]]
#: A key, and what builds the graph: called once, shortly before it runs, so that few are in memory at once.
Variant = tuple[str, Callable[[], onnx.ModelProto]]
#: Takes a variant's key, the index of the input, all outputs by name, and the names of those that cannot differ from
#: the base's. Called from several threads, though never for the same key at the same time.
Consumer = Callable[[str, int, Outputs, set[str]], None]
#: Bytes of graphs that are kept ready to run at the same time.
_CHUNK_BYTES = 256 << 20


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
    """By tensor name, how it is computed, as a digest that depends on no name but the input's.

    Equal digests mean equal values for equal inputs. Nodes are in topological order, without subgraphs."""
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
    variants: Iterable[Variant],
    inputs: Sequence[NDArray[np.float32]],
    consume: Consumer,
    *,
    workers: int = 0,
) -> None:
    """Run every variant on every input.

    Args:
        base: the graph that the variants differ from, nodes in topological order.
        variants: what to run; best in graph order, so that neighbours need the same tensors of the base.
        inputs: model inputs, each (1, C, H, W) or (1, H, W, C).
        consume: takes the results.
        workers: variants that run at the same time, with one thread each; 0 for one a core.
    """
    known: dict[bytes, str] = {}
    for name, digest in digests(base).items():
        known.setdefault(digest, name)
    workers = workers or available_cores()
    with ThreadPoolExecutor(workers) as pool:
        for chunk in _chunks((_cut(*variant, known) for variant in variants), _CHUNK_BYTES):
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
    consume: Consumer,
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


def _cut(key: str, make: Callable[[], onnx.ModelProto], known: dict[bytes, str]) -> _Cut:
    proto = make()
    found = digests(proto)
    names = [value.name for value in proto.graph.output]
    same = {name: known[found[name]] for name in names if found[name] in known}
    changed = [name for name in names if name not in same]
    if not changed:
        return _Cut(key, b"", {}, [], same)
    fixed = fixed_tensors(proto)
    graph, fed = part_of(proto, changed, lambda name: found[name] in known and name not in fixed)
    return _Cut(key, graph.SerializeToString(), {name: known[found[name]] for name in fed}, changed, same)


@dataclass(frozen=True)
class Effect:
    """What a variant does, over all images: error in the units of the task, and noise of every output by name."""

    name: str
    task: TaskError
    outputs: dict[str, Noise]

    @property
    def noise_ratio(self) -> float:
        """Noise-to-signal power ratio, mean over outputs."""
        return float(np.mean([noise.ratio for noise in self.outputs.values()]))

    @property
    def worst_db(self) -> float:
        """Lowest SQNR of an output in dB; infinite when all are equal."""
        return min(noise.sqnr_db for noise in self.outputs.values())

    @property
    def cosine(self) -> float:
        """Lowest cosine similarity of an output."""
        return min(noise.cosine for noise in self.outputs.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            "noise_ratio": self.noise_ratio,
            "worst_sqnr_db": self.worst_db if np.isfinite(self.worst_db) else None,
            "worst_cosine": self.cosine,
            "task": self.task.to_dict(),
            "outputs": {name: noise.to_dict() for name, noise in self.outputs.items()},
        }


@dataclass
class _Scores:
    """Collects one variant."""

    task: dict[int, TaskError] = field(default_factory=dict)
    sums: dict[str, Noise] = field(default_factory=dict)


def plain(value: Any) -> Any:
    """A result as JSON has it: dataclasses as dictionaries, numbers that are not finite as ``null``."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_dataclass(value):
        return {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def reference(subject: Subject, threads: int = 0) -> TaskJudge:
    """Compares with what the float model (as it was before any correction of weights) gives for every image."""
    runner = Runner(subject.float_graph, threads, "basic")
    names = subject.output_names
    outputs = [subject.true_outputs(runner.run(tensor, names)) for tensor in subject.inputs]
    return TaskJudge(subject.meaning, outputs, Look(subject.input_size))


def measure(
    subject: Subject,
    judge: TaskJudge,
    plans: Mapping[str, Plan],
    base: onnx.ModelProto,
    *,
    title: str,
    workers: int = 0,
) -> dict[str, Effect]:
    """Effect of every plan on the outputs.

    Args:
        subject: the model and its images.
        judge: from :func:`reference`.
        plans: by name; best in graph order.
        base: the graph that they differ least from: what equals it is not run again.
        title: for the progress bar.
        workers: variants at the same time; 0 for one a core.

    Returns:
        By name, in the order of ``plans``. The same numbers whatever the number of workers.
    """
    names = subject.output_names
    scores = {key: _Scores(sums={name: Noise() for name in names}) for key in plans}

    def take(key: str, index: int, outputs: Outputs, same: set[str]) -> None:
        expected, found = judge.references[index], scores[key]
        actual = subject.true_outputs(outputs)
        found.task[index] = judge.judge(index, actual)
        for name in names:
            found.sums[name].add(expected[name], actual[name])

    variants = [(key, partial(subject.lower, plan)) for key, plan in plans.items()]
    run_variants(base, track(variants, title, len(plans)), subject.inputs, take, workers=workers)
    return {
        key: Effect(key, combine(found.task[index] for index in sorted(found.task)), found.sums)
        for key, found in scores.items()
    }
