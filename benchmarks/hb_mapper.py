"""From an hb_mapper YAML to the table of nodes, beside the published log of the vendor's tool for the same model.

    python benchmarks/hb_mapper.py [--data ../shared/data] [--reference ../shared/reference/data] [--images 50]

Writes calibration files in the vendor's headerless format and a YAML in its four groups, runs quantize on it, and
prints the seconds of the whole flow, the cosine of every node and output beside the published ones, and the latency
of the bundle with and without dequantize nodes. The weights behind the log are not ours to have, so rows are compared
for their size, not number by number.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

from narrowcast.bundle import Bundle, open_bundle
from narrowcast.bundle.bench import bench
from narrowcast.bundle.modify import modify
from narrowcast.calibrate import images
from narrowcast.chips.rdk.calibration import write_vendor_files
from narrowcast.cli.quantize import quantize
from narrowcast.cli.tables import node_rows
from narrowcast.graph import load
from narrowcast.vision.preprocess import read_image

#: Outputs in the order of the vendor's export: class, box and keypoint of each stride.
OUTPUTS = tuple(f"{kind}_s{stride}" for stride in (8, 16, 32) for kind in ("cls", "box", "kpt"))


def write_config(folder: Path, model: Path, kind: str) -> Path:
    groups = {
        "model_parameters": {
            "onnx_model": str(model), "march": "bayes-e", "working_dir": str(folder / "out"),
            "output_model_file_prefix": "pose",
        },
        "input_parameters": {
            "input_name": "", "input_type_rt": "nv12", "input_space_and_range": "regular", "input_type_train": "rgb",
            "input_layout_train": "NCHW", "norm_type": "data_scale", "scale_value": 0.003921568627451,
        },
        "calibration_parameters": {
            "cal_data_dir": str(folder / "calibration_f32"), "cal_data_type": "float32", "calibration_type": kind,
        },
        "compiler_parameters": {"compile_mode": "latency", "optimize_level": "O3"},
    }  # fmt: skip
    file = folder / "pose.yaml"
    file.write_text(yaml.safe_dump(groups))
    return file


def published(file: Path, name: str, key: str) -> dict[str, float]:
    with file.open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["model"] == name]
    return {row[key]: float(row["cosine"]) for row in rows if row["cosine"] != "--"}


def print_nodes(bundle: Bundle, reference: dict[str, float]) -> None:
    print(f"{'node':60} {'ours':>9} {'published':>9}")
    pairs = []
    for row in node_rows(bundle):
        if row[0] in reference and row[4] != "--":
            pairs.append((float(row[4]), reference[row[0]]))
            print(f"{row[0]:60} {row[4]:>9} {reference[row[0]]:9.6f}")
    ours, theirs = np.array(pairs).T
    print(f"{len(pairs)} nodes in both: median {np.median(ours):.6f} and {np.median(theirs):.6f}, lowest "
          f"{ours.min():.6f} and {theirs.min():.6f}, ours as high in {np.mean(ours >= theirs):.0%}")  # fmt: skip


def print_outputs(bundle: Bundle, reference: dict[str, float]) -> None:
    found = {entry["name"]: entry["cosine"] for entry in bundle.manifest.comparison}
    print(f"{'output':10} {'ours':>9} {'published':>9}")
    for name, theirs in zip(OUTPUTS, reference.values(), strict=True):
        mark = "" if found[name] >= theirs else "  lower"
        print(f"{name:10} {found[name]:9.6f} {theirs:9.6f}{mark}")


def print_latency(bundle: Bundle, folder: Path, picture: np.ndarray, frames: int) -> None:
    changed = modify(bundle, out=folder / "integer", remove_dequantize=["all"])
    for title, one in (("float outputs", bundle), ("integer outputs", changed)):
        result = bench(one.engine("qdq", 1), picture, frames=frames)
        stages = ", ".join(f"{name} {timing.p50:.2f}" for name, timing in result.stages.items())
        count = len(one.engine("qdq", 1).predict(picture))
        print(f"{title}: {count} detections; median ms: {stages}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--reference", type=Path, default=Path("../shared/reference/data"))
    parser.add_argument("--model", default="yolo11n-pose.onnx")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--kind", default="default", help="calibration_type")
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--frames", type=int, default=10)
    options = parser.parse_args()
    file = (options.data / "models" / options.model).resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = images(options.data / "coco" / "calib_images", load(file).preprocess, limit=options.images)
        write_vendor_files(photos, folder / "calibration_f32", "float32")
        config = write_config(folder, file, options.kind)
        start = time.perf_counter()
        quantize(config=config, effort=options.effort, force=True, verbose=True, quiet=True)
        print(f"\nfrom YAML to table: {time.perf_counter() - start:.1f} s for {options.images} images\n")
        bundle = open_bundle(folder / "out" / "pose")
        print_nodes(bundle, published(options.reference / "mapper_nodes.csv", "yolo11n_pose", "node"))
        print_outputs(bundle, published(options.reference / "mapper_outputs.csv", "yolo11n_pose", "output"))
        pictures = sorted((options.data / "coco" / "images").iterdir())
        print_latency(bundle, folder, read_image(pictures[0]), options.frames)


if __name__ == "__main__":
    main()
