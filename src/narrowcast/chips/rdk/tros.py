"""Settings for the vendor's robot software (TROS): the JSON of ``dnn_node_example`` and the class list.

Keys and what its parsers read are from the published parsers (``dnn_node/src/util/output_parser`` of hobot_dnn):

    yolov8          float class and box logits, channels last, (class, box) a stride
    yolov8_seg      float class logits; int32 box logits and mask coefficients with a scale a channel; int16
                    prototypes with one scale; (class, box, mask) a stride, then the prototypes at strides[0] / 2
    classification  float scores with four axes; the best class only
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from narrowcast.base.errors import UserError
from narrowcast.base.writing import check_folder, new_folder
from narrowcast.bundle import Bundle, Manifest
from narrowcast.bundle.kits import Delivery, Ranges
from narrowcast.chips.rdk.export import WORKING_DIR, Exported, check_camera, export, prefix
from narrowcast.chips.rdk.package import removal_script
from narrowcast.tasks import TASKS

__all__ = ["deploy_tros", "parser_settings"]

CONFIG_FILE, CLASSES_FILE, MODIFY_FILE = "workconfig.json", "classes.list", "modify.sh"
#: How tasks call this software where they name its parser.
SOFTWARE = "TROS"


def parser_settings(manifest: Manifest, model_file: str, outputs: int) -> dict[str, Any]:
    """The JSON for the task's parser.

    Args:
        manifest: of the bundle.
        model_file: path of the compiled model on the board.
        outputs: how many the compiled model has.

    Raises:
        UserError: TROS has no parser for the task.
    """
    parser = manifest.meaning.parsers.get(SOFTWARE)
    if parser is None:
        known = [name for name, task in TASKS.items() if SOFTWARE in task.parsers]
        raise UserError(
            f"TROS has no parser for {manifest.task} models", f"it has parsers for {', '.join(known)}; use board/run.py"
        )
    head = manifest.head
    settings: dict[str, Any] = {"model_file": model_file, "dnn_Parser": parser, "model_output_count": outputs}
    if head is not None:
        settings |= {"reg_max": head.reg_max, "class_num": head.num_classes, "strides": list(head.strides)}
        settings |= {"num_mask": head.num_masks} if head.num_masks else {}
        settings |= {"score_threshold": 0.25, "nms_threshold": 0.7, "nms_top_k": 300}
    return {**settings, "cls_names_list": f"config/{CLASSES_FILE}"}


def _check_prototypes(bundle: Bundle, exported: Exported) -> None:
    """The segmentation parser reads int16 prototypes at twice the finest resolution."""
    head = bundle.manifest.head
    assert head is not None
    shape = next(output.shape for output in exported.outputs if output.name == "proto")
    height, width = (side // head.strides[0] * 2 for side in bundle.manifest.input_shape[2:])
    if shape[1:3] != (height, width):
        found = "x".join(map(str, shape[1:3]))
        raise UserError(f"TROS reads prototypes of {height}x{width}, the model's are {found}", "use board/run.py")
    dtype = next(entry.chip_dtype for entry in bundle.manifest.outputs if entry.name == "proto")
    if dtype != "int16":
        producer = bundle.model.ir.graph.outputs[bundle.model.output_names.index("proto")].producer()
        name = producer.name if producer is not None else "proto"
        raise UserError(
            f"TROS reads the prototypes as int16, they leave as {dtype}", f"quantize again with --int16 {name}"
        )


def _modify_script(exported: Exported, name: str) -> str:
    """The segmentation parser wants integers everywhere except for the classes."""
    wanted = [output for output in exported.outputs if not output.name.startswith("cls_")]
    return (
        "#!/usr/bin/env bash\n"
        "# Run in the package of the kit rdk-x5, after its build.sh, inside the vendor's image: the parser\n"
        "# reads boxes, mask coefficients and prototypes as integers, and classes as float.\n"
        "set -euo pipefail\n"
        f"cd {WORKING_DIR}\n"
        f"{removal_script(name, wanted, strict=True)}\n"
    )


def deploy_tros(bundle: Bundle, out: Path, *, force: bool = False, ranges: Ranges = "plan") -> Delivery:
    """Write the settings for TROS, whole or not at all.

    Args:
        bundle: quantized for an RDK chip.
        out: folder to write.
        force: replace an earlier one.
        ranges: as for the kit rdk-x5, whose compiled model this belongs to.

    Raises:
        UserError: no parser for the task, outputs that the parser would misread, or a folder that exists.
    """
    place = check_folder(out, CONFIG_FILE, force)
    manifest = bundle.manifest
    check_camera(manifest.preprocess)
    if SOFTWARE not in manifest.meaning.parsers:
        parser_settings(manifest, "", 0)  # says what there is
    if manifest.join:
        parts, whole = (", ".join(manifest.join[key]) for key in ("parts", "joined"))
        raise UserError(f"the model gives {parts}, and no parser of TROS joins them to {whole}", "use board/run.py")
    if manifest.preprocess.camera == "rgb":
        notes: tuple[str, ...] = ("TROS feeds NV12: quantize with --camera nv12-full or nv12-studio",)
    else:
        notes = ()
    exported = export(bundle, ranges)
    masks = manifest.head is not None and manifest.head.num_masks > 0
    if masks:
        _check_prototypes(bundle, exported)
    name = prefix(bundle)
    model_file = f"{name}_modified.bin" if masks else f"{name}.bin"
    settings = parser_settings(manifest, model_file, len(exported.outputs))
    classes = manifest.classes or tuple(f"class {index}" for index in range(_class_count(manifest)))
    with new_folder(place) as folder:
        (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        lines = [" ".join(entry.split()) for entry in classes]
        (folder / CLASSES_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
        if masks:
            script = folder / MODIFY_FILE
            script.write_text(_modify_script(exported, name), encoding="utf-8")
            script.chmod(0o755)
        files = tuple(sorted(file.name for file in folder.iterdir()))
    return Delivery(out, files, _steps(model_file, masks), notes, {"parser": settings["dnn_Parser"], **settings})


def _class_count(manifest: Manifest) -> int:
    return manifest.meaning.class_count([out.shape for out in manifest.outputs])


def _steps(model_file: str, masks: bool) -> tuple[str, ...]:
    compiled = f"compile with the kit rdk-x5; TROS wants {WORKING_DIR}/{model_file}, not board/model.bin"
    return (
        compiled,
        *([f"run {MODIFY_FILE} in that package first, inside the vendor's image"] if masks else []),
        f"on the board: {model_file} and {CONFIG_FILE} where dnn_node_example runs, {CLASSES_FILE} into its config/",
        f"ros2 launch dnn_node_example dnn_node_example.launch.py dnn_example_config_file:={CONFIG_FILE}",
    )
