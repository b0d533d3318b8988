"""Seconds of the analysis, and how many plain passes they are worth.

    python benchmarks/analyze.py BUNDLE --images DIR [--limit 8] [--sensitivity]

A plain pass is one run of the whole QDQ graph with all cores. A tool that runs the whole network for every layer needs
as many passes as there are layers and images; the last column says what share of that this took.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from narrowcast.analyze.measure import measure, reference
from narrowcast.analyze.parts import ablate, graphwise, sensitivity
from narrowcast.analyze.subject import subplan, telling, unseen
from narrowcast.bundle import open_bundle
from narrowcast.bundle.analysis import subject_of
from narrowcast.calibrate import images
from narrowcast.graph.run import Runner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--sensitivity", action="store_true")
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    manifest = bundle.manifest
    found, _ = unseen(images(options.images, manifest.preprocess), manifest.calibration.get("images", ()))
    subject = subject_of(bundle, telling(found, options.limit, bundle.model.to_proto(), manifest.meaning))
    runner = Runner(subject.quantized_graph, 0, "basic")
    runner.run(subject.inputs[0])
    start = time.perf_counter()
    for tensor in subject.inputs:
        runner.run(tensor)
    one = (time.perf_counter() - start) / len(subject.inputs)
    print(
        f"{manifest.model['source']} on {manifest.target}: one pass {1000 * one:.0f} ms, {len(subject.inputs)} images,"
    )
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")

    def report(what: str, variants: int, begin: float) -> None:
        seconds = time.perf_counter() - begin
        full = variants * len(subject.inputs) * one
        print(f"{what:<24} {variants:4} variants {seconds:7.1f} s {seconds / one:6.0f} passes {seconds / full:6.0%}")

    references = reference(subject)
    begin = time.perf_counter()
    nodes = {name: subplan(subject, [name]) for name in subject.products()}
    measure(subject, references, nodes, subject.float_graph, title="layerwise")
    report("layerwise, convolutions", len(nodes), begin)
    begin = time.perf_counter()
    parts = ablate(subject, references)
    report("ablation", len(parts) + sum(entry.without is not None for entry in parts), begin)
    begin = time.perf_counter()
    graphwise(subject)
    report("graphwise", 2, begin)
    if options.sensitivity:
        begin = time.perf_counter()
        gains = sensitivity(subject, references, parts[0].only)
        report("sensitivity", len(gains), begin)


if __name__ == "__main__":
    main()
