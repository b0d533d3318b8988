"""The nets of this folder on the path, and bundles of the embedded samples for RDK boards."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from rdk_bundles import sample_bundle, sample_images

from narrowcast.bundle import Bundle
from narrowcast.bundle.kits import deploy


@pytest.fixture(scope="session")
def rdk_pose(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return sample_bundle("pose", tmp_path_factory.mktemp("rdk") / "pose", "nv12-studio")


@pytest.fixture(scope="session")
def rdk_classify(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return sample_bundle("classify", tmp_path_factory.mktemp("rdk") / "classify", "rgb")


@pytest.fixture(scope="module")
def package(rdk_pose: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kit of ``rdk_pose``, from three images."""
    out = tmp_path_factory.mktemp("kit") / "package"
    assert deploy(rdk_pose, "rdk-x5", out, images=sample_images("pose", rdk_pose.manifest.preprocess, 3)).path == out
    return out
