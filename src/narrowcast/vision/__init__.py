"""Images to tensors and raw outputs to results; numpy and OpenCV only, so that it runs on the board too."""

# isort: off
from narrowcast.vision import limits  # noqa: F401  (sets OpenCV's limit before anything loads it)

# isort: on
from narrowcast.vision.decode import decode, decode_classification
from narrowcast.vision.heads import HeadSpec, OutputEncoding, decode_dense
from narrowcast.vision.preprocess import Geometry, Preprocess, preprocess, read_image
from narrowcast.vision.types import Classification, Detections

__all__ = [
    "Classification",
    "Detections",
    "Geometry",
    "HeadSpec",
    "OutputEncoding",
    "Preprocess",
    "decode",
    "decode_classification",
    "decode_dense",
    "preprocess",
    "read_image",
]
