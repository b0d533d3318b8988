"""Trained networks to ONNX files with the metadata that stock exports carry."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import onnx
import torch
from torch import nn

from samples_training.scenes import OBJECT_NAMES

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_COMMON = {"author": "The narrowcast developers", "license": "Apache-2.0", "version": "1", "batch": "1"}


def export_pose(network: nn.Module, path: Path, size: int = 256) -> None:
    """Write the network, batch norm folded and decode arithmetic attached, as a stock pose export looks."""
    network.model[-1].decoded = True
    metadata = {
        "description": "narrowcast sample: pose network trained on drawn scenes",
        **_COMMON,
        "stride": "32",
        "task": "pose",
        "imgsz": f"[{size}, {size}]",
        "names": "{0: 'person'}",
        "kpt_shape": "[17, 3]",
    }
    _write(network, torch.zeros(1, 3, size, size), path, metadata)


def export_classifier(network: nn.Module, path: Path, size: int = 96, shorter: int = 112) -> None:
    """Write the re-parameterized classifier with its preprocessing."""
    preprocess = {"size": size, "mean": MEAN, "std": STD, "rgb": True, "resize": shorter, "crop": size}
    metadata = {
        "description": "narrowcast sample: classifier trained on drawn objects",
        **_COMMON,
        "task": "classify",
        "imgsz": f"[{size}, {size}]",
        "names": str(dict(enumerate(OBJECT_NAMES))),
        "preprocess": json.dumps(preprocess),
    }
    _write(network, torch.zeros(1, 3, size, size), path, metadata)


def _write(network: nn.Module, example: torch.Tensor, path: Path, metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracing exporter is deprecated, but it is what stock exports used
        torch.onnx.export(
            network.eval(),
            (example,),
            str(path),
            input_names=["images"],
            output_names=["output0"],
            opset_version=17,
            dynamo=False,
        )
    model = onnx.load(str(path))
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
