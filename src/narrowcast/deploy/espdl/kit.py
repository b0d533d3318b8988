"""The ``.espdl`` file of a bundle: inside it, and on its own with test vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from narrowcast.bundle import Bundle
from narrowcast.bundle.contents import Extra
from narrowcast.deploy.espdl.writer import make_test_vectors, write_espdl
from narrowcast.errors import UserError
from narrowcast.graph import Model
from narrowcast.plan import Plan
from narrowcast.targets import Target
from narrowcast.writing import check_file, write_file

__all__ = ["ESPDL_FILE", "bundled_espdl", "deploy_espdl"]

#: Its name inside a bundle.
ESPDL_FILE = "model.espdl"


def _origin(source: Mapping[str, str]) -> dict[str, str]:
    """What the file says of the float model, from a manifest's ``model``."""
    return {"model": source["source"], "model_sha256": source["sha256"]}


def bundled_espdl(target: Target, source: Mapping[str, str], runtime: str | None) -> Extra | None:
    """What makes the file for a bundle, ``None`` for a chip that takes no such file.

    Args:
        target: the chip.
        source: the float model, as in a manifest's ``model``.
        runtime: version of ESP-DL that will read the file; the newest known by default.
    """
    if "espdl" not in target.kits:
        return None

    def make(model: Model, plan: Plan, chip: Target) -> Mapping[str, bytes]:
        return {ESPDL_FILE: write_espdl(model.ir, plan, chip, runtime=runtime, metadata=_origin(source))}

    return make


def deploy_espdl(
    bundle: Bundle,
    out: str | Path,
    *,
    images: Sequence[NDArray[np.float32]] = (),
    runtime: str | None = None,
    force: bool = False,
) -> Path:
    """Write the model file for ESP-DL, whole or not at all.

    Args:
        bundle: quantized for a chip with the kit ``espdl``.
        out: file to write.
        images: model inputs; the file carries the integers of each and of its outputs, for the board to check.
        runtime: version of ESP-DL that will read the file; the newest known by default.
        force: replace an existing file.

    Raises:
        UserError: another chip, an operator that ESP-DL does not have, a file that exists or cannot be written.
    """
    check_file(Path(out), force)
    target = bundle.target
    if "espdl" not in target.kits:
        raise UserError(f"{bundle.path} was quantized for {target.name}", "quantize for a target with the kit espdl")
    model, plan = bundle.prepared.ir, bundle.plan
    vectors = make_test_vectors(model, plan, target, images) if images else []
    metadata = _origin(bundle.manifest.model)
    data = write_espdl(model, plan, target, runtime=runtime, test_vectors=vectors, metadata=metadata)
    return write_file(Path(out), data, force=force)
