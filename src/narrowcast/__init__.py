"""Vision models in 8/16-bit integers for edge chips.

    import narrowcast as nc

    model = nc.load("yolo11n-pose.onnx")
    images = nc.images("photos/", model.preprocess)
    bundle = nc.quantize(model, images, target="esp32p4", out="pose-p4")
    poses = bundle.predict("street.jpg")
    report = bundle.evaluate(nc.coco("val2017/", "person_keypoints_val2017.json"))

Everything here is imported on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from narrowcast.bundle import Bundle, open_bundle
    from narrowcast.calibrate import images
    from narrowcast.deploy import quantize
    from narrowcast.errors import UserError
    from narrowcast.evaluate import Report, coco, imagenet
    from narrowcast.graph import Model, load
    from narrowcast.plan import Encoding, Placement, Plan
    from narrowcast.targets import load_target, target_names
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
    "UserError": "errors",
    "coco": "evaluate",
    "imagenet": "evaluate",
    "images": "calibrate",
    "load": "graph",
    "load_target": "targets",
    "open_bundle": "bundle",
    "quantize": "deploy",
    "sample": "zoo",
    "target_names": "targets",
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
    "coco",
    "imagenet",
    "images",
    "load",
    "load_target",
    "open_bundle",
    "quantize",
    "sample",
    "target_names",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'narrowcast' has no attribute {name!r}")
    return getattr(importlib.import_module(f"narrowcast.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
