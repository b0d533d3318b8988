"""The folder on disk: manifest, graphs, plan."""

from narrowcast.bundle.compare import Comparison
from narrowcast.bundle.make import quantize
from narrowcast.bundle.manifest import Manifest
from narrowcast.bundle.modify import modify
from narrowcast.bundle.predictor import Predictor
from narrowcast.bundle.store import Bundle, open_bundle

__all__ = ["Bundle", "Comparison", "Manifest", "Predictor", "modify", "open_bundle", "quantize"]
