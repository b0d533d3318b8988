"""Finetuning without labels: the float model teaches the quantized one. It needs torch, but only once it runs."""

from narrowcast.improve.finetune.settings import LEAST_IMAGES, SCOPES, Settings, require_torch

__all__ = ["LEAST_IMAGES", "SCOPES", "Settings", "require_torch"]
