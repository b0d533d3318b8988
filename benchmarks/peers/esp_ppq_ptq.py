"""ESP-PPQ's post-training quantization for a chip, and its own simulation of the chip on the scored images.

Settings: ``target``, ``algorithm`` (of activations), ``bias_correction`` (the maker's published setting for
yolo11n-pose on the ESP32-P4 has it on, with blocks of 2 and 32 steps).

The QDQ file that the tool exports computes something else than its simulation, so the simulation is what counts.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from child import finish, measured, read_job, tensors
from esp_ppq import QuantizationSettingFactory
from esp_ppq.api import espdl_quantize_onnx
from esp_ppq.executor import TorchExecutor

#: The tool counts batches and asks for at least this many steps of bias correction data.
STEPS = 32


def setting_of(settings: dict[str, Any]) -> Any:
    """The tool's setting object."""
    setting = QuantizationSettingFactory.espdl_setting()
    setting.quantize_activation_setting.calib_algorithm = settings["algorithm"]
    if settings["bias_correction"]:
        setting.bias_correct = True
        setting.bias_correct_setting.interested_layers = []
        setting.bias_correct_setting.block_size = 2
        setting.bias_correct_setting.steps = STEPS
    return setting


def simulate(graph: Any, job: dict[str, Any], folder: Path) -> float:
    """Write the raw outputs of every scored image; seconds an image."""
    folder.mkdir(exist_ok=True)
    executor = TorchExecutor(graph, device="cpu")
    started = time.perf_counter()
    for index, tensor in enumerate(tensors(job["scored"])):
        with torch.no_grad():
            outputs = executor.forward(torch.from_numpy(tensor))
        arrays = {name: value.numpy() for name, value in zip(graph.outputs, outputs, strict=True)}
        np.savez_compressed(folder / f"{index:04}.npz", **arrays)
    return (time.perf_counter() - started) / max(1, len(job["scored"]))


def main() -> None:
    job = read_job()
    out, settings = Path(job["out"]), job["settings"]
    cost: dict[str, float] = {}
    own = out / "copy.onnx"  # the tool overwrites the file that it is given
    shutil.copy(job["graph"], own)
    with measured(cost):
        inputs = [torch.from_numpy(tensor) for tensor in tensors(job["inputs"])]
        graph = espdl_quantize_onnx(
            str(own), str(out / "model.espdl"), inputs, len(inputs), list(inputs[0].shape), target=settings["target"],
            setting=setting_of(settings), device="cpu", error_report=False, skip_export=True, verbose=0,
        )  # fmt: skip
    seconds = simulate(graph, job, out / "outputs")
    versions = {"esp-ppq": importlib.metadata.version("esp-ppq"), "torch": torch.__version__}
    finish(job, cost, versions=versions, simulation_s_per_image=seconds)


if __name__ == "__main__":
    main()
