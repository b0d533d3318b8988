"""Scenes, networks, training and measurement behind ``scripts/train_samples.py``."""
