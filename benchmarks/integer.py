"""The exact integers: speed beside float onnxruntime, memory, and the distance of the usual QDQ graph.

    python benchmarks/integer.py [--data ../shared/data] [--model yolo11n-pose.onnx] [--int16 '/model.23/*'] [--verify]

For every target one line: milliseconds an image of the float graph, the QDQ graph and the integer graph, run one
after the other on the same real image in every round (all threads, every optimization of onnxruntime for float and
integers), and the median of the rounds' ratios. Plans come from a quick calibration, which does not change the speed.
"""

from __future__ import annotations

import argparse
import logging
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from narrowcast.calibrate import ImageSet, collect, images
from narrowcast.chips import load_target
from narrowcast.engine import lower_qdq
from narrowcast.engine.integer import IntegerRunner, integer_bytes, lower_integer, open_integer
from narrowcast.engine.verify import qdq_distance, verify
from narrowcast.graph import Model, Runner, load
from narrowcast.ops.units import inline_units
from narrowcast.plan import Pins, Plan, draft, finish

Image = NDArray[np.float32]
Engine = Callable[[Image], dict[str, NDArray[Any]]]


def plan_for(model: Model, found: ImageSet, target: str, int16: list[str]) -> Plan:
    """A plan from a few images."""
    drafted = draft(model.ir.graph, load_target(target), Pins(dict.fromkeys(int16, "int16")))
    statistics = collect(model.to_proto(), drafted.wanted_statistics(), found)
    return finish(drafted, statistics, "mse", 99.99)[0]


def interleaved(engines: list[Engine], inputs: list[Image], rounds: int) -> NDArray[np.float64]:
    """Seconds of every engine in every round, shape (rounds, engines); two rounds before them warm up."""
    seconds = np.zeros((rounds + 2, len(engines)))
    for row, tensor in zip(seconds, islice(cycle(inputs), rounds + 2), strict=True):
        for index, engine in enumerate(engines):
            start = time.perf_counter()
            engine(tensor)
            row[index] = time.perf_counter() - start
    return seconds[2:]


def measure(model: Model, inputs: list[Image], plan: Plan, rounds: int, check: bool) -> None:
    """Print the line of one target."""
    target = load_target(plan.target)
    start = time.perf_counter()
    graph = lower_integer(model.ir, plan, target)
    lowered = time.perf_counter() - start
    qdq: onnx.ModelProto = lower_qdq(model.ir, plan)[0]
    floating, usual, exact = Runner(inline_units(model.to_proto())), Runner(qdq, level="basic"), IntegerRunner(graph)
    seconds = interleaved([floating.run, usual.run, exact.run], inputs, rounds)
    ms, ratio = np.median(seconds, axis=0) * 1000, float(np.median(seconds[:, 2] / seconds[:, 0]))
    rows = qdq_distance(graph, qdq, inputs)
    share = sum(row.differing for row in rows) / sum(row.noise.count for row in rows)
    largest = max(rows, key=lambda row: row.noise.max_abs)
    split = sum(proof.double for proof in graph.proofs)
    print(
        f"{plan.target:9} float {ms[0]:6.1f} ms, QDQ {ms[1]:6.1f} ms, integers {ms[2]:6.1f} ms = {ratio:.2f}x float; "
        f"lowered in {lowered:.2f} s, {split} of {len(graph.proofs)} sums in float64, "
        f"file {len(integer_bytes(graph)) / 1e6:.2f} MB; QDQ differs in {share:.1%} of output values, "
        f"at most by {largest.noise.max_abs:.4g} {largest.unit} ({largest.tensor})"
    )
    if check:
        found = verify(model.ir, plan, target, graph, inputs)
        differing, total = sum(row.differing for row in found), sum(row.total for row in found)
        print(f"{'':9} verify: {differing} of {total} values differ, {len(found)} tensors, {len(inputs)} images")


def engine_memory(path: str, image: str) -> None:
    """Print the peak memory of this process, which runs one image; the caller starts it for that."""
    runner, tensor = IntegerRunner(open_integer(path)), np.load(image)
    for _ in range(2):
        runner.run(tensor)
    status = Path("/proc/self/status")
    if status.exists():  # the resource module counts the parent's memory from before exec too
        print(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def peak(model: Model, tensor: Image, plan: Plan, folder: Path) -> int:
    """Kilobytes that a process of its own needs to open and run the integer graph."""
    path, image = folder / "integer.onnx", folder / "image.npy"
    path.write_bytes(integer_bytes(lower_integer(model.ir, plan, load_target(plan.target))))
    np.save(image, tensor)
    command = [sys.executable, __file__, "--memory-of", str(path), str(image)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--data", type=Path, default=root.parent / "shared" / "data")
    parser.add_argument("--model", default="yolo11n-pose.onnx")
    parser.add_argument("--targets", nargs="+", default=["esp32p4", "esp32s3", "bayes-e", "onnx"])
    parser.add_argument("--int16", nargs="*", default=[], help="patterns of nodes to run at 16 bits")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--verify", action="store_true", help="compare every tensor with the slow reference too")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        engine_memory(*options.memory_of)
        return
    path = options.data / "models" / options.model
    if not path.exists():
        sys.exit(f"{path} is missing: this benchmark needs real models and images, see --data")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    model = load(path)
    classify = model.task == "classify"
    calibration = images(
        options.data / ("imagenet/images" if classify else "coco/calib_images"), model.preprocess, limit=4
    )
    folder = options.data / ("imagenet/val_224" if classify else "coco/images")
    inputs = list(images(folder, model.preprocess, limit=3))
    print(f"{options.model}: input {inputs[0].shape}, {len(inputs)} images, {options.rounds} rounds")
    for target in options.targets:
        plan = plan_for(model, calibration, target, options.int16)
        measure(model, inputs, plan, options.rounds, options.verify)
        if target == options.targets[0]:
            with tempfile.TemporaryDirectory() as own:
                print(
                    f"{'':9} peak memory of the integer engine {peak(model, inputs[0], plan, Path(own)) / 1e3:.0f} MB"
                )


if __name__ == "__main__":
    main()
