"""What tune buys: metric, 16-bit convolutions and seconds for bundles made with ``narrowcast quantize``.

    python benchmarks/tune.py IMAGES ANNOTATIONS BUNDLE [BUNDLE ...] [--limit N]

Prints one line a bundle: retention of every metric before and after on the half that did not choose.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from narrowcast.bundle import open_bundle
from narrowcast.calibrate import images as find_images
from narrowcast.evaluate import coco
from narrowcast.evaluate.tune import Wish, tune


def main() -> None:
    """Parse, tune, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--limit", type=int, default=200)
    options = parser.parse_args()
    for path in options.bundles:
        bundle = open_bundle(path)
        data = coco(options.images, options.annotations, limit=options.limit)
        given = find_images(options.images, bundle.manifest.preprocess)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            tuned = tune(bundle, given, out=Path(folder) / "tuned", wish=Wish(), data=data)
        seconds = time.perf_counter() - start
        record = tuned.manifest.calibration["tune"]
        cost = record["cost"]["convolutions"]
        print(f"{path.name}: {cost['wide']:.0f} of {cost['total']:.0f} convolutions at 16 bits, {seconds:.0f} s")
        for row in record["report"]["metrics"]["rows"][1:]:
            for metrics in row["metrics"]:
                low, high = metrics["retention_interval"]
                print(f"  {row['name']:<7}{metrics['family']:<10}{metrics['retention']:.1%} [{low:.1%}, {high:.1%}]")


if __name__ == "__main__":
    main()
