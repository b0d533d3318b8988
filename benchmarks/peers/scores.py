"""Every tool's result behind one decode: predictors, noise of the raw outputs, and average precision."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from narrowcast.bundle import Predictor, open_bundle
from narrowcast.evaluate import CocoData
from narrowcast.evaluate.coco_scores import CocoScores, score
from narrowcast.evaluate.passes import Metrics, metrics_of_rows
from narrowcast.graph import Model, Runner

Make = Callable[[], Predictor]
#: Decibels at which an output counts as equal in the mean.
CAP_DB = 60.0


class Replay:
    """Raw outputs that another process wrote, found by the input that they belong to.

    Args:
        folder: ``0000.npz`` and so on.
        inputs: .npy files of the inputs, in the same order.
    """

    def __init__(self, folder: Path, inputs: Sequence[str]) -> None:
        self.files = {_digest(np.load(path)): folder / f"{i:04}.npz" for i, path in enumerate(inputs)}

    def run(self, tensor: NDArray[np.float32], names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """The outputs of one input."""
        with np.load(self.files[_digest(tensor)]) as stored:
            return {name: stored[name] for name in names or stored.files}


def _digest(tensor: NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(tensor).tobytes()).hexdigest()


def predictor(model: Model, folder: Path, key: str, scored: Sequence[str]) -> Make:
    """How a finished job's result is opened: bundle, quantized ONNX file, or outputs of a simulation.

    Args:
        model: the float model, whose preprocessing and decode all of them share.
        folder: of the job.
        key: of the job, to tell results apart.
        scored: .npy files of the scored inputs.
    """

    def make() -> Predictor:
        if (folder / "bundle").is_dir():
            return open_bundle(folder / "bundle").engine("integer", 1)
        floating = Predictor.of_model(model, threads=1)
        if (folder / "outputs").is_dir():
            return replace(floating, runner=cast(Runner, Replay(folder / "outputs", scored)), digest=key)
        # "basic" keeps every QuantizeLinear and DequantizeLinear, so that what is scored is the file's meaning
        return replace(floating, runner=Runner(folder / "model.onnx", 1, "basic"), digest=key)

    return make


def noise(reference: Make, quantized: Make, inputs: Sequence[str]) -> float:
    """Mean over outputs of the signal-to-quantization-noise ratio in dB, over these inputs."""
    floating, other = reference(), quantized()
    signal: dict[str, float] = {}
    wrong: dict[str, float] = {}
    for path in inputs:
        tensor = np.load(path)
        expected, found = floating.run(tensor), other.run(tensor)
        for name, value in expected.items():
            x = value.astype(np.float64)
            y = read_output(other, name, found[name])
            signal[name] = signal.get(name, 0.0) + float(np.sum(x * x))
            wrong[name] = wrong.get(name, 0.0) + float(np.sum((x - y) ** 2))
    ratios = [10 * np.log10(signal[name] / wrong[name]) if wrong[name] else CAP_DB for name in signal]
    return float(np.mean(np.minimum(ratios, CAP_DB)))


def read_output(made: Predictor, name: str, value: NDArray[Any]) -> NDArray[np.float64]:
    """An output in the unit of the float model."""
    encoding = (made.encodings or {}).get(name)
    if encoding is None:
        return value.astype(np.float64)
    scale = np.asarray(encoding.scale, np.float64)
    if scale.ndim:
        axis = encoding.axis or 0
        scale = scale.reshape([-1 if i == axis else 1 for i in range(value.ndim)])
    return (value.astype(np.float64) - encoding.zero_point) * scale


def predictions(data: CocoData, name: str, make: Make, file: Path) -> list[dict[str, Any]]:
    """COCO results of every image, from the file where they lie already."""
    if not file.exists():
        data.evaluate({name: make}, save_predictions=file)
    found: list[dict[str, Any]] = json.loads(file.read_text())
    return found


def metrics(
    data: CocoData, model: Model, found: Mapping[str, list[dict[str, Any]]], seed: int = 0
) -> dict[str, tuple[Metrics, ...]]:
    """Average precision with paired intervals; the first row is the reference."""
    classes = {name.lower() for name in model.classes}
    categories = sorted(int(c["id"]) for c in data.document["categories"] if str(c["name"]).lower() in classes)
    scores: dict[str, CocoScores] = {
        name: score(data.document, results, model.meaning.families, categories) for name, results in found.items()
    }
    return metrics_of_rows(scores, len(data), seed)
