"""Our settings in hb_mapper's terms."""

from __future__ import annotations

from typing import Any

from narrowcast.base.errors import UserError
from narrowcast.config.hb_checks import MARCHES
from narrowcast.config.hb_mapper import HbMapperConfig, parse_hb_mapper
from narrowcast.config.hb_translate import CAMERAS
from narrowcast.config.hb_values import NodeInfo
from narrowcast.config.settings import QuantizeSettings

__all__ = ["from_settings"]

_DEFAULT_SCALE = 1 / 255
_UNSAID = ("limit", "plan", "runtime", "threads", "keep_head", "attention", "effort", "output_factors")


def from_settings(settings: QuantizeSettings, *, channels: int | None = None) -> tuple[HbMapperConfig, tuple[str, ...]]:
    """Our settings as an hb_mapper file.

    Args:
        settings: paths are written as they are.
        channels: of the input; by the colour when ``None``.

    Returns:
        The config, and what it cannot say.

    Raises:
        UserError: the target is none of hb_mapper's, or a node is given by a pattern.
    """
    if settings.target not in MARCHES:
        raise UserError(f"hb_mapper does not compile for {settings.target}", f"use {', '.join(MARCHES)}")
    notes: list[str] = []
    data = {
        "model_parameters": _model_group(settings),
        "input_parameters": _input_group(settings, channels, notes),
        "calibration_parameters": _calibration_group(settings, notes),
        "compiler_parameters": {"compile_mode": "latency", "debug": False, "optimize_level": "O3"},
    }
    fields = QuantizeSettings.model_fields
    unsaid = [key for key in _UNSAID if getattr(settings, key) != fields[key].default]
    if unsaid:
        notes.append(f"hb_mapper has no word for {', '.join(unsaid)}")
    return parse_hb_mapper(data, "the converted file"), tuple(notes)


def _model_group(settings: QuantizeSettings) -> dict[str, Any]:
    info: dict[str, dict[str, str]] = {}
    for key, entries in (("int16", settings.int16), ("int8", settings.int8), ("float", settings.float_)):
        for name in entries:
            if any(mark in name for mark in "*?["):
                raise UserError(f"{key}: hb_mapper knows no patterns such as {name}", "name the nodes")
            info[name] = {"ON": "CPU"} if key == "float" else {"ON": "BPU", "OutputType": key}
    for entry in settings.int16_inputs:
        name, separator, index = entry.rpartition("#")
        if not separator:
            name, index = entry, ""
        info.setdefault(name, {})[f"InputType{index}"] = "int16"
    group: dict[str, Any] = {
        "onnx_model": settings.model.as_posix(),
        "march": settings.target,
        "working_dir": settings.out.parent.as_posix(),
        "output_model_file_prefix": settings.out.name,
        "output_nodes": settings.output_nodes,
        "remove_node_type": settings.remove,
        "remove_node_name": settings.remove_nodes,
        "node_info": {name: _ordered(entry) for name, entry in info.items()},
    }
    return {key: value for key, value in group.items() if value}


def _ordered(entry: dict[str, str]) -> dict[str, str]:
    indexed = {int(key[9:]): kind for key, kind in entry.items() if key.startswith("InputType") and key != "InputType"}
    return NodeInfo(
        on=entry.get("ON"), input=entry.get("InputType"), inputs=indexed, output=entry.get("OutputType")
    ).to_dict()


def _numbers(value: str | float | tuple[float, ...] | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    if isinstance(value, str):
        return tuple(float(part) for part in value.replace(",", " ").split())
    return value if isinstance(value, tuple) else (float(value),)


def _input_group(settings: QuantizeSettings, channels: int | None, notes: list[str]) -> dict[str, Any]:
    color, layout = settings.color or "rgb", settings.layout or "NCHW"
    if settings.color is None:
        notes.append("color is not given: rgb is written")
    camera = settings.camera or "rgb"
    nv12 = camera.startswith("nv12")
    group: dict[str, Any] = {
        "input_name": settings.input_name or "",
        "input_type_train": color,
        "input_layout_train": layout,
        "input_type_rt": "nv12" if nv12 else color,
    }
    if nv12:
        group["input_space_and_range"] = next(name for name, entry in CAMERAS.items() if entry == camera)
    else:
        group["input_layout_rt"] = layout
    if settings.size is not None:
        height, _, width = settings.size.lower().partition("x")
        count = channels or (1 if color == "gray" else 3)
        sides = (count, int(height), int(width or height))
        group["input_shape"] = ((1, *sides) if layout == "NCHW" else (1, sides[1], sides[2], count),)
    mean, scale = _numbers(settings.mean), _numbers(settings.scale)
    if mean is None and scale is None:
        notes.append("mean and scale are not given: scale 1/255 is written; see 'narrowcast inspect' for the model's")
        scale = (_DEFAULT_SCALE,)
    with_mean = mean is not None and any(mean)
    with_scale = scale is not None and any(value != 1 for value in scale)
    group["norm_type"] = {
        (False, False): "no_preprocess", (True, False): "data_mean", (False, True): "data_scale",
        (True, True): "data_mean_and_scale",
    }[with_mean, with_scale]  # fmt: skip
    if with_mean:
        group["mean_value"] = (mean,)
    if with_scale:
        group["scale_value"] = (scale,)
    return group


def _calibration_group(settings: QuantizeSettings, notes: list[str]) -> dict[str, Any]:
    group: dict[str, Any] = {"cal_data_dir": settings.images.as_posix()}
    if settings.calibration_data == "images":
        group["preprocess_on"] = True
        if settings.resize != "stretch":
            notes.append("the vendor's tool stretches pictures; for another resize write calibration files first")
    else:
        group["cal_data_type"] = settings.calibration_data
    if settings.method == "kl":
        group["calibration_type"] = "kl"
    elif settings.method in ("minmax", "percentile"):
        share = 1.0 if settings.method == "minmax" else round(settings.percentile / 100, 12)
        group |= {"calibration_type": "max", "max_percentile": share}
    else:
        group["calibration_type"] = "default"
        if settings.method != "auto":
            notes.append(f"hb_mapper has no method {settings.method}: default is written")
    entries = [f"set_{operator}_output_int16" for operator in settings.int16_operators]
    for operator in settings.int8_operators:
        entries += [f"set_{operator}_input_int8", f"set_{operator}_output_int8"]
    entries += [f"set_model_output_{settings.outputs}"] if settings.outputs else []
    flags = {
        "set_all_nodes_int16": settings.all_int16,
        "asymmetric": settings.asymmetric,
        "bias_correction": settings.bias_correction,
    }
    entries += [name for name, wanted in flags.items() if wanted]
    if entries:
        group["optimization"] = tuple(entries)
    return group
