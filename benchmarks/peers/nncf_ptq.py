"""NNCF's post-training quantization of ONNX. Settings: ``preset`` (performance or mixed)."""

from __future__ import annotations

from pathlib import Path

import nncf
import numpy as np
import onnx
from child import finish, measured, read_job


def main() -> None:
    job = read_job()
    preset = nncf.QuantizationPreset(job["settings"]["preset"])
    cost: dict[str, float] = {}
    with measured(cost):
        data = nncf.Dataset(job["inputs"], lambda path: {job["input"]: np.load(path)})
        quantized = nncf.quantize(onnx.load(job["graph"]), data, preset=preset, subset_size=len(job["inputs"]))
        onnx.save(quantized, str(Path(job["out"]) / "model.onnx"))
    finish(job, cost, versions={"nncf": nncf.__version__})


if __name__ == "__main__":
    main()
