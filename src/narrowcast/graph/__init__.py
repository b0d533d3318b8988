"""ONNX in, tidy graph out."""

from narrowcast.graph.model import Model, load
from narrowcast.graph.run import Runner

__all__ = ["Model", "Runner", "load"]
