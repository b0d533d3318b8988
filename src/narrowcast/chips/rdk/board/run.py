"""Run the compiled model on the board.

    python3 run.py street.jpg --out result.jpg
    python3 run.py 0 --frames 100            # USB camera 0
    python3 run.py --check                   # sample image against expected.json
    python3 run.py street.jpg --arrays a.npz # every output as numpy arrays

Needs numpy, OpenCV and the board's own package hobot_dnn; the folder narrowcast beside this file does the rest.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from narrowcast.tasks import meaning_of
from narrowcast.vision import Geometry, OutputEncoding, Preprocess, Result, preprocess, read_image
from narrowcast.vision.draw import draw
from narrowcast.vision.preprocess import bgr_to_nv12

HERE = Path(__file__).resolve().parent
Outputs = dict[str, NDArray[Any]]

#: What puts the parts of an output together, by operator: from its attributes and operands.
JOINING: dict[str, Callable[[dict[str, Any], list[NDArray[Any]]], NDArray[Any]]] = {
    "Add": lambda step, given: given[0] + given[1],
    "Concat": lambda step, given: np.concatenate(given, axis=step["axis"]),
    "Div": lambda step, given: given[0] / given[1],
    "Flatten": lambda step, given: given[0].reshape(int(np.prod(given[0].shape[: step.get("axis", 1)])), -1),
    "Identity": lambda step, given: given[0],
    "Mul": lambda step, given: given[0] * given[1],
    "Reshape": lambda step, given: given[0].reshape(_sizes(step, given)),
    "Squeeze": lambda step, given: np.squeeze(given[0], _axes(step, given)),
    "Sub": lambda step, given: given[0] - given[1],
    "Transpose": lambda step, given: given[0].transpose(step.get("perm")),
    "Unsqueeze": lambda step, given: np.expand_dims(given[0], _axes(step, given) or ()),
}


class BoardModel:
    """A compiled model with what surrounds it.

    Args:
        path: the .bin file.
        description: the content of model.json.
    """

    def __init__(self, path: Path, description: dict[str, Any]) -> None:
        if not path.exists():
            raise SystemExit(f"{path} is missing: run build.sh in the vendor's image, it puts the file there")
        try:
            runtime = importlib.import_module("hobot_dnn.pyeasy_dnn")
        except ImportError as error:
            raise SystemExit(f"{error}: run this on the board, whose system has hobot_dnn") from error
        self.model = runtime.load(str(path))[0]
        self.description = description
        self.spec = Preprocess.from_dict(description["preprocess"])
        self.meaning = meaning_of(description["task"], description["head"], description["softmax_missing"])
        self.constants = read_constants(HERE, description)

    def feed(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Geometry]:
        """What the board's input takes for an image, uint8 (H, W, 3) BGR, and where the image lies in it."""
        spec = self.spec
        nv12 = spec.camera != "rgb"
        pixels = replace(spec, mean=(0.0,), scale=(1.0,), camera="rgb")
        if nv12:
            pixels = replace(pixels, color="bgr", layout="NHWC")
        tensor, geometry = preprocess(image, pixels)
        data = np.rint(tensor).astype(np.uint8)
        return (bgr_to_nv12(data[0], spec.camera[len("nv12-") :]) if nv12 else data), geometry

    def infer(self, data: NDArray[np.uint8]) -> tuple[Outputs, dict[str, OutputEncoding]]:
        """Outputs by name, in their types, and the board's scales of those that are integers."""
        described = self.description["outputs"]
        tensors = list(self.model.forward(data))
        by_name = {tensor.name: tensor for tensor in tensors}
        if all(entry["name"] in by_name for entry in described):
            tensors = [by_name[entry["name"]] for entry in described]
        if len(tensors) != len(described):
            raise SystemExit(f"the model has {len(tensors)} outputs, model.json describes {len(described)}")
        outputs: Outputs = {}
        encodings = {}
        for entry, tensor in zip(described, tensors):  # noqa: B905 (equal lengths, checked above)
            name, shape = entry["name"], tuple(entry["shape"])
            values = np.asarray(tensor.buffer)
            if values.size != int(np.prod(shape)):
                raise SystemExit(f"{name} has the shape {values.shape}, model.json says {shape}")
            outputs[name] = values.reshape(shape)
            if not (entry["whole"] or np.issubdtype(values.dtype, np.floating)):
                encodings[name] = _encoding(name, outputs[name], tensor.properties)
        return outputs, encodings

    def arrays(self, outputs: Outputs, encodings: dict[str, OutputEncoding]) -> Outputs:
        """The outputs of the user's model, in its axes: real numbers, or whole ones as they are; parts are joined."""
        found: Outputs = {}
        for entry in self.description["outputs"]:
            name, values = entry["name"], outputs[entry["name"]]
            real = encodings[name].real(values).astype(np.float32) if name in encodings else values
            found[name] = real.transpose(0, 3, 1, 2) if entry["moved"] else real
        join = self.description.get("join")
        return joined(join, found, self.constants) if join else found

    def result(
        self,
        outputs: Outputs,
        encodings: dict[str, OutputEncoding],
        geometry: Geometry,
        confidence: float,
        iou: float,
        top_k: int,
    ) -> Result | None:
        """Detections in pixels of the image, or classes; ``None`` where nothing is known of the outputs."""
        if not self.meaning.known:
            return None
        options = {"confidence": confidence, "iou": iou, "top_k": top_k}
        return self.meaning.decode(outputs, geometry, encodings=encodings, layout="NHWC", **options)


