"""A bundle to an ``.espdl`` file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from narrowcast.bundle import Bundle
from narrowcast.deploy.espdl.writer import make_test_vectors, write_espdl
from narrowcast.errors import UserError
from narrowcast.writing import write_file

__all__ = ["deploy_espdl"]


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
    if Path(out).exists() and not force:
        raise UserError(f"{out} exists", "choose another --out, or add --force")
    target = bundle.target
    if "espdl" not in target.kits:
        raise UserError(f"{bundle.path} was quantized for {target.name}", "quantize for a target with the kit espdl")
    model, plan = bundle.prepared.ir, bundle.plan
    vectors = make_test_vectors(model, plan, target, images) if images else []
    metadata = {"model": bundle.manifest.model["source"], "model_sha256": bundle.manifest.model["sha256"]}
    data = write_espdl(model, plan, target, runtime=runtime, test_vectors=vectors, metadata=metadata)
    return write_file(Path(out), data, force=force)
