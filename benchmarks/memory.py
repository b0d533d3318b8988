"""Peak memory of ``quantize`` as a multiple of the model's weights, each effort in a process of its own.

    python benchmarks/memory.py [--megabytes 200] [--target onnx] [--images 24] [--effort fast standard]

The model is made here: convolutions of 1024 channels and two fully connected layers, on an input of 32 x 32, so that
activations are small beside weights. What the imports take is subtracted.

Last measured 2026-11-25, 2 x86 cores, target onnx, 187 MB of weights, one run each on a busy machine: 3.5 times with
both efforts, which is what loading takes. Before, standard took 23.8 times: second moments of 9216 columns
(improve/reconstruct.py), plain copies of changed weights in every graph, and what glibc keeps of freed blocks.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_CHANNELS = 1024


def made_model(megabytes: float) -> onnx.ModelProto:
    """A network with about that many megabytes of float32 weights."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def weight(name: str, *shape: int) -> str:
        spread = np.float32(np.sqrt(2 / np.prod(shape[1:])))
        values = rng.standard_normal(shape, dtype=np.float32) * spread
        constants.append(numpy_helper.from_array(values, name))
        return name

    def add(kind: str, inputs: list[str], **attributes: object) -> str:
        name = f"{kind.lower()}{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def conv(x: str, inner: int, outer: int, stride: int) -> str:
        w = weight(f"w{len(constants)}", outer, inner, 3, 3)
        return add("Relu", [add("Conv", [x, w], pads=[1] * 4, strides=[stride] * 2)])

    x = conv(conv("x", 3, 64, 2), 64, _CHANNELS, 2)
    dense = 4096 * _CHANNELS + 1000 * 4096
    for _ in range(max(1, round((megabytes * 1e6 / 4 - dense) / (_CHANNELS**2 * 9)))):
        x = conv(x, _CHANNELS, _CHANNELS, 1)
    x = add("Flatten", [add("GlobalAveragePool", [x])])
    x = add("Relu", [add("Gemm", [x, weight("dense", 4096, _CHANNELS)], transB=1)])
    x = add("Gemm", [x, weight("last", 1000, 4096)], transB=1)
    nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes, "memory",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1000])],
        constants,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def resident() -> float:
    """Megabytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def quantized(folder: Path, target: str, effort: str) -> None:
    """Quantize in this process; print the peak above the imports, and the seconds."""
    import cv2  # noqa: F401
    import onnxslim  # noqa: F401

    from narrowcast.bundle import quantize
    from narrowcast.calibrate import images
    from narrowcast.graph import load

    before, peak, done = resident(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    model = load(folder / "model.onnx")
    loaded = peak
    quantize(model, images(folder / "x.npy", model.preprocess), target, out=folder / effort, effort=effort)
    done.set()
    watcher.join()
    print(f"{loaded - before:.0f} {peak - before:.0f} {time.perf_counter() - start:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--target", default="onnx")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--effort", nargs="+", default=["fast", "standard"])
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        quantized(options.child, options.target, options.effort[0])
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(made_model(options.megabytes), str(folder / "model.onnx"))
        rng = np.random.default_rng(1)
        np.save(folder / "x.npy", rng.standard_normal((options.images, 3, 32, 32), dtype=np.float32))
        weights = (folder / "model.onnx").stat().st_size / 1e6
        print(f"{'effort':<10}{'weights MB':>12}{'load':>8}{'peak MB':>10}{'ratio':>8}{'seconds':>9}")
        for effort in options.effort:
            child = [sys.executable, __file__, "--child", name, "--target", options.target, "--effort", effort]
            done = subprocess.run(child, capture_output=True, text=True, check=True).stdout.split()
            loaded, peak, seconds = (float(number) for number in done[-3:])
            ratio = peak / weights
            print(f"{effort:<10}{weights:>12.0f}{loaded / weights:>8.2f}{peak:>10.0f}{ratio:>8.2f}{seconds:>9.0f}")


if __name__ == "__main__":
    main()