def read_constants(folder: Path, description: dict[str, Any]) -> Outputs:
    """Constants of the join by name, from the file that ``description`` names; nothing where outputs are whole."""
    join = description.get("join")
    if not join:
        return {}
    with np.load(folder / join["constants_file"]) as file:
        return {name: file[f"arr_{index}"] for index, name in enumerate(join["constants"])}


def joined(join: dict[str, Any], outputs: Outputs, constants: Mapping[str, NDArray[Any]]) -> Outputs:
    """The outputs of the user's model from those of one that was cut.

    Args:
        join: ``steps`` in order, and the ``outputs`` that are wanted.
        outputs: of the model that was cut, in its axes; parts are real numbers.
        constants: what the steps read besides.
    """
    values: Outputs = {**constants, **outputs}
    for step in join["steps"]:
        values[step["output"]] = JOINING[step["op"]](step, [values[name] for name in step["inputs"]])
    return {name: values[name] for name in join["outputs"]}


def _sizes(step: dict[str, Any], given: list[NDArray[Any]]) -> list[int]:
    """The shape that a Reshape asks for; unless told otherwise, 0 keeps a size."""
    sizes = [int(size) for size in given[1]]
    return [given[0].shape[i] if size == 0 and not step.get("allowzero") else size for i, size in enumerate(sizes)]


def _axes(step: dict[str, Any], given: list[NDArray[Any]]) -> tuple[int, ...] | None:
    """Axes of a Squeeze or Unsqueeze: an attribute before opset 13, else the second operand."""
    axes = given[1] if len(given) > 1 else step.get("axes")
    return None if axes is None else tuple(int(axis) for axis in axes)


def _encoding(name: str, values: NDArray[Any], properties: Any) -> OutputEncoding:
    """How integers (1, ..., C) are read: one scale, or one a channel."""
    scale = np.asarray(properties.scale_data, np.float32).reshape(-1)
    if not scale.size:
        raise SystemExit(f"{name} leaves as {values.dtype}, but the board states no scale for it")
    if scale.size == 1:
        return OutputEncoding(str(values.dtype), float(scale[0]))
    if values.shape[-1] != scale.size:
        raise SystemExit(f"{name} has the shape {values.shape}, but the board states {scale.size} scales for it")
    return OutputEncoding(str(values.dtype), scale.astype(np.float64), 0, values.ndim - 1)


