"""Shared by all tests: the builders on the path, and bundles of the embedded samples made once a session."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
os.environ.pop("COLUMNS", None)  # parallel runs set it, and tables follow it
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    # a core each, before anything counts cores: idle threads of onnxruntime spin, on cores that other workers need
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

from builders import save
from narrowcast.bundle import Bundle, quantize
from narrowcast.calibrate import images
from narrowcast.graph import Model, load
from narrowcast.zoo import sample
from small_pose import small_pose


def pytest_collection_finish() -> None:
    """What was imported stays: no collection has to walk over it, and loading a model makes one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def pose_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pose network of drawn weights: what most tests ask for is how a network is built, not what it sees."""
    return save(small_pose(), tmp_path_factory.mktemp("small") / "pose.onnx")


@pytest.fixture(scope="session")
def pose_model(pose_file: Path) -> Model:
    return load(pose_file)


@pytest.fixture(scope="session")
def pose_bundle(pose_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return _bundle(pose_model, tmp_path_factory)


@pytest.fixture(scope="session")
def people_model() -> Model:
    """The embedded network, for what needs people to be found; several times slower."""
    return load(sample("pose").model)


@pytest.fixture(scope="session")
def people_bundle(people_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return _bundle(people_model, tmp_path_factory)


@pytest.fixture(scope="session")
def classify_model() -> Model:
    return load(sample("classify").model)


def _bundle(model: Model, factory: pytest.TempPathFactory) -> Bundle:
    found = images(sample("pose").calibration, model.preprocess, limit=12)
    return quantize(model, found, "esp32p4", out=factory.mktemp("bundle") / "pose", method="mse", effort="fast")
