"""Process replay: twelve networks give the very bytes that they gave when they were recorded.

A commit that means to change bytes records anew, in one process, and says why:
``scripts/test tests/replay -n 0 --record``. On another machine, or with other versions of the packages, float
results may differ in their last digits: record before the change there, and compare after it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import record
from replay_nets import NETS, net_file

import narrowcast as nc
from narrowcast.bundle.kits import deploy
from narrowcast.graph import load
from narrowcast.zoo import sample

TARGETS = tuple(nc.target_names())
#: One chip of each family, for what takes longer: corrections, and the embedded samples, of which those without
#: corrections are made for the chip with a kit alone (``test_outputs.py`` sees that of another).
FEW, KIT = ("onnx", "bayes-e", "esp32p4"), ("bayes-e",)
CASES = [
    *((name, target, "fast") for name, net in NETS.items() for target in (KIT if isinstance(net, Path) else TARGETS)),
    *((name, target, "standard") for name in NETS for target in FEW),
]


def calibration(name: str, model: nc.Model, folder: Path) -> Any:
    """A few pictures for the samples, random numbers for the others."""
    if name in ("pose", "classify"):
        return nc.images(sample(name).calibration, model.preprocess, limit=5)
    shape = [int(size) for size in model.ir.graph.inputs[0].shape]
    numbers = np.random.default_rng(0).random((5, *shape[1:]), np.float32)
    np.save(folder / "calibration.npy", numbers)
    return nc.images(folder / "calibration.npy", model.preprocess)


def made(name: str, target: str, effort: str, folder: Path) -> dict[str, str]:
    """Digests of the bundle and of the kit's files, or the words of a refusal."""
    try:
        model = load(net_file(name, folder))
        images = calibration(name, model, folder)
        bundle = nc.quantize(model, images, target, out=folder / "bundle", effort=effort, method="mse")
    except nc.UserError as error:
        return {"refused": str(error).replace(str(folder), ".")}
    found = record.digests(folder / "bundle")
    if effort == "fast" and target in KIT:
        deploy(bundle, "rdk-x5", folder / "kit", images=images)
        kit = record.digests(folder / "kit").items()  # its copy of our own source is no output
        found |= {f"kit/{file}": digest for file, digest in kit if not file.endswith(".py")}
    return found


@pytest.mark.parametrize(("name", "target", "effort"), CASES)
def test_same_bytes(name: str, target: str, effort: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    key = f"{name} {target} {effort}"
    found = made(name, target, effort, tmp_path)
    if request.config.getoption("--record"):
        record.update(record.DIGESTS, key, found)
        return
    known = record.read(record.DIGESTS)
    if known.get("environment") != record.environment():
        pytest.skip("recorded with other packages or on another processor")
    assert found == known[key], json.dumps({k: v for k, v in found.items() if known[key].get(k) != v}, indent=1)
