"""The embedded sample models and their images."""

from narrowcast.zoo.embedded import Sample, sample, sample_for, sample_names

__all__ = ["Sample", "sample", "sample_for", "sample_names"]
