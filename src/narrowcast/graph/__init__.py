"""ONNX in, tidy graph out."""

from narrowcast.graph.model import COCO_SKELETON, Model, load
from narrowcast.graph.run import Runner

__all__ = ["COCO_SKELETON", "Model", "Runner", "load"]
