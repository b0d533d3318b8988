"""Make the two sample models and the images that ship with narrowcast.

    python scripts/train_samples.py all          # images, pose.onnx, classify.onnx, then the accuracies
    python scripts/train_samples.py pose --threads 2

Scenes come from samples_training.scenes, so nothing is downloaded. "pose" and "classify" need the extra "train"
(torch), "measure" needs pycocotools (extra "dev"). Training uses bfloat16 and takes about a quarter of an hour on one
core; it is seeded, but sums in another order on another processor give other weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

SAMPLES = ROOT / "src" / "narrowcast" / "zoo" / "samples"
POSE_SCENES, POSE_BATCH = 8000, 32
#: Phases (steps, image side), weights of box, dfl, score, oks, place, visible, and the seed.
POSE_ROUNDS = (
    (((600, 160), (400, 256)), (4.0, 0.6, 1.5, 6.0, 4.0, 0.4), 0),
    (((350, 192), (500, 256)), (3.0, 0.6, 1.5, 8.0, 4.0, 0.4), 1),
)
OBJECTS, OBJECT_STEPS, OBJECT_BATCH = 12000, 1000, 64


def train_pose(cache: Path, threads: int) -> None:
    """Draw scenes, train, export."""
    import torch

    from samples_training import data, export, pose_network, pose_training

    torch.set_num_threads(threads)
    images, labels = data.scenes("pose", data.TRAIN_SEED, POSE_SCENES, cache, threads)
    names = ("box", "dfl", "score", "oks", "place", "visible")
    network = None
    for phases, weights, seed in POSE_ROUNDS:
        cycle = pose_training.Round(phases, dict(zip(names, weights, strict=True)), seed)
        network = pose_training.train(images, labels, cycle, POSE_BATCH, network)
    export.export_pose(pose_network.fused(network), SAMPLES / "pose.onnx")


def train_classifier(cache: Path, threads: int) -> None:
    """Draw objects, train, fold the branches, export."""
    import torch

    from samples_training import classifier, data, export
    from samples_training.scenes import OBJECT_NAMES

    torch.set_num_threads(threads)
    images, labels = data.scenes("classify", data.TRAIN_SEED, OBJECTS, cache, threads)
    network = classifier.train(images, labels, len(OBJECT_NAMES), OBJECT_STEPS, OBJECT_BATCH)
    export.export_classifier(classifier.reparameterized(network), SAMPLES / "classify.onnx")


def measure() -> None:
    """Print the float accuracies of the files that are there."""
    from samples_training import measure as by
    from samples_training.scenes import OBJECT_NAMES, object_scene

    seed = 3_000_000
    objects = [object_scene(seed + index, index % len(OBJECT_NAMES)) for index in range(2000)]
    report = {
        "pose, shipped images": by.shipped_pose_accuracy(SAMPLES),
        "pose, 300 held-out scenes": by.held_out_pose_accuracy(SAMPLES, seed, 300),
        "classify, shipped images": by.shipped_classifier_accuracy(SAMPLES),
        "classify, 2000 held-out objects": by.classifier_accuracy(
            SAMPLES / "classify.onnx", [scene.image for scene in objects], [scene.label for scene in objects]
        ),
    }
    print(json.dumps(report, indent=2))


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("all", "images", "pose", "classify", "measure"))
    parser.add_argument("--threads", type=int, default=1, help="cores to use")
    parser.add_argument("--cache", type=Path, default=ROOT / "out" / "scenes", help="folder for the drawn scenes")
    options = parser.parse_args()
    if options.what in ("all", "images"):
        from samples_training.shipped import write_images

        write_images(SAMPLES)
    if options.what in ("all", "pose"):
        train_pose(options.cache, options.threads)
    if options.what in ("all", "classify"):
        train_classifier(options.cache, options.threads)
    if options.what in ("all", "measure"):
        measure()


if __name__ == "__main__":
    main()
