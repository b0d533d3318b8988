"""The command ``finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from narrowcast.cli.interrupt import on_interrupt
from narrowcast.cli.options import beside
from narrowcast.cli.quantize import after
from narrowcast.cli.tables import print_json, print_table, say, suggest

if TYPE_CHECKING:
    from narrowcast.bundle import Bundle

__all__ = ["print_finetuned", "run"]

#: Fields of a task error worth a row, with the digits that are shown.
_ROWS = {
    "loss": 4, "oks_loss": 4, "mask_iou_loss": 4, "iou_loss": 4, "keypoint_pixels": 2, "box_pixels": 2,
    "probability": 4, "candidate_probability": 4, "top1_disagreement": 4, "divergence": 4, "noise_ratio": 5,
}  # fmt: skip


def run(
    path: Path,
    images: Path,
    *,
    steps: int | None = None,
    batch: int | None = None,
    scope: str | None = None,
    rate: float | None = None,
    scale_rate: float | None = None,
    limit: int | None = None,
    seed: int = 0,
    device: str = "auto",
    out: Path | None = None,
    force: bool = False,
    threads: int = 0,
    json: bool = False,
    quiet: bool = False,
    strict: bool = False,
) -> None:
    """Distil the float model into the quantized one, write the new bundle, print what it bought.

    Args:
        path: bundle to start from.
        images: folder of images, none of which needs a label.
        steps, batch, scope, rate, scale_rate, seed, device: see :class:`narrowcast.improve.finetune.Settings`; ``None``
            for its default.
        limit: images at most.
        out: folder to write; ``<bundle>-finetuned`` by default.
        force: replace an existing bundle.
        threads: of torch and onnxruntime; 0 for all cores.
        json: print JSON.
        quiet: no progress bars.
        strict: an unreadable image is an error.
    """
    from narrowcast.base.progress import phase, set_quiet

    set_quiet(quiet or json)
    with phase("start"):
        from narrowcast.bundle import open_bundle
        from narrowcast.bundle.folder import check_out
        from narrowcast.calibrate import images as find_images
        from narrowcast.deploy.finetune import finetune
        from narrowcast.improve.finetune import Settings, require_torch
    require_torch()
    bundle = open_bundle(path)
    given: dict[str, Any] = {"steps": steps, "batch": batch, "scope": scope, "rate": rate, "scale_rate": scale_rate}
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = Settings(**chosen, seed=seed, device=device)
    folder = out or beside(path, "-finetuned")
    check_out(folder, force)
    found = find_images(images, bundle.manifest.preprocess, limit=limit, strict=strict)
    command = ["narrowcast", "finetune", *(f"--{name.replace('_', '-')}={value}" for name, value in chosen.items())]
    options: dict[str, Any] = {"force": force, "threads": threads, "command": command}
    with on_interrupt("interrupted: nothing was written"):
        result = finetune(bundle, found, out=folder, settings=settings, **options)
    if json:
        print_json({"bundle": str(folder), **result.manifest.calibration["finetune"]})
    else:
        print_finetuned(result)
        say(f"{folder} written")
        suggest(*after(result))


def print_finetuned(bundle: Bundle) -> None:
    """Error before and after on the judging images, then the result in one line."""
    record = bundle.manifest.calibration["finetune"]
    before, after = record["before"], record["after"]
    rows = [
        [name.replace("_", " "), f"{before[name]:.{digits}f}", f"{after[name]:.{digits}f}"]
        for name, digits in _ROWS.items()
        if before.get(name) is not None and after.get(name) is not None
    ]
    for note in record["image_notes"]:
        say(f"- {note}")
    count = len(record["images"]["judge"])
    print_table(f"error on {count} images that taught nothing, {record['judged_by']}", ["", "before", "after"], rows)
    if not record["kept_step"]:
        say("nothing was better than the start: the weights are unchanged; try more images or another --rate")
        return
    change = after["loss"] / before["loss"] - 1 if before["loss"] else 0.0
    say(f"loss {before['loss']:.4f} -> {after['loss']:.4f} ({change:+.0%}) after {record['kept_step']} steps")
