"""Images to tensors, and results with what they look like; numpy and OpenCV only, so that it runs on the board too."""

# isort: off
from narrowcast.vision import limits  # noqa: F401  (sets OpenCV's limit before anything loads it)

# isort: on
from narrowcast.vision.preprocess import Geometry, Preprocess, preprocess, read_image
from narrowcast.vision.reader import OutputEncoding
from narrowcast.vision.types import Classification, Detections, Result

__all__ = [
    "Classification", "Detections", "Geometry", "OutputEncoding", "Preprocess", "Result", "preprocess", "read_image",
]  # fmt: skip
