"""The embedded sample models and their images, and quick scores on them."""

from narrowcast.zoo.embedded import Sample, pose_recall, sample, sample_names, top1

__all__ = ["Sample", "pose_recall", "sample", "sample_names", "top1"]
