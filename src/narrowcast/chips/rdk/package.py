"""The package for the vendor's image and the board: the model, its settings and data, texts, the board's program."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from narrowcast import tasks, vision
from narrowcast.base.errors import UserError, printable
from narrowcast.base.writing import check_folder, new_folder
from narrowcast.bundle import Bundle, Manifest
from narrowcast.bundle.kits import Delivery, Ranges
from narrowcast.calibrate import ImageSet
from narrowcast.chips.rdk import board
from narrowcast.chips.rdk.board.run import JOINING, joined
from narrowcast.chips.rdk.calibration import finished, picture, write_vendor_files
from narrowcast.chips.rdk.export import (
    WORKING_DIR,
    Exported,
    ExportedOutput,
    check_camera,
    export,
    hb_settings,
    hb_yaml,
    load_settings,
    prefix,
    verify,
)
from narrowcast.chips.rdk.opset import IR_VERSION, OPSET
from narrowcast.graph.ends import Join

__all__ = ["deploy_rdk", "removable", "removal_script"]

MODEL_FILE, CONFIG_FILE = "model.onnx", "hb_mapper.yaml"
_FEEDS = {
    "nv12-full": "NV12, full range (`input_space_and_range: regular`)",
    "nv12-studio": "NV12, BT.601 studio range (`input_space_and_range: bt601_video`)",
}
#: What the plan may ask of a node, and the setting that holds it.
_ASKED = {"output int16": "int16", "on the BPU": "int8", "on the CPU": "float_", "input int16": "int16_inputs"}
DATA_FOLDER, SAMPLE_FILE, CONSTANTS_FILE = "calibration_data", "sample.png", "join.npz"
#: Images with which the converted model is compared with the bundle's.
VERIFIED_IMAGES = 2
_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("narrowcast.chips.rdk"),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=jinja2.StrictUndefined,
)
_TEMPLATES.filters |= {
    "quote": shlex.quote,
    "cell": lambda text: escape(printable(text).replace("|", "\\|"), quote=False),  # of a table, without markup
}


def removal_script(name: str, removed: Sequence[ExportedOutput], *, strict: bool = False) -> str:
    """Lines of bash that let outputs leave a compiled model as integers, and say so where one does not.

    Args:
        name: of the compiled model, without suffix.
        removed: the outputs.
        strict: an output that stays float ends the script.
    """
    return _TEMPLATES.get_template("remove.sh.j2").render(name=name, removed=removed, strict=strict).rstrip()


def _scale(scale: float | tuple[float, ...] | None) -> str:
    if scale is None:
        return "-"
    if isinstance(scale, tuple) and len(set(scale)) > 1:
        return f"{len(scale)} values, {min(scale):.4g} to {max(scale):.4g}"
    return f"{scale[0] if isinstance(scale, tuple) else scale:.4g}"


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


def deploy_rdk(
    bundle: Bundle, out: Path, images: ImageSet, *, force: bool = False, ranges: Ranges = "plan"
) -> Delivery:
    """Write everything that the vendor's compiler and the board need, whole or not at all.

    Args:
        bundle: quantized for one of the tool's chips.
        out: folder to write.
        images: calibration images, with the bundle's preprocessing.
        force: replace an earlier package.
        ranges: ``"plan"``: the model carries the plan's, and no images go along. ``"vendor"``: the tool finds its own
            on the images.

    Raises:
        UserError: an input, operator or number of outputs that the vendor's tool does not take; a folder that exists.
    """
    place = check_folder(out, CONFIG_FILE, force)
    manifest = bundle.manifest
    check_camera(manifest.preprocess)
    exported = export(bundle, ranges)
    join, constants = _board_join(bundle.join) if bundle.join is not None else ({}, {})
    few = [tensor for tensor, _ in zip(images, range(VERIFIED_IMAGES), strict=False)]
    difference = verify(exported, few)
    searched = ranges == "vendor"
    dtype, data = ("float32", f"{DATA_FOLDER}_f32") if any(map(finished, images.sources)) else ("uint8", DATA_FOLDER)
    if searched:
        settings, notes = hb_settings(bundle, MODEL_FILE, data, dtype)
    else:
        settings, notes = load_settings(bundle, MODEL_FILE), ()
    nodes = [f"{node}: {what}" for what, key in _ASKED.items() for node in getattr(settings, key)]
    removed = removable(bundle, exported)
    facts = {
        "name": prefix(bundle), "outputs": exported.outputs, "removed": removed, "data": data, "count": len(images),
        "dtype": dtype, "difference": difference, "nodes": nodes, "searched": searched,
        "undelivered": exported.undelivered,
    }  # fmt: skip
    with new_folder(place) as folder:
        (folder / MODEL_FILE).write_bytes(exported.proto.SerializeToString(deterministic=True))
        (folder / CONFIG_FILE).write_text(hb_yaml(settings, notes, load=not searched), encoding="utf-8")
        if searched:
            write_vendor_files(images, folder / data, dtype)
        for name in ("build.sh", "README.md"):
            (folder / name).write_text(_text(name, manifest, facts), encoding="utf-8")
        (folder / "build.sh").chmod(0o755)
        _write_board(folder / "board", bundle, exported, images, join)
        if join:
            with (folder / "board" / CONSTANTS_FILE).open("wb") as file:
                np.savez(file, *constants.values())
        files = tuple(sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()))
    steps = (
        f"{out}/build.sh  (inside the vendor's OpenExplorer image)",
        "python3 run.py --check  (on the board, in a copy of the folder board)",
    )
    if manifest.preprocess.camera == "rgb":
        what = "the board is fed RGB bytes; for its camera's NV12 quantize with --camera nv12-full or nv12-studio"
        notes = (*notes, what)
    if exported.undelivered:
        notes = (*notes, f"the vendor's tool does not take all of the plan: {'; '.join(exported.undelivered)}")
    summary = {
        "ranges and weights": "those of the plan" if not searched else "found by the vendor's tool",
        "largest difference to the bundle's float graph": difference,
        **({"calibration images": len(images)} if searched else {}),
        "nodes with a request": nodes or "none",
        "outputs that leave as integers": [output.name for output in removed] or "none",
    }
    return Delivery(out, files, steps, notes, summary)


def _text(name: str, manifest: Manifest, facts: dict[str, Any]) -> str:
    """build.sh, for the vendor's image, or README.md, with the numbers to expect."""
    spec = manifest.preprocess
    return _TEMPLATES.get_template(f"{name}.j2").render(
        manifest=manifest,
        spec=spec,
        model=MODEL_FILE,
        config=CONFIG_FILE,
        folder=WORKING_DIR,
        opset=OPSET,
        ir=IR_VERSION,
        feed=_FEEDS.get(spec.camera, f"{spec.color.upper()} bytes, {spec.layout}"),
        removals=removal_script(facts["name"], facts["removed"]) if facts["removed"] else "",
        known={entry.name: entry for entry in manifest.outputs},
        scale=_scale,
        **facts,
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
    """run.py, the rooms of images and of tasks, model.json, a sample image and what to find in it."""
    manifest = bundle.manifest
    package = folder / "narrowcast"
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "teaching.py")
    for room in (vision, tasks):
        source = Path(str(room.__file__)).parent
        shutil.copytree(source, package / source.name, ignore=ignored)
    (package / "__init__.py").write_text('"""The part of narrowcast that runs on the board."""\n')
    shutil.copyfile(Path(str(board.__file__)).parent / "run.py", folder / "run.py")
    image = _sample(images)
    whole = {out.name for out in manifest.outputs if out.scale is None and out.chip_dtype != "float32"}
    description = {
        "task": manifest.task,
        "preprocess": manifest.preprocess.to_dict(),
        **manifest.meaning.record(),
        "head": manifest.head.to_dict() if manifest.head is not None else None,
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
    found = bundle.quantized.predict(image).to_dict(manifest.classes) if manifest.meaning.known else []
    (folder / "expected.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _sample(images: ImageSet) -> NDArray[np.uint8]:
    """A picture to try the board with: the first one, or the first model input turned back into one."""
    source = images.sources[0]
    if not finished(source):
        return source if isinstance(source, np.ndarray) else vision.read_image(source)
    spec = images.preprocess
    shape = (1, -1, 1, 1) if spec.layout == "NCHW" else (1, 1, 1, -1)
    scale, mean = (np.asarray(entry, np.float32).reshape(shape) for entry in (spec.scale, spec.mean))
    return picture(next(iter(images)) / scale + mean, spec)
