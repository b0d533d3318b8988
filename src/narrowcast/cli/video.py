"""``predict`` on a video."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from narrowcast.base.errors import UserError
from narrowcast.base.writing import check_file, new_file
from narrowcast.cli.tables import print_json, say

if TYPE_CHECKING:
    import cv2
    import numpy as np
    from numpy.typing import NDArray

    from narrowcast.bundle import Predictor

__all__ = ["VIDEO_SUFFIXES", "run_video"]

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
