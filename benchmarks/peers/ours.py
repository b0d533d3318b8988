"""narrowcast itself, in a process of its own like the others.

Settings: ``model``, ``images`` (folder of calibration images), ``limit`` of them, ``target``, ``effort``; or ``start``
(a bundle) with ``images`` and ``budget`` to tune that one on what calibration has not seen there.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from child import finish, measured, read_job

from narrowcast import __version__
from narrowcast.base.progress import set_quiet
from narrowcast.bundle import open_bundle, quantize
from narrowcast.calibrate import images
from narrowcast.evaluate.tune import Wish, tune
from narrowcast.graph import load


def main() -> None:
    job = read_job()
    set_quiet(True)
    settings, bundle = job["settings"], Path(job["out"]) / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    cost: dict[str, float] = {}
    note = ""
    with measured(cost):
        if "start" in settings:
            start = open_bundle(settings["start"])
            found = images(settings["images"], start.manifest.preprocess)
            made = tune(start, found, out=bundle, wish=Wish(budget=settings["budget"]))
            convolutions = made.manifest.calibration["tune"]["cost"]["convolutions"]
            note = f"{convolutions['wide']:.0f} of {convolutions['total']:.0f} convolutions at 16 bits"
        else:
            model = load(settings["model"])
            found = images(settings["images"], model.preprocess, limit=settings["limit"])
            made = quantize(model, found, settings["target"], out=bundle, effort=settings["effort"])
            note = f"ranges by {made.manifest.calibration['method']}"
    finish(job, cost, versions={"narrowcast": __version__}, note=note)


if __name__ == "__main__":
    main()
