"""The commands on images: ``evaluate`` those with labels, ``predict`` those without, and videos."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from narrowcast.base.errors import UserError
from narrowcast.base.progress import on_interrupt
from narrowcast.base.writing import check_file, new_file, write_file
from narrowcast.cli.options import (
    Annotations,
    Color,
    Engine,
    Force,
    Fresh,
    Head,
    Json,
    Labels,
    Mean,
    Quiet,
    Resize,
    Scale,
    SkipMissing,
    StrictImages,
    Workers,
    app,
    change_preprocessing,
    check_head,
    labelled_images,
)
from narrowcast.cli.quantize import wider
from narrowcast.cli.tables import print_json, print_table, say, suggest

if TYPE_CHECKING:
    import cv2
    import numpy as np
    from numpy.typing import NDArray

    from narrowcast.bundle import Predictor
    from narrowcast.evaluate import Metrics, Report
    from narrowcast.vision import Result


@app.command()
def evaluate(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder, or a float ONNX file.")],
    images: Annotated[Path, typer.Option(help="Folder of the labelled images.")],
    annotations: Annotations = None,
    labels: Labels = None,
    engine: Annotated[
        list[str] | None, typer.Option(help="Graph to score, several times: float, integer, qdq [float and integer].")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="ultralytics (score 0.001, NMS 0.7) or rdk (score 0.25, NMS 0.7).")
    ] = "ultralytics",
    conf: Annotated[float | None, typer.Option(help="Least score, instead of the protocol's.")] = None,
    iou: Annotated[float | None, typer.Option(help="Overlap above which two boxes are one object.")] = None,
    max_detections: Annotated[int | None, typer.Option(help="Detections an image at most [300].")] = None,
    limit: Annotated[int | None, typer.Option(help="Score this many images, drawn at random.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of the draw and of the intervals.", min=0)] = 0,
    camera: Annotated[
        str | None, typer.Option(help="What the board's camera format costs: rgb, nv12-full or nv12-studio.")
    ] = None,
    mean: Mean = None,
    scale: Scale = None,
    color: Color = None,
    resize: Resize = None,
    head: Head = "",
    skip_missing: SkipMissing = False,
    workers: Workers = None,
    fresh: Fresh = False,
    save_predictions: Annotated[
        Path | None, typer.Option(help="COCO result JSON to write; '-float' and so on is added for several graphs.")
    ] = None,
    strict_images: StrictImages = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure AP or top-1 on labelled images.

    Float and quantized side by side, with 95 % intervals.
    """
    from narrowcast.base.progress import phase, set_quiet

    set_quiet(quiet or json)
    with phase("start"):
        from narrowcast.bundle import open_bundle
        from narrowcast.evaluate import CocoData
        from narrowcast.evaluate.coco_data import choose
    changes = {"camera": camera, "mean": mean, "scale": scale, "color": color, "resize": resize}
    chosen = choose(protocol, conf, iou, max_detections)
    data = labelled_images(images, annotations, labels, limit=limit, seed=seed, skip_missing=skip_missing)
    if data is None:
        raise UserError(
            "one of --annotations and --labels is needed", "give COCO annotations, or labels of a classifier"
        )
    assumption = _assumption(path, changes, head)
    if assumption and not json:
        say(assumption)
    graphs = _changed(_graphs(path, engine or [], head), changes)
    common: dict[str, Any] = {"workers": workers, "seed": seed, "fresh": fresh, "save_predictions": save_predictions}
    common |= {"force": force, "strict": strict_images}
    with on_interrupt("interrupted: finished images are kept, the same command goes on from there"):
        if isinstance(data, CocoData):
            report = data.evaluate(graphs, protocol=chosen, **common)
        else:
            report = data.evaluate(graphs, **common)
    if json:
        print_json({**report.to_dict(), **({"warnings": [assumption]} if assumption else {})})
    else:
        print_report(report, str(path))
        if path.is_dir():
            given = ("--labels", labels) if labels is not None else ("--annotations", annotations)
            more = wider(open_bundle(path), images, given)
            suggest(("narrowcast", "analyze", path, "--images", images), *more)


