"""The command ``predict``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from narrowcast.base.errors import UserError
from narrowcast.cli.tables import print_json, print_table, say, suggest
from narrowcast.cli.video import VIDEO_SUFFIXES, run_video

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from narrowcast.bundle import Predictor
    from narrowcast.vision import Classification, Detections

from narrowcast.base.writing import check_file, write_file

__all__ = ["open_predictor", "run"]


def open_predictor(path: Path, engine: str | None) -> Predictor:
    """A bundle's graph, or a float model.

    Raises:
        UserError: neither, or an unknown engine.
    """
    from narrowcast.bundle import Predictor, open_bundle
    from narrowcast.graph import load

    if path.suffix in (".onnx", ".pt"):
        return Predictor.of_model(load(path))
    bundle = open_bundle(path)
    return bundle.quantized if engine is None else bundle.engine(engine)


def run(
    bundle: Path,
    image: Path,
    out: Path | None,
    *,
    conf: float,
    iou: float,
    top_k: int,
    engine: str | None,
    force: bool,
    json: bool,
    quiet: bool,
    strict: bool = False,
) -> None:
    """Predict, print, draw."""
    from narrowcast.base.progress import phase, set_quiet, track, warn

    set_quiet(quiet or json)
    with phase("start"):
        from narrowcast.calibrate.images import image_files
        from narrowcast.vision.preprocess import read_image
    if not 0 < conf < 1 or not 0 < iou <= 1:
        raise UserError(f"--conf {conf} and --iou {iou} must be between 0 and 1", "0.25 and 0.7 are usual")
    if not image.exists():
        raise UserError(f"{image} does not exist", "give an image, a folder of images or a video")
    if image.suffix.lower() in VIDEO_SUFFIXES:
        options = {"confidence": conf, "iou": iou, "top_k": top_k}
        run_video(open_predictor(bundle, engine), image, out, options, force=force, json=json)
        return
    files = image_files(image) if image.is_dir() else [image]
    if out is not None and out.resolve() != image.resolve():  # what an earlier run drew is no input
        files = [file for file in files if not file.resolve().is_relative_to(out.resolve())] or files
    pictures = _pictures(image, files, out, force)
    predictor = open_predictor(bundle, engine)
    results: list[dict[str, Any]] = []
    unreadable: list[str] = []
    for file in track(files, "predict"):
        try:
            pixels = read_image(file)
        except ValueError as error:
            unreadable.append(str(error))
            if strict or len(unreadable) == len(files):
                raise UserError(unreadable[0], "remove or replace the image") from error
            pictures.pop(file, None)
            continue
        found = predictor.predict(pixels, confidence=conf, iou=iou, top_k=top_k)
        results.append({"image": str(file), "results": found.to_dict(predictor.classes)})
        if file in pictures:
            _draw(pixels, found, predictor, pictures[file], force)
    if unreadable:
        warn(f"{len(unreadable)} of {len(files)} files left out: {'; '.join(unreadable)}")
    if json:
        print_json(results if image.is_dir() else results[0])
        return
    _print(results, predictor)
    for picture in pictures.values():
        say(f"{picture} written")
    if not pictures:
        drawn = "drawn" if image.is_dir() else "drawn.jpg"
        suggest(("narrowcast", "predict", bundle, image, "--out", drawn), why="to see it")


def _pictures(image: Path, files: list[Path], out: Path | None, force: bool) -> dict[Path, Path]:
    """Which picture is written for which image; refuses to overwrite."""
    if out is None:
        return {}
    pictures = _named(image, files, out) if image.is_dir() or out.is_dir() else {image: out}
    inputs = {file.resolve() for file in files}
    for picture in pictures.values():
        if picture.resolve() in inputs:
            raise UserError(f"{picture} is an input image", "choose another --out")
        check_file(picture, force)
    if not image.is_dir() and out.suffix.lower() not in (".jpg", ".jpeg", ".png", ".webp") and not out.is_dir():
        raise UserError(f"{out} has no picture suffix", "end it in .jpg or .png")
    return pictures


def _named(image: Path, files: list[Path], out: Path) -> dict[Path, Path]:
    """A picture of its own for each image: ``a.jpg``, and for images of one stem ``a.png.jpg``; folders as they are."""
    root = image if image.is_dir() else image.parent
    inner = {file: file.relative_to(root) for file in files}
    stems = Counter(str(path.with_suffix("")).casefold() for path in inner.values())
    taken: set[str] = set()
    named = {}
    for file, path in inner.items():
        name = path.stem if stems[str(path.with_suffix("")).casefold()] == 1 else path.name
        count = 1
        while str(picture := path.with_name(f"{name}{f'-{count}' if count > 1 else ''}.jpg")).casefold() in taken:
            count += 1
        taken.add(str(picture).casefold())
        named[file] = out / picture
    return named


def _draw(
    pixels: NDArray[np.uint8], found: Detections | Classification, predictor: Predictor, picture: Path, force: bool
) -> None:
    import cv2

    from narrowcast.vision.draw import draw

    drawn = draw(pixels, found, predictor.classes, predictor.skeleton)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 92] if picture.suffix.lower() in (".jpg", ".jpeg") else []
    done, data = cv2.imencode(picture.suffix, drawn, quality)
    if not done:
        raise UserError(f"{picture} cannot be encoded", "end it in .jpg or .png")
    write_file(picture, data.tobytes(), force=force)


def _print(results: list[dict[str, Any]], predictor: Predictor) -> None:
    for result in results:
        entries = result["results"]
        if predictor.task == "classify":
            rows = [(str(e["class"]), f"{e['score']:.4f}") for e in entries]
            print_table(str(result["image"]), ("class", "probability"), rows)
        elif not entries:
            say(f"{result['image']}: nothing found")
        else:
            found = [(str(e["class"]), f"{e['score']:.3f}", *(f"{v:.1f}" for v in e["box"])) for e in entries]
            print_table(str(result["image"]), ("class", "score", "left", "top", "right", "bottom"), found)
