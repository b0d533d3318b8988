"""Images to per-tensor statistics to ranges."""

from narrowcast.calibrate.images import Images, ImageSet, images
from narrowcast.calibrate.statistics import METHODS, RangeSpec, TensorStatistics, choose_range, collect

__all__ = ["METHODS", "ImageSet", "Images", "RangeSpec", "TensorStatistics", "choose_range", "collect", "images"]
