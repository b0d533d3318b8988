"""What each effort keeps of a model's accuracy, and what each step bought.

    python benchmarks/recovery.py [--data ../shared/data] [--models yolo11n-pose] [--targets esp32p4] [--efforts fast]

Prints the tables of docs/accuracy.md. Half of the labelled images (drawn with --seed) are scored, with the exact
integers, and the intervals are of the paired bootstrap. Bundles go to a temporary folder.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import narrowcast as nc
from narrowcast.bundle import Bundle

ANNOTATIONS = {"pose": "person_keypoints_val.json", "segment": "instances_val.json", "detect": "instances_val.json"}


def scored(bundle: Bundle, data: Path, limit: int, seed: int) -> str:
    """Kept accuracy of the integer graph, one clause a metric."""
    graphs = bundle.graphs(["float", "integer"])
    source: Any
    if bundle.manifest.task == "classify":
        folder = data / "imagenet"
        source = nc.imagenet(folder / "val_224", folder / "val_224_labels.txt", limit=limit, seed=seed)
    else:
        file = data / "coco" / "annotations" / ANNOTATIONS[bundle.manifest.task]
        source = nc.coco(data / "coco" / "images", file, limit=limit, seed=seed, skip_missing=True)
    report = source.evaluate(graphs, seed=seed)
    clauses = []
    for row in report.rows:
        for metrics in row.metrics:
            if metrics.retention is not None and metrics.retention_interval is not None:
                low, high = metrics.retention_interval
                clauses.append(f"{metrics.family} {metrics.retention:.1%} [{low:.1%}, {high:.1%}]")
    return ", ".join(clauses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--data", type=Path, default=root.parent / "shared" / "data")
    parser.add_argument("--models", nargs="+", default=["yolo11n-pose", "yolo11n-seg", "mobilenet_v2_1.0_224"])
    parser.add_argument("--targets", nargs="+", default=["bayes-e", "esp32p4"])
    parser.add_argument("--efforts", nargs="+", default=["fast", "standard"])
    parser.add_argument("--limit", type=int, default=112)
    parser.add_argument("--seed", type=int, default=2)
    options = parser.parse_args()
    if not options.data.exists():
        sys.exit(f"{options.data} is missing: this benchmark needs real models and images, see --data")
    for name in options.models:
        model = nc.load(options.data / "models" / f"{name}.onnx")
        folder = options.data / ("imagenet/images" if model.task == "classify" else "coco/calib_images")
        images = nc.images(folder, model.preprocess, limit=50)
        for target in options.targets:
            for effort in options.efforts:
                with tempfile.TemporaryDirectory() as out:
                    start = time.perf_counter()
                    bundle = nc.quantize(model, images, target, out=Path(out) / "bundle", effort=effort)
                    seconds = time.perf_counter() - start
                    kept = scored(bundle, options.data, options.limit, options.seed)
                print(f"{name} {target} {effort} ({seconds:.0f} s): {kept}", flush=True)
                for step in bundle.manifest.calibration.get("steps", []):
                    print(f"    {step['step']}: {step['loss_before']:.4f} -> {step['loss_after']:.4f}"
                          f"{'' if step['kept'] else ' (dropped)'}, on images that decide nothing "
                          f"{step['held_before']:.4f} -> {step['held_after']:.4f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
