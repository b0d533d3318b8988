"""The package for the vendor's image and the board."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from narrowcast import vision
from narrowcast.base.errors import UserError
from narrowcast.base.writing import check_folder, new_folder
from narrowcast.bundle import Bundle
from narrowcast.calibrate import ImageSet
from narrowcast.calibrate.vendor_files import write_vendor_files
from narrowcast.config import QuantizeSettings
from narrowcast.deploy.delivery import Delivery
from narrowcast.deploy.rdk import board
from narrowcast.deploy.rdk.board.run import JOINING, joined
from narrowcast.deploy.rdk.heads import Exported, ExportedOutput, export, verify
from narrowcast.deploy.rdk.settings import check_camera, hb_settings, hb_yaml, prefix
from narrowcast.deploy.rdk.texts import CONFIG_FILE, MODEL_FILE, Facts, build_script, readme
from narrowcast.graph.join import Join
from narrowcast.vision.preprocess import Preprocess

__all__ = ["deploy_rdk", "removable"]

DATA_FOLDER, SAMPLE_FILE, CONSTANTS_FILE = "calibration_data", "sample.png", "join.npz"
#: Images with which the converted model is compared with the bundle's.
VERIFIED_IMAGES = 2


def removable(bundle: Bundle, exported: Exported) -> tuple[ExportedOutput, ...]:
    """Outputs whose dequantize node the modifier removes.

    Those that ``narrowcast modify`` removed; for a bundle that nobody modified, every map that the chip can give as
    integers: dequantizing them on the board's CPU is a third of the published latency, and decoding needs few values.
    """
    chosen = set(bundle.manifest.integer_outputs)
    if chosen:
        return tuple(output for output in exported.outputs if output.name in chosen and output.dequantize)
    integers = {entry.name for entry in bundle.manifest.outputs if entry.scale is not None}
    maps = (output for output in exported.outputs if output.layout and output.dequantize)
    return tuple(output for output in maps if output.name in integers)


def deploy_rdk(bundle: Bundle, out: Path, images: ImageSet, *, force: bool = False) -> Delivery:
    """Write everything that the vendor's compiler and the board need, whole or not at all.

    Args:
        bundle: quantized for one of the tool's chips.
        out: folder to write.
        images: calibration images, with the bundle's preprocessing.
        force: replace an earlier package.

    Raises:
        UserError: an input, operator or number of outputs that the vendor's tool does not take; a folder that exists.
    """
    place = check_folder(out, CONFIG_FILE, force)
    check_camera(bundle.manifest.preprocess)
    exported = export(bundle)
    join, constants = _board_join(bundle.join) if bundle.join is not None else ({}, {})
    few = [tensor for tensor, _ in zip(images, range(VERIFIED_IMAGES), strict=False)]
    difference = verify(bundle, exported, few)
    dtype, data = ("uint8", DATA_FOLDER) if _pictures(images) else ("float32", f"{DATA_FOLDER}_f32")
    settings, notes = hb_settings(bundle, MODEL_FILE, data, dtype)
    nodes = tuple(f"{node}: {what}" for what, entries in _asked(settings).items() for node in entries)
    removed = removable(bundle, exported)
    facts = Facts(prefix(bundle), exported.outputs, removed, data, len(images), dtype, difference, nodes)
    with new_folder(place) as folder:
        (folder / MODEL_FILE).write_bytes(exported.proto.SerializeToString(deterministic=True))
        (folder / CONFIG_FILE).write_text(hb_yaml(settings, notes), encoding="utf-8")
        write_vendor_files(images, folder / data, dtype)
        script = folder / "build.sh"
        script.write_text(build_script(bundle.manifest, facts), encoding="utf-8")
        script.chmod(0o755)
        (folder / "README.md").write_text(readme(bundle.manifest, facts), encoding="utf-8")
        _write_board(folder / "board", bundle, exported, images, join)
        if join:
            with (folder / "board" / CONSTANTS_FILE).open("wb") as file:
                np.savez(file, *constants.values())
        files = tuple(sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()))
    steps = (
        f"{out}/build.sh  (inside the vendor's OpenExplorer image)",
        "python3 run.py --check  (on the board, in a copy of the folder board)",
    )
    return Delivery(out, files, steps, (*notes, *_advice(bundle)), _summary(facts))


def _summary(facts: Facts) -> dict[str, Any]:
    return {
        "largest difference to the bundle's float graph": facts.difference,
        "calibration images": facts.count,
        "nodes with a request": list(facts.nodes) or "none",
        "outputs that leave as integers": [output.name for output in facts.removed] or "none",
    }


def _advice(bundle: Bundle) -> tuple[str, ...]:
    if bundle.manifest.preprocess.camera != "rgb":
        return ()
    return ("the board is fed RGB bytes; for its camera's NV12 quantize with --camera nv12-full or nv12-studio",)


def _asked(settings: QuantizeSettings) -> dict[str, Sequence[str]]:
    return {
        "output int16": settings.int16,
        "on the BPU": settings.int8,
        "on the CPU": settings.float_,
        "input int16": settings.int16_inputs,
    }


def _pictures(images: ImageSet) -> bool:
    """Whether every image is a picture, so that its pixels are whole numbers."""
    return all(
        source.dtype == np.uint8 if isinstance(source, np.ndarray) else source.suffix != ".npy"
        for source in images.sources
    )


def _board_join(join: Join) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """How the board puts the parts of outputs together, for model.json, and the constants of it by name.

    Raises:
        UserError: the board's program has no such operator, or gives other numbers.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in join.proto.graph.initializer}
    told = join.describe(CONSTANTS_FILE)
    described = {"outputs": told["outputs"], "parts": told["parts"], "steps": told["steps"],
                 "constants_file": CONSTANTS_FILE, "constants": list(constants)}  # fmt: skip
    unknown = {step["op"] for step in told["steps"]} - JOINING.keys()
    remedy = "quantize with --int16 for the nodes before these outputs, then nothing is cut apart"
    if unknown:
        raise UserError(f"board/run.py cannot join {', '.join(told['parts'])}: no {', '.join(sorted(unknown))}", remedy)
    random = np.random.default_rng(0)
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in join.proto.graph.input}
    parts = {name: random.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    others = {name: np.zeros(1, np.float32) for name in told["outputs"] if name not in told["joined"]}
    wanted, given = join.run({**others, **parts}), joined(described, {**others, **parts}, constants)
    wrong = [name for name in told["joined"] if not np.array_equal(wanted[name], given[name])]
    if wrong:
        raise UserError(f"board/run.py joins {', '.join(wrong)} to other numbers than the bundle", remedy)
    return described, constants


def _write_board(folder: Path, bundle: Bundle, exported: Exported, images: ImageSet, join: dict[str, Any]) -> None:
    """run.py, the vision room, model.json, a sample image and what to find in it."""
    manifest = bundle.manifest
    package = folder / "narrowcast"
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(Path(str(vision.__file__)).parent, package / "vision", ignore=ignored)
    (package / "__init__.py").write_text('"""The part of narrowcast that runs on the board."""\n')
    shutil.copyfile(Path(str(board.__file__)).parent / "run.py", folder / "run.py")
    image = _sample(images)
    whole = {out.name for out in manifest.outputs if out.scale is None and out.chip_dtype != "float32"}
    description = {
        "task": manifest.task,
        "preprocess": manifest.preprocess.to_dict(),
        "head": manifest.head.to_dict() if manifest.head is not None else None,
        "softmax_missing": manifest.softmax_missing,
        "classes": manifest.classes,
        "skeleton": manifest.skeleton,
        "outputs": [
            {"name": o.name, "shape": o.shape, "layout": o.layout, "moved": o.moved, "whole": o.name in whole}
            for o in exported.outputs
        ],
        **({"join": join} if join else {}),
        "sample": SAMPLE_FILE,
    }
    (folder / "model.json").write_text(json.dumps(description, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _, data = cv2.imencode(".png", image)
    (folder / SAMPLE_FILE).write_bytes(data.tobytes())
    known = manifest.task == "classify" or manifest.head is not None
    found = bundle.quantized.predict(image).to_dict(manifest.classes) if known else []
    (folder / "expected.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _sample(images: ImageSet) -> NDArray[np.uint8]:
    """A picture to try the board with: the first one, or the first model input turned back into one."""
    source = images.sources[0]
    if isinstance(source, np.ndarray) and source.dtype == np.uint8:
        return source
    if isinstance(source, Path) and source.suffix != ".npy":
        return vision.read_image(source)
    return _picture(next(iter(images)), images.preprocess)


def _picture(tensor: NDArray[np.float32], spec: Preprocess) -> NDArray[np.uint8]:
    """A model input as uint8 (H, W, 3) BGR."""
    planes = tensor[0] if spec.layout == "NCHW" else tensor[0].transpose(2, 0, 1)
    shape = (-1, 1, 1)
    scale, mean = (np.asarray(entry, np.float32).reshape(shape) for entry in (spec.scale, spec.mean))
    pixels = np.clip(np.rint(planes / scale + mean), 0, 255).astype(np.uint8)
    pixels = pixels.repeat(3, axis=0) if len(pixels) == 1 else pixels
    return np.ascontiguousarray(pixels[:: -1 if spec.color == "rgb" else 1].transpose(1, 2, 0))