def _graphs(path: Path, engines: list[str], head: str) -> dict[str, Callable[[], Predictor]]:
    from narrowcast.bundle import Predictor, open_bundle, open_model

    if path.suffix in (".onnx", ".pt"):
        return {"float": lambda: Predictor.of_model(open_model(path, head), threads=1)}
    check_head(path, head)
    bundle = open_bundle(path)
    return bundle.graphs(engines or None)


def _assumption(path: Path, changes: Mapping[str, str | None], head: str) -> str:
    """What is assumed of a float file's preprocessing; a bundle was told when it was made."""
    from narrowcast.bundle import open_model

    if path.suffix not in (".onnx", ".pt"):
        return ""
    model = open_model(path, head)
    given = [name for name, value in changes.items() if value is not None]
    return model.prepared_as(change_preprocessing(model.preprocess, changes), given).assumption


def _changed(
    graphs: Mapping[str, Callable[[], Predictor]], changes: Mapping[str, str | None]
) -> dict[str, Callable[[], Predictor]]:
    """The graphs with the preprocessing that the person asked for."""

    def change(make: Callable[[], Predictor]) -> Callable[[], Predictor]:
        def made() -> Predictor:
            predictor = make()
            return replace(predictor, preprocess=change_preprocessing(predictor.preprocess, changes))

        return made

    return {name: change(make) for name, make in graphs.items()}


#: Metrics from left to right.
_ORDER = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large", "AR", "top-1", "top-5", "agreement")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _retention(metrics: Metrics) -> str:
    if metrics.retention is None or metrics.retention_interval is None:
        return ""
    low, high = metrics.retention_interval
    return f"{metrics.retention:.1%} [{low:.1%}, {high:.1%}]"


def print_report(report: Report, title: str) -> None:
    """One table of all rows, then the notes."""
    known = {name for row in report.rows for metrics in row.metrics for name in metrics.values}
    names = [name for name in _ORDER if name in known]
    rows = []
    for family in dict.fromkeys(m.family for row in report.rows for m in row.metrics):
        for row in report.rows:
            for metrics in row.metrics:
                if metrics.family != family:
                    continue
                low, high = metrics.interval
                values = [_percent(metrics.values[name]) if name in metrics.values else "" for name in names]
                values[0] += f" [{100 * low:.1f}, {100 * high:.1f}]"
                speed = f"{row.images_per_second:.1f}" if row.images_per_second else "resumed"
                rows.append((family, row.name, *values, _retention(metrics), speed))
    columns = (names[0] + " [95 %]", *(name.removeprefix("AP ") for name in names[1:]), "kept [95 %]", "img/s")
    print_table(f"{title} on {report.images} labelled images, in percent", ("metric", "graph", *columns), rows, 2)
    for note in report.notes:
        say(f"- {note}")


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


def open_predictor(path: Path, engine: str | None, head: str) -> Predictor:
    """A bundle's graph, or a float model whose raw outputs are what ``head`` says.

    Raises:
        UserError: neither, or an unknown engine.
    """
    from narrowcast.bundle import Predictor, open_bundle, open_model

    if path.suffix in (".onnx", ".pt"):
        return Predictor.of_model(open_model(path, head))
    check_head(path, head)
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
    head: Head = "",
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
        run_video(open_predictor(bundle, engine, head), image, out, options, force=force, json=json)
        return
    files = image_files(image) if image.is_dir() else [image]
    if out is not None and out.resolve() != image.resolve():  # what an earlier run drew is no input
        files = [file for file in files if not file.resolve().is_relative_to(out.resolve())] or files
    pictures = _pictures(image, files, out, force)
    predictor = open_predictor(bundle, engine, head)
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
