"""Images to per-tensor statistics to ranges."""

from narrowcast.calibrate.images import Images, ImageSet, images
from narrowcast.calibrate.ranges import METHODS, RangeSpec, choose_range
from narrowcast.calibrate.statistics import TensorStatistics, collect

__all__ = ["METHODS", "ImageSet", "Images", "RangeSpec", "TensorStatistics", "choose_range", "collect", "images"]
