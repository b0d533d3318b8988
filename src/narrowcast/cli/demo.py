"""The command ``demo``: the main job on the embedded samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from narrowcast.base.errors import UserError
from narrowcast.base.writing import check_file, write_file
from narrowcast.cli.options import Force, Quiet, TargetName, app
from narrowcast.cli.quantize import report
from narrowcast.cli.tables import print_table, say, suggest

if TYPE_CHECKING:
    from narrowcast.bundle import Bundle, Predictor
    from narrowcast.zoo import Sample

#: What the manifests of the demo's bundles say.
_COMMAND = ("narrowcast", "demo")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for what the demo writes.")] = Path("narrowcast-demo"),
    target: TargetName = "esp32p4",
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Do the whole job on embedded models and images, offline."""
    from narrowcast.base.progress import phase, set_quiet

    set_quiet(quiet)
    with phase("start"):
        from narrowcast.bundle import quantize
        from narrowcast.bundle.manifest import check_out
        from narrowcast.calibrate import images
        from narrowcast.chips import check_rows, load_target
        from narrowcast.graph import load
        from narrowcast.zoo import sample, sample_names
    chip = load_target(target)
    names = sample_names()
    replaced = {name: force or _own(out / name) for name in names}
    for name, again in replaced.items():
        check_out(out / name, again)
        check_file(out / f"{name}.png", again)
    for name in names:
        found = sample(name)
        say(f"\n1. {name}: load {found.model.name} and place its nodes on {chip.title}")
        model = load(found.model)
        rows = check_rows(model.ir.graph, chip)
        say(f"   {len(rows)} nodes, {sum(row.on == chip.units[0] for row in rows)} on {chip.units[0]}")
        say(f"2. {name}: quantize on {found.calibration.name} images")
        calibration = images(found.calibration, model.preprocess)
        bundle = quantize(
            model, calibration, target, out=out / name, force=replaced[name], command=(*_COMMAND, "--target", target)
        )
        report(bundle, verbose=False)
        say(f"3. {name}: float and integers on labelled images that neither has seen")
        with phase("measure"):
            measured = _measured(bundle, found)
        print_table("", ("", "on validation images"), measured, 2)
        say(f"4. {name}: draw")
        with phase("draw"):
            _draw(bundle, found, out / f"{name}.png", replaced[name])
        say(f"   {out / f'{name}.png'} written: float on top, {chip.name} integers below")
    say("")
    suggest(
        ("narrowcast", "analyze", out / names[0]),
        ("narrowcast", "inspect", out / names[0]),
        ("narrowcast", "check", "YOUR.onnx", "--target", target),
    )


def _own(folder: Path) -> bool:
    """Whether an earlier demo wrote the bundle, so that nothing is lost when it is written again."""
    from narrowcast.bundle.manifest import read_manifest

    try:
        return read_manifest(folder).command[: len(_COMMAND)] == _COMMAND
    except UserError:
        return False


def _measured(bundle: Bundle, found: Sample) -> list[tuple[str, str]]:
    from narrowcast.zoo import pose_recall, top1

    rows = []
    for label, predictor in (("float", bundle.floating), (f"{bundle.manifest.target} int8", bundle.quantized)):
        if found.labels is not None:
            rows.append((label, f"top-1 {top1(predictor.predict, found):.3f}"))
        else:
            people, joints = pose_recall(predictor.predict, found)
            rows.append((label, f"people found {people:.3f}, of their joints within OKS 0.5: {joints:.3f}"))
    return rows


def _draw(bundle: Bundle, found: Sample, picture: Path, force: bool) -> None:
    import cv2
    import numpy as np

    from narrowcast.vision.draw import draw
    from narrowcast.vision.preprocess import read_image

    files = sorted(found.validation.iterdir())[:4]
    manifest = bundle.manifest

    def strip(predictor: Predictor) -> np.ndarray:
        tiles = []
        for file in files:
            drawn = draw(
                read_image(file), predictor.predict(file, confidence=0.4, top_k=3), manifest.classes, manifest.skeleton
            )
            scale = 320 / drawn.shape[0]
            tiles.append(cv2.resize(drawn, (round(drawn.shape[1] * scale), 320), interpolation=cv2.INTER_AREA))
        return np.hstack(tiles)

    both = np.vstack([strip(bundle.floating), strip(bundle.quantized)])
    done, data = cv2.imencode(".png", both)
    if not done:
        raise AssertionError("a PNG can always be encoded")
    write_file(picture, data.tobytes(), force=force)
