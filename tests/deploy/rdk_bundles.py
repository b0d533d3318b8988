"""Bundles of a pose network and of the embedded classifier for an RDK board, made in seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx

from builders import save
from narrowcast.bundle import Bundle, quantize
from narrowcast.calibrate import ImageSet, images
from narrowcast.graph import load
from narrowcast.plan import Pins
from narrowcast.vision import Preprocess
from narrowcast.zoo import sample
from small_pose import small_pose


def sample_bundle(kind: str, out: Path, camera: str, pins: Pins | None = None) -> Bundle:
    out.parent.mkdir(parents=True, exist_ok=True)
    model = load(save(small_pose(), out.with_suffix(".onnx")) if kind == "pose" else sample(kind).model)
    model = replace(model, preprocess=replace(model.preprocess, camera=camera))
    return quantize(model, sample_images(kind, model.preprocess), "bayes-e", out=out, method="minmax", pins=pins)


def sample_images(kind: str, spec: Preprocess, limit: int = 5) -> ImageSet:
    return images(sample(kind).calibration, spec, limit=limit)


def small_bundle(proto: onnx.ModelProto, folder: Path, spec: Preprocess, pins: Pins | None = None) -> Bundle:
    """Of a model built for a test."""
    model = replace(load(save(proto, folder / "net.onnx"), keep_head=True), preprocess=spec)
    found = images(sample("classify").calibration, spec, limit=4)
    return quantize(model, found, "bayes-e", out=folder / "bundle", method="minmax", pins=pins)