def _frames(source: str, limit: int) -> Iterator[NDArray[np.uint8]]:
    """One picture, or frames of a camera."""
    if not source.isdigit():
        yield read_image(source)
        return
    camera = cv2.VideoCapture(int(source))
    for _ in range(limit):
        found, frame = camera.read()
        if not found:
            raise SystemExit(f"camera {source} gives no image")
        yield np.asarray(frame, np.uint8)


def _said(result: Result | None, outputs: Outputs, classes: Sequence[str]) -> list[dict[str, Any]]:
    if result is not None:
        return result.to_dict(classes)
    return [
        {"output": name, "shape": list(values.shape), "min": float(values.min()), "max": float(values.max())}
        for name, values in outputs.items()
    ]


def _save(path: Path, arrays: Outputs) -> None:
    """As ``numpy.savez``, which takes no array named ``file``."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.asarray(values))


def _check(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> str:
    """Compare with what the package's simulation found."""
    lines = [f"{len(found)} results, {len(expected)} expected"]
    for entry in expected:
        same = [other for other in found if other.get("class_id") == entry.get("class_id")]
        if "box" in entry and same:
            shifts = [max(abs(a - b) for a, b in zip(other["box"], entry["box"])) for other in same]  # noqa: B905
            best = int(np.argmin(shifts))
            moved = f", box moved by up to {shifts[best]:.1f} pixels"
        elif "score" in entry and same:
            best, moved = 0, ""
        else:
            lines.append(f"missing: {entry}")
            continue
        lines.append(f"{entry['class']}: score {same[best]['score']:.3f}, expected {entry['score']:.3f}{moved}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, run, print one JSON line an image."""
    parser = argparse.ArgumentParser(description="Run the compiled model on the board.")
    parser.add_argument("source", nargs="?", help="image file, or number of a USB camera")
    parser.add_argument("--model", type=Path, default=HERE / "model.bin")
    parser.add_argument("--out", type=Path, help="picture to write")
    parser.add_argument("--arrays", type=Path, help="file for the outputs of the model as numbers (.npz)")
    parser.add_argument("--conf", type=float, default=0.25)
    parser.add_argument("--iou", type=float, default=0.7)
    parser.add_argument("--top-k", type=int, default=5)
    parser.add_argument("--frames", type=int, default=1, help="camera images to take")
    parser.add_argument("--check", action="store_true", help="compare the sample image with expected.json")
    options = parser.parse_args(arguments)
    description = json.loads((HERE / "model.json").read_text(encoding="utf-8"))
    source = str(HERE / description["sample"]) if options.check else options.source
    if source is None:
        parser.error("give an image, or --check")
    model = BoardModel(options.model, description)
    for image in _frames(source, options.frames):
        times = [time.perf_counter()]
        data, geometry = model.feed(image)
        times.append(time.perf_counter())
        outputs, encodings = model.infer(data)
        times.append(time.perf_counter())
        result = model.result(outputs, encodings, geometry, options.conf, options.iou, options.top_k)
        times.append(time.perf_counter())
        arrays = model.arrays(outputs, encodings) if result is None or options.arrays is not None else {}
        found = _said(result, arrays, description["classes"])
        if options.arrays is not None:
            _save(options.arrays, arrays)
        if options.check:
            expected = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
            sys.stdout.write(_check(found, expected) + "\n")
        else:
            names = ("preprocess", "inference", "postprocess")
            spent = {n: round(1000 * (b - a), 2) for n, a, b in zip(names, times, times[1:])}  # noqa: B905
            sys.stdout.write(json.dumps({"results": found, "ms": spent}) + "\n")
        if options.out is not None and result is not None:
            drawn = draw(image, result, description["classes"], description["skeleton"])
            cv2.imwrite(str(options.out), drawn)


if __name__ == "__main__":
    main()
