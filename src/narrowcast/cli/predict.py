"""The command ``predict``.

``predict`` on a video.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from narrowcast.base.errors import UserError
from narrowcast.base.writing import check_file, new_file, write_file
from narrowcast.cli.options import Engine, Force, Json, Quiet, StrictImages, app
from narrowcast.cli.tables import print_json, print_table, say, suggest

if TYPE_CHECKING:
    import cv2
    import numpy as np
    from numpy.typing import NDArray

    from narrowcast.bundle import Predictor
    from narrowcast.vision import Result


VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


def run_video(
    predictor: Predictor, video: Path, out: Path | None, options: Mapping[str, Any], *, force: bool, json: bool
) -> None:
    """Predict frame by frame, write a drawn video, print a summary (or JSON with every frame)."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # its complaints would stand beside ours
    import cv2

    from narrowcast.base.progress import track
    from narrowcast.vision.draw import draw

    file = _out_file(video, out, force)
    capture = cv2.VideoCapture(str(video))
    if not capture.isOpened():
        raise UserError(f"{video} cannot be read as a video", "give an .mp4 or .avi that OpenCV can decode")
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) or None
    rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
    frames: list[dict[str, Any]] = []
    count, found = 0, 0
    start = time.perf_counter()
    writer: cv2.VideoWriter | None = None
    with contextlib.ExitStack() as stack:
        stack.callback(capture.release)
        for number, frame in enumerate(track(_frames(capture), "predict", total=total)):
            result = predictor.predict(frame, **options)
            found += len(result)
            if json:
                entries = result.to_dict(predictor.classes)
                frames.append({"frame": number, "seconds": round(number / rate, 3), "results": entries})
            if file is not None:
                writer = writer or _writer(stack, file, rate, frame, force)
                writer.write(draw(frame, result, predictor.classes, predictor.skeleton))
            count += 1
        if not count:
            raise UserError(f"{video} has no frames", "give another video")
    seconds = time.perf_counter() - start
    if json:
        print_json({"video": str(video), "frames": frames})
        return
    say(f"{video}: {count} frames, {found} results, {count / seconds:.1f} frames/s")
    if file is not None:
        say(f"{file} written")


def _frames(capture: cv2.VideoCapture) -> Iterator[NDArray[np.uint8]]:
    while True:
        good, frame = capture.read()
        if not good:
            return
        yield frame


def _out_file(video: Path, out: Path | None, force: bool) -> Path | None:
    if out is None:
        return None
    file = out / f"{video.stem}.mp4" if out.is_dir() or not out.suffix else out
    if file.suffix.lower() != ".mp4":
        raise UserError(f"{file} is no video name", "end it in .mp4")
    if file.resolve() == video.resolve():
        raise UserError(f"{file} is the input video", "choose another --out")
    check_file(file, force)
    return file


def _writer(
    stack: contextlib.ExitStack, file: Path, rate: float, frame: NDArray[np.uint8], force: bool
) -> cv2.VideoWriter:
    """Writes an .mp4 that appears under its name when the stack closes without an exception."""
    import cv2

    partial = stack.enter_context(new_file(file, force=force, suffix=".mp4"))
    size = frame.shape[1], frame.shape[0]
    writer = cv2.VideoWriter(str(partial), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
    stack.callback(writer.release)
    if not writer.isOpened():
        raise UserError(f"{file} cannot be written", "choose another --out")
    return writer


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


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, or a float ONNX file.")],
    image: Annotated[Path, typer.Argument(help="Image, folder of images, or video.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Picture, folder of pictures or .mp4 to write.")
    ] = None,
    conf: Annotated[float, typer.Option(help="Least score, 0..1.")] = 0.25,
    iou: Annotated[float, typer.Option(help="Overlap above which two boxes are one object.")] = 0.7,
    top_k: Annotated[int, typer.Option(help="Classes to show, for classifiers.", min=1)] = 5,
    engine: Engine = None,
    strict_images: StrictImages = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Detect or classify in images or a video.

    Prints what is found, draws boxes, masks and skeletons with --out.
    """
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
            if strict_images or len(unreadable) == len(files):
                raise UserError(unreadable[0], "remove or replace the image") from error
            pictures.pop(file, None)
            continue
        found = predictor.predict(pixels, confidence=conf, iou=iou, top_k=top_k)
        results.append({"image": str(file), "results": found.to_dict(predictor.classes)})
        if file in pictures:
            _draw_picture(pixels, found, predictor, pictures[file], force)
    if unreadable:
        warn(f"{len(unreadable)} of {len(files)} files left out: {'; '.join(unreadable)}")
    if json:
        print_json(results if image.is_dir() else results[0])
        return
    _print_results(results, predictor)
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


def _draw_picture(
    pixels: NDArray[np.uint8], found: Result, predictor: Predictor, picture: Path, force: bool
) -> None:
    import cv2

    from narrowcast.vision.draw import draw

    drawn = draw(pixels, found, predictor.classes, predictor.skeleton)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 92] if picture.suffix.lower() in (".jpg", ".jpeg") else []
    done, data = cv2.imencode(picture.suffix, drawn, quality)
    if not done:
        raise UserError(f"{picture} cannot be encoded", "end it in .jpg or .png")
    write_file(picture, data.tobytes(), force=force)


def _print_results(results: list[dict[str, Any]], predictor: Predictor) -> None:
    meaning = predictor.meaning
    for result in results:
        entries = result["results"]
        if entries:
            print_table(str(result["image"]), meaning.columns, [meaning.row(entry) for entry in entries])
        else:
            say(f"{result['image']}: nothing found")
