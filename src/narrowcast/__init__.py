"""Vision models in 8/16-bit integers for edge chips.

    import narrowcast as nc

    model = nc.load("yolo11n-pose.onnx")
    print(nc.check(model, "esp32p4"))
    bundle = nc.quantize(model, "photos/", target="esp32p4", out="pose-p4")
    poses = bundle.predict("street.jpg")
    report = bundle.evaluate(nc.coco("val2017/", "person_keypoints_val2017.json"))

Everything here is imported on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from narrowcast.base.errors import UserError
    from narrowcast.bundle import Bundle, open_bundle, quantize
    from narrowcast.bundle.analysis import analyze
    from narrowcast.bundle.check import check
    from narrowcast.bundle.finetune import finetune
    from narrowcast.bundle.kits import deploy
    from narrowcast.calibrate import images
    from narrowcast.chips import load_target, target_names
    from narrowcast.evaluate import Report, coco, imagenet
    from narrowcast.evaluate.tune import tune
    from narrowcast.graph import Model, load
    from narrowcast.plan import Encoding, Placement, Plan
    from narrowcast.vision import Classification, Detections, Preprocess
    from narrowcast.zoo import sample

_HOMES = {
    "Bundle": "bundle",
    "Classification": "vision",
    "Detections": "vision",
    "Encoding": "plan",
    "Model": "graph",
    "Placement": "plan",
    "Plan": "plan",
    "Preprocess": "vision",
    "Report": "evaluate",
    "UserError": "base.errors",
    "analyze": "bundle.analysis",
    "check": "bundle.check",
    "coco": "evaluate",
    "deploy": "bundle.kits",
    "finetune": "bundle.finetune",
    "imagenet": "evaluate",
    "images": "calibrate",
    "load": "graph",
    "load_target": "chips",
    "open_bundle": "bundle",
    "quantize": "bundle",
    "sample": "zoo",
    "target_names": "chips",
    "tune": "evaluate.tune",
}

__all__ = [
    "Bundle",
    "Classification",
    "Detections",
    "Encoding",
    "Model",
    "Placement",
    "Plan",
    "Preprocess",
    "Report",
    "UserError",
    "analyze",
    "check",
    "coco",
    "deploy",
    "finetune",
    "imagenet",
    "images",
    "load",
    "load_target",
    "open_bundle",
    "quantize",
    "sample",
    "target_names",
    "tune",
]

__version__ = "0.1.0"


class _Room(ModuleType):
    """A room that has the name of a public function: calling ``nc.analyze`` calls the function."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.__wrapped__(*args, **options)

    @property
    def __wrapped__(self) -> Any:
        return _public(self.__name__.rpartition(".")[2])


class _Package(ModuleType):
    """Makes a room callable when the import system hangs it into the package."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOMES and isinstance(value, ModuleType):
            value.__class__ = _Room
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def _public(name: str) -> Any:
    return getattr(importlib.import_module(f"narrowcast.{_HOMES[name]}"), name)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'narrowcast' has no attribute {name!r}")
    return _public(name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
