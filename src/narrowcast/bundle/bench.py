"""How long an image takes here: latency and frames per second, stage by stage, and node by node.

The numbers are of this computer, not of the chip: they compare engines, models and integer outputs with each other.
"""

from __future__ import annotations

import itertools
import json
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.base.progress import phase
from narrowcast.bundle.store import Predictor
from narrowcast.graph.run import open_session
from narrowcast.vision.preprocess import preprocess

__all__ = ["STAGES", "BenchResult", "NodeTime", "Timing", "bench", "profile"]

STAGES = ("preprocess", "inference", "postprocess")
#: Frames before the clock starts: the first ones allocate memory.
WARM_UP = 3
MOST_THREADS = 64


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one stage over all frames."""

    average: float
    minimum: float
    maximum: float
    p50: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Statistics of durations in seconds; at least one."""
        values = np.asarray(seconds, np.float64) * 1e3
        p50, p99 = np.percentile(values, [50, 99])
        return cls(*(round(float(v), 4) for v in (values.mean(), values.min(), values.max(), p50, p99)))


@dataclass(frozen=True)
class BenchResult:
    """One run: frames in work at once, frames measured, frames per second, and times by :data:`STAGES` and ``"total"``.

    A stage that a model does not have is absent."""

    threads: int
    frames: int
    fps: float
    stages: dict[str, Timing]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, milliseconds."""
        return asdict(self)


@dataclass(frozen=True)
class NodeTime:
    """One node after onnxruntime's own fusions: milliseconds a frame, and its share of all nodes, 0..1."""

    node: str
    op_type: str
    average_ms: float
    share: float


def bench(
    predictor: Predictor,
    image: NDArray[np.uint8],
    *,
    threads: int = 1,
    frames: int = 200,
    progress: Callable[[Iterator[int]], Iterator[int]] = iter,
) -> BenchResult:
    """Run one image again and again.

    Args:
        predictor: opened with one thread.
        image: uint8 (H, W, 3) BGR.
        threads: frames in work at once.
        frames: how many to measure.
        progress: wraps the counter of finished frames, such as :func:`narrowcast.base.progress.track`.

    Returns:
        Latencies in ms and throughput.

    Raises:
        UserError: impossible numbers.
    """
    if not 1 <= threads <= MOST_THREADS:
        raise UserError(f"{threads} threads are impossible", f"use 1 to {MOST_THREADS}")
    if frames < 1:
        raise UserError(f"{frames} frames measure nothing", "use 200")
    for _ in range(WARM_UP):
        _frame(predictor, image)
    found: list[tuple[float, ...]] = []
    start = time.perf_counter()
    for _ in progress(_finished(predictor, image, threads, frames, found)):
        pass
    seconds = time.perf_counter() - start
    columns = list(zip(*found, strict=True))
    stages = {name: Timing.of(column) for name, column in zip(STAGES, columns, strict=False)}
    stages["total"] = Timing.of([sum(row) for row in found])
    return BenchResult(threads, frames, round(frames / seconds, 2), stages)


def _frame(predictor: Predictor, image: NDArray[np.uint8]) -> tuple[float, ...]:
    """Seconds of each stage."""
    marks = [time.perf_counter()]
    tensor, geometry = preprocess(image, predictor.preprocess)
    marks.append(time.perf_counter())
    outputs = predictor.run(tensor)
    marks.append(time.perf_counter())
    if predictor.meaning.known:
        predictor.decode(outputs, geometry)
        marks.append(time.perf_counter())
    return tuple(after - before for before, after in itertools.pairwise(marks))


def _finished(
    predictor: Predictor, image: NDArray[np.uint8], threads: int, frames: int, found: list[tuple[float, ...]]
) -> Iterator[int]:
    """Count frames as they finish; workers stop when the reader does (Ctrl-C)."""
    tickets = iter(range(frames))
    lock, stop = threading.Lock(), threading.Event()
    done: queue.Queue[tuple[float, ...] | BaseException] = queue.Queue()

    def work() -> None:
        try:
            while not stop.is_set():
                with lock:
                    if next(tickets, None) is None:
                        return
                done.put(_frame(predictor, image))
        except BaseException as error:  # raised again where the result is read
            done.put(error)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        for count in range(frames):
            result = done.get()
            if isinstance(result, BaseException):
                raise result
            found.append(result)
            yield count
    finally:
        stop.set()
        for worker in workers:
            worker.join()


@phase("profile")
def profile(file: Path, tensor: NDArray[Any], *, frames: int = 20, level: str = "all") -> list[NodeTime]:
    """Time every node with onnxruntime's profiler, one thread, slowest first.

    Args:
        file: the graph.
        tensor: its input, in its type.
        frames: runs to average over.
        level: ``"basic"`` or ``"all"`` graph optimization, as the engine uses it.
    """
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="narrowcast-profile-") as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = open_session(file, 1, level, options)
        name = session.get_inputs()[0].name
        for _ in range(frames + WARM_UP):
            session.run(None, {name: tensor})
        events = json.loads(Path(session.end_profiling()).read_text())
    return _node_times(events, frames)


def _node_times(events: Sequence[dict[str, Any]], frames: int) -> list[NodeTime]:
    """Average the kernel events of the profiler over the last ``frames`` runs."""
    microseconds: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            node = name.removesuffix("_kernel_time")
            microseconds.setdefault(node, []).append(float(event["dur"]))
            kinds[node] = str(event.get("args", {}).get("op_name", ""))
    average = {node: sum(times[-frames:]) / frames / 1e3 for node, times in microseconds.items()}
    total = sum(average.values()) or 1.0
    rows = [NodeTime(node, kinds[node], round(ms, 4), round(ms / total, 4)) for node, ms in average.items()]
    return sorted(rows, key=lambda row: (-row.average_ms, row.node))
