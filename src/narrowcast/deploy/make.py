"""Quantize with the files of the target's kit in the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from narrowcast import bundle as bundles
from narrowcast.base.errors import UserError
from narrowcast.bundle import Bundle
from narrowcast.calibrate import Images
from narrowcast.chips import load_target
from narrowcast.chips.esp.kit import Origin, bundled_espdl
from narrowcast.deploy.check import findings
from narrowcast.graph import Model, load

__all__ = ["quantize"]


def quantize(
    model: Model | str | Path,
    images: Images,
    target: str = "onnx",
    *,
    out: str | Path | None = None,
    runtime: str | None = None,
    **options: Any,
) -> Bundle:
    """Quantize a model and write the bundle, with the chip's own model file where we write that.

    Args:
        model: from :func:`narrowcast.load`, or the path of one.
        images: calibration images: what :func:`narrowcast.images` gives or takes, such as a folder.
        target: name of a target, or the path of a target file.
        out: folder to write; by default named after the model and the target, in the current folder.
        runtime: version of the chip's runtime; the newest known by default.
        options: as :func:`narrowcast.bundle.quantize` takes them: method, percentile, pins, force, threads, command,
            effort, output_factors.

    Returns:
        The bundle on disk.

    Raises:
        UserError: see :func:`narrowcast.bundle.quantize`; or the runtime would not run the model, which is said
            before anything slow starts.
    """
    chip = load_target(target)
    model = model if isinstance(model, Model) else load(model)
    for row in findings(model, chip, runtime, options.get("pins")):
        if row.severity == "error":
            where = f"{row.node} ({row.op_type})" if row.node != "--" else model.source
            raise UserError(f"{chip.runtime.name} cannot run {where}: {row.problem}", row.remedy)
    origin = Origin(
        {"source": model.source, "sha256": model.sha256}, model.meaning, bool(options.get("output_factors"))
    )
    extra = bundled_espdl(chip, origin, runtime)
    return bundles.quantize(model, images, target, out=out, runtime=runtime, extra=extra, **options)
