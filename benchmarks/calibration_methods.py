"""Which calibration method is best? Mean SQNR of the outputs on held-back images, by model, target and method.

    python benchmarks/calibration_methods.py [--data ../shared/data]

Prints the table of docs/calibration.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from narrowcast.calibrate import METHODS, collect, images
from narrowcast.chips import load_target
from narrowcast.engine import lower_qdq
from narrowcast.engine.noise import compare_tensors, mean_sqnr
from narrowcast.graph import load
from narrowcast.plan import draft, finish

MODELS = ("yolo11n-pose.onnx", "yolo11n-seg.onnx", "yolov8n.onnx", "mobilenet_v2_1.0_224.onnx")
TARGETS = ("onnx", "bayes-e", "esp32p4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--data", type=Path, default=root.parent / "shared" / "data")
    options = parser.parse_args()
    if not options.data.exists():
        sys.exit(f"{options.data} is missing: this benchmark needs real models and images, see --data")
    print(f"| model | target | {' | '.join(METHODS)} |")
    print("|---|---|" + "---|" * len(METHODS))
    for name in MODELS:
        model = load(options.data / "models" / name)
        folder = options.data / ("imagenet/images" if model.task == "classify" else "coco/calib_images")
        calibration, held = images(folder, model.preprocess, limit=56).hold_back()
        pairs = {output: output for output in model.output_names}
        for target in TARGETS:
            drafted = draft(model.ir.graph, load_target(target))
            statistics = collect(model.to_proto(), drafted.wanted_statistics(), calibration)
            scores = []
            for method in METHODS:
                proto, _ = lower_qdq(model.ir, finish(drafted, statistics, method)[0])
                scores.append(mean_sqnr(compare_tensors(model.to_proto(), proto, pairs, held).values()))
            best = max(scores)
            cells = [f"**{score:.1f}**" if score == best else f"{score:.1f}" for score in scores]
            print(f"| {name.removesuffix('.onnx')} | {target} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
