"""Speed and noise of quantization against onnxruntime's own quantize_static, in one run on the same images.

    python benchmarks/quantize.py [--data ../shared/data] [--model yolo11n-pose.onnx] [--images 50]

Prints the calibration pass as a multiple of plain float inference (same threads, ORT_ENABLE_BASIC), the whole
quantize, peak memory, and the signal-to-quantization-noise ratio of every raw head output on held-back images.
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
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from narrowcast.bundle.make import quantize
from narrowcast.calibrate import ImageSet, collect, images
from narrowcast.chips import load_target
from narrowcast.engine.noise import compare_tensors
from narrowcast.graph import Model, Runner, load
from narrowcast.ops.units import inline_units
from narrowcast.plan import draft

TARGETS = ("onnx", "bayes-e", "esp32p4")


def median_ratio(model: Model, found: ImageSet, target: str, rounds: int = 3) -> tuple[float, float, float]:
    """Seconds of plain inference and of the calibration pass on the same inputs, and the median ratio of pairs."""
    proto = model.to_proto()
    wanted = draft(model.ir.graph, load_target(target)).wanted_statistics()
    plain_times, pass_times = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        runner = Runner(proto, level="basic")
        for tensor in found:
            runner.run(tensor)
        middle = time.perf_counter()
        collect(proto, wanted, found)
        plain_times.append(middle - start)
        pass_times.append(time.perf_counter() - middle)
    ratios = np.array(pass_times) / np.array(plain_times)
    return float(np.median(plain_times)), float(np.median(pass_times)), float(np.median(ratios))


def static(model: Model, found: ImageSet, held: ImageSet, method: str) -> tuple[float, dict[str, float]]:
    """onnxruntime's quantize_static on the same cut graph: seconds and SQNR of every output."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.tensors: Iterator[np.ndarray] = iter(found)

        def get_next(self) -> dict[str, np.ndarray] | None:
            tensor = next(self.tensors, None)
            return None if tensor is None else {model.input_name: tensor}

    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(inline_units(model.to_proto()), str(source))
        start = time.perf_counter()
        quantize_static(
            str(source), str(result), Reader(), per_channel=True, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8, calibrate_method=getattr(CalibrationMethod, method),
        )  # fmt: skip
        seconds = time.perf_counter() - start
        quantized = onnx.load(str(result))
    pairs = {name: name for name in model.output_names}
    return seconds, {n: e.sqnr_db for n, e in compare_tensors(model.to_proto(), quantized, pairs, held).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--data", type=Path, default=root.parent / "shared" / "data")
    parser.add_argument("--model", default="yolo11n-pose.onnx")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--percentile-images", type=int, default=16, help="its calibrator keeps every activation")
    options = parser.parse_args()
    path = options.data / "models" / options.model
    if not path.exists():
        sys.exit(f"{path} is missing: this benchmark needs real models and images, see --data")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    model = load(path)
    folder = options.data / ("imagenet/images" if model.task == "classify" else "coco/calib_images")
    found = images(folder, model.preprocess, limit=options.images)
    calibration, held = found.hold_back()
    size = model.preprocess.width
    print(f"{options.model}: {len(calibration)} images to calibrate, {len(held)} held back, input {size}")
    columns: dict[str, dict[str, float]] = {}
    for target in TARGETS:
        plain, seconds, ratio = median_ratio(model, calibration, target)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as out:
            bundle = quantize(model, found, target, out=Path(out) / "b")
            total = time.perf_counter() - start
        columns[target] = {e["name"]: e["sqnr_db"] for e in bundle.manifest.comparison}
        print(
            f"{target:15} plain float {plain:5.2f} s, calibration pass {seconds:5.2f} s = {ratio:.2f}x; "
            f"whole quantize {total:5.1f} s, ranges by {bundle.manifest.calibration['method']}"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory so far {peak:.2f} GB")
    for method, count in (("MinMax", len(calibration)), ("Percentile", options.percentile_images)):
        subset = calibration.subset(range(min(count, len(calibration))))
        seconds, columns[f"static {method}"] = static(model, subset, held, method)
        print(f"quantize_static {method} on {len(subset)} images: {seconds:.1f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory with quantize_static {peak:.2f} GB")
    print("SQNR in dB on the held-back images")
    print(f"{'output':10}" + "".join(f"{name:>19}" for name in columns))
    for name in model.output_names:
        print(f"{name:10}" + "".join(f"{column[name]:19.1f}" for column in columns.values()))
    command = [sys.executable, "-c", "from narrowcast.cli import main; main()", "--help"]
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    print(f"narrowcast --help {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
