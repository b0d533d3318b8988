"""The field's own metrics on labelled images, for float and quantized graphs side by side."""

from narrowcast.evaluate.coco_data import PROTOCOLS, CocoData, Protocol, coco
from narrowcast.evaluate.imagenet_data import ImageNetData, imagenet
from narrowcast.evaluate.passes import Metrics, Report, Row

__all__ = ["PROTOCOLS", "CocoData", "ImageNetData", "Metrics", "Protocol", "Report", "Row", "coco", "imagenet"]
