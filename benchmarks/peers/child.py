"""What every tool's process does alike: read the job, measure, say what it cost. Needs numpy only.

A job is a JSON file: ``graph`` (float ONNX file), ``inputs`` (list of .npy model inputs), ``out`` (folder),
``settings`` (the tool's own), ``scored`` (list of .npy model inputs, for tools that run their own simulation). The
process writes ``result.json`` into ``out`` last, so that the file stands for a finished job.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_job() -> dict[str, Any]:
    """The job that the command line names."""
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    Path(job["out"]).mkdir(parents=True, exist_ok=True)
    return job


def tensors(paths: list[str]) -> Iterator[NDArray[np.float32]]:
    """Model inputs, one after the other."""
    for path in paths:
        yield np.load(path)


def peak_megabytes() -> float:
    """Most memory that this process has held, its imports included."""
    status = Path("/proc/self/status")
    if status.exists():  # the resource module counts the parent's memory from before exec too
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


@contextmanager
def measured(cost: dict[str, float]) -> Iterator[None]:
    """Fill in wall seconds, CPU seconds of all threads, and the peak memory until the block's end."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    cost.update(wall_s=time.perf_counter() - wall, cpu_s=time.process_time() - cpu, peak_mb=peak_megabytes())


def finish(job: dict[str, Any], cost: dict[str, float], **more: Any) -> None:
    """Write the result: what it cost, and what the tool wants to say."""
    partial = Path(job["out"]) / ".result.json.partial"
    partial.write_text(json.dumps({**cost, **more, "key": job["key"]}, indent=1) + "\n")
    partial.replace(Path(job["out"]) / "result.json")
