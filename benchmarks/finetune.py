"""What finetuning buys: error in task units, seconds, and with labels the metric, for one or more settings.

python benchmarks/finetune.py BUNDLE --images DIR [--try steps=300,rate=0.02] [--try scope=all,rate=0.01]
    [--evaluate DIR --annotations FILE] [--threads N]
"""

from __future__ import annotations

import argparse
import ast
import tempfile
import time
from pathlib import Path

from narrowcast.bundle import Bundle, open_bundle
from narrowcast.bundle.finetune import finetune
from narrowcast.calibrate import images
from narrowcast.evaluate import coco
from narrowcast.improve.finetune import Settings

ROWS = (
    "loss", "oks_loss", "keypoint_pixels", "mask_iou_loss", "iou_loss", "box_pixels", "probability",
    "candidate_probability", "top1_disagreement",
)  # fmt: skip


def parsed(text: str) -> Settings:
    """``steps=300,scope=all`` as settings."""
    values = {}
    for entry in filter(None, text.split(",")):
        name, _, value = entry.partition("=")
        try:
            values[name] = ast.literal_eval(value)
        except ValueError:
            values[name] = value
    return Settings(**values)


def show(made: Bundle, seconds: float) -> None:
    """Error before and after."""
    record = made.manifest.calibration["finetune"]
    print(f"  {seconds:.0f} s, kept step {record['kept_step']}, judged by {record['judged_by']}")
    print("  judged", " ".join(f"{entry['step']}:{entry['loss']:.4f}" for entry in record["judged"]))
    for name in ROWS:
        if name in record["before"]:
            print(f"  {name:<24}{record['before'][name]:>10.4f}{record['after'][name]:>10.4f}")


def main() -> None:
    """Finetune with every setting and print a block for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="images without labels")
    parser.add_argument("--try", dest="tries", action="append", help="settings, such as steps=300,rate=0.02")
    parser.add_argument("--evaluate", type=Path, help="labelled images, which are not trained on")
    parser.add_argument("--annotations", type=Path, help="their COCO file")
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    start = open_bundle(arguments.bundle)
    found = images(arguments.images, start.manifest.preprocess)
    for text in arguments.tries or [""]:
        settings = parsed(text)
        print(f"{arguments.bundle.name} {text or 'defaults'}: {settings}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            made = finetune(start, found, out=Path(folder) / "b", settings=settings, threads=arguments.threads)
            show(made, time.perf_counter() - began)
            if arguments.evaluate and arguments.annotations:
                data = coco(arguments.evaluate, arguments.annotations)
                graphs = {**start.graphs(), "finetuned": made.graphs()[made.engines[0]]}
                for row in data.evaluate(graphs).to_dict()["rows"]:
                    print(f"  {row}")


if __name__ == "__main__":
    main()
