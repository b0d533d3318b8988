"""Shared by all tests: the builders on the path, and bundles of the embedded samples made once a session."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
os.environ.pop("COLUMNS", None)  # parallel runs set it, and tables follow it

from narrowcast.bundle import Bundle, quantize
from narrowcast.calibrate import images
from narrowcast.graph import Model, load
from narrowcast.zoo import sample


@pytest.fixture(scope="session")
def pose_model() -> Model:
    return load(sample("pose").model)


@pytest.fixture(scope="session")
def classify_model() -> Model:
    return load(sample("classify").model)


@pytest.fixture(scope="session")
def pose_bundle(pose_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    found = images(sample("pose").calibration, pose_model.preprocess, limit=12)
    return quantize(
        pose_model, found, "esp32p4", out=tmp_path_factory.mktemp("bundle") / "pose", method="mse", effort="fast"
    )
