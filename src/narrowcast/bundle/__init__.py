"""The folder on disk: manifest, graphs, plan."""

from narrowcast.bundle.make import quantize
from narrowcast.bundle.manifest import Manifest
from narrowcast.bundle.modify import modify
from narrowcast.bundle.store import Bundle, Predictor, open_bundle, open_model

__all__ = ["Bundle", "Manifest", "Predictor", "modify", "open_bundle", "open_model", "quantize"]
