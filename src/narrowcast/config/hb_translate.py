"""hb_mapper's settings in our own terms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from narrowcast.base.errors import UserError
from narrowcast.config.hb_checks import image_size
from narrowcast.config.hb_mapper import CompilerParameters, HbMapperConfig
from narrowcast.config.hb_values import operator_type
from narrowcast.config.settings import QuantizeSettings, explained

__all__ = ["CAMERAS", "to_settings", "to_values"]

#: input_space_and_range to our word for the camera.
CAMERAS = {"regular": "nv12-full", "bt601_video": "nv12-studio"}
#: hb_mapper's own tools name raw folders so when the type is not given.
_FLOAT_FOLDER = "_f32"


def to_settings(config: HbMapperConfig, folder: Path) -> tuple[QuantizeSettings, tuple[str, ...]]:
    """Translate a whole file.

    Args:
        config: from :func:`narrowcast.config.read_hb_mapper`.
        folder: relative paths are relative to it.

    Returns:
        Our settings, and what a person should know: keys without influence here, and approximations.

    Raises:
        UserError: a key asks for what narrowcast does not do; the reason is in the message.
    """
    values, notes = to_values(config, folder, "hb_mapper YAML")
    try:
        return QuantizeSettings.model_validate(values), notes
    except ValidationError as error:
        raise explained(error.errors()[0], None) from error


def to_values(
    config: HbMapperConfig, folder: Path, where: str, given: frozenset[str] = frozenset()
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """As :func:`to_settings`, not validated yet; ``given`` are settings that come from elsewhere and win."""
    notes: list[str] = []
    model = config.model_parameters
    if config.custom_op is not None and config.custom_op.model_fields_set:
        raise _refused(where, "custom_op", "narrowcast cannot run operators written for the vendor's tool", "remove it")
    if config.count > 1:
        names = ", ".join(config.input_parameters.input_name)
        raise _refused(where, "input_parameters.input_name", f"{config.count} inputs ({names})", "narrowcast takes one")
    if model.onnx_model is None:
        raise _refused(where, "model_parameters.caffe_model", "narrowcast reads ONNX", "convert the Caffe model first")
    values: dict[str, Any] = {
        "model": folder / model.onnx_model,
        "out": folder / model.working_dir / model.output_model_file_prefix,
        "target": config.march,
    }
    values |= _input(config, where, notes)
    values |= _data(config, folder, where, given, notes)
    values |= _ranges(config, where, notes)
    values |= _types(config, where, notes)
    values |= _graph(config, notes)
    notes += _kept(config)
    return values, tuple(notes)


def _refused(where: str, key: str, what: str, remedy: str) -> UserError:
    return UserError(f"{where}: {key}: {what}", remedy)


def _input(config: HbMapperConfig, where: str, notes: list[str]) -> dict[str, Any]:
    """Size, colour, mean and scale, camera of the one input."""
    entries = config.input_parameters
    eaten, feed, layout = entries.input_type_train[0], entries.input_type_rt[0], entries.input_layout_train[0]
    values: dict[str, Any] = {"layout": layout}
    if entries.input_name:
        values["input_name"] = entries.input_name[0]
    if entries.input_shape and (size := image_size(entries.input_shape[0], layout)) is not None:
        values["size"] = f"{size[1]}x{size[2]}"
    if eaten == "yuv444":
        key = "input_parameters.input_type_train"
        raise _refused(where, key, "models trained on yuv444 are not supported", "use rgb or bgr")
    if eaten != "featuremap":
        values["color"] = eaten
    norm = entries.norm_type[0] if entries.norm_type else "no_preprocess"
    for word, key, without in (("mean", "mean_value", 0.0), ("scale", "scale_value", 1.0)):
        written = getattr(entries, key)
        used = word in norm and written and written[0] is not None
        values[word] = written[0] if used else (without,)
        if written and written[0] is not None and not used and any(value != without for value in written[0]):
            notes.append(f"{key} is not used, because norm_type is {norm}")
    if feed == "nv12":
        space = entries.input_space_and_range[0] if entries.input_space_and_range else ""
        values["camera"] = CAMERAS[space or "regular"]
        if not space:
            notes.append(
                "input_space_and_range is not given, so the board reads NV12 as full range (regular); "
                "OpenCV and most cameras write bt601_video"
            )
    elif eaten != "featuremap":
        values["camera"] = "rgb"
        if feed != eaten:
            notes.append(f"the board converts {feed} to {eaten}: the rounding of that step is not simulated")
    return values


def _data(config: HbMapperConfig, folder: Path, where: str, given: frozenset[str], notes: list[str]) -> dict[str, Any]:
    data = config.calibration_parameters
    if data.calibration_type == "load":
        key = "calibration_parameters.calibration_type"
        raise _refused(where, key, "load needs a model of the vendor's training plugin", "use default, kl or max")
    if not data.cal_data_dir:
        if "images" not in given:
            key = "calibration_parameters.calibration_type"
            what = "skip calibrates on random numbers, which say nothing about accuracy"
            raise _refused(where, key, what, "add --images FOLDER; 'narrowcast check' needs no images")
        return {}
    path = data.cal_data_dir[0]
    if data.preprocess_on:
        notes.append("preprocess_on: pictures are stretched to the input, as the vendor's tool does")
        return {"images": folder / path, "resize": "stretch"}
    kind = data.cal_data_type[0] if data.cal_data_type else ""
    if not kind:
        kind = "float32" if Path(path).name.endswith(_FLOAT_FOLDER) else "uint8"
        notes.append(f"cal_data_type is not given: {kind} by the name of {path}")
    return {"images": folder / path, "calibration_data": kind}


def _ranges(config: HbMapperConfig, where: str, notes: list[str]) -> dict[str, Any]:
    """Calibration method."""
    data = config.calibration_parameters
    kind = data.calibration_type
    if kind != "max" and "max_percentile" in data.model_fields_set and data.max_percentile != 1.0:
        notes.append(f"max_percentile is not used with calibration_type {kind}")
    searched = kind in ("default", "mix", "skip")
    values: dict[str, Any] = {}
    if data.per_channel and searched:
        notes.append(f"per_channel is not used with calibration_type {kind}")
    elif data.per_channel:
        key = "calibration_parameters.per_channel"
        raise _refused(where, key, "an activation has one scale here, not one a channel", "use default, or False")
    if "asymmetric" in data.optimization:
        if searched:
            notes.append(f"asymmetric is not used with calibration_type {kind}")
        else:
            values["asymmetric"] = True
    if kind == "kl":
        values["method"] = "kl"
    elif kind == "max" and data.max_percentile == 1.0:
        values["method"] = "minmax"
    elif kind == "max":
        if data.max_percentile <= 0.5:
            key = "calibration_parameters.max_percentile"
            raise _refused(where, key, f"{data.max_percentile} leaves nothing", "use 0.999 to 1")
        values |= {"method": "percentile", "percentile": round(100 * data.max_percentile, 10)}
    else:
        values |= {"method": "auto", "search": "hb-mapper" if kind == "default" else "auto"}
    if kind == "default":
        notes.append("calibration_type default: 'auto' compares methods by the noise that they leave at the outputs")
    if kind == "mix":
        notes.append("calibration_type mix: the method 'auto' also chooses range by range, by its own measure")
    return values


def _types(config: HbMapperConfig, where: str, notes: list[str]) -> dict[str, Any]:
    """Where nodes run and in which types."""
    model, data = config.model_parameters, config.calibration_parameters
    int16: dict[str, None] = {n: None for n, kind in model.set_node_data_type.items() if kind == "int16"}
    int8: dict[str, None] = {n: None for n, kind in model.set_node_data_type.items() if kind == "int8"}
    float_: dict[str, None] = dict.fromkeys(data.run_on_cpu)
    int8 |= dict.fromkeys(data.run_on_bpu)
    wide_inputs: dict[str, None] = {}
    for name, info in model.node_info.items():
        if info.on == "CPU":
            float_[name] = None
        elif info.output == "int16":
            int16[name] = None
        elif info.on == "BPU" or info.output == "int8":
            int8[name] = None
        if info.input == "int16":
            wide_inputs[name] = None
        wide_inputs |= {f"{name}#{index}": None for index, kind in info.inputs.items() if kind == "int16"}
    values: dict[str, Any] = {
        "int16": tuple(int16),
        "int8": tuple(name for name in int8 if name not in int16),
        "float": tuple(float_),
        "int16_inputs": tuple(wide_inputs),
    }
    values |= _optimization(config, where, notes)
    return {key: value for key, value in values.items() if value}


def _optimization(config: HbMapperConfig, where: str, notes: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    operators: dict[str, dict[str, str]] = {}
    for entry in config.calibration_parameters.optimization:
        if entry.startswith("set_model_output_"):
            values["outputs"] = entry.removeprefix("set_model_output_")
        elif entry == "set_all_nodes_int16":
            values["all_int16"] = True
        elif entry == "bias_correction":
            values["bias_correction"] = True
        elif entry == "lstm_batch_last":
            notes.append("lstm_batch_last has no influence here")
        elif entry == "run_fast":
            key = "calibration_parameters.optimization"
            raise _refused(where, key, f"run_fast is not for {config.march}", "remove it")
        elif entry != "asymmetric":
            operator, side, kind = operator_type(entry)
            operators.setdefault(operator, {})[side] = kind
    for operator, sides in operators.items():
        if sides.get("input") == "int16" and sides.get("output") != "int16":
            notes.append(f"set_{operator}_input_int16: {operator} computes at 16 bits, its output too")
        kind = "int16" if "int16" in sides.values() else "int8"
        values[f"{kind}_operators"] = (*values.get(f"{kind}_operators", ()), operator)
    return values


def _graph(config: HbMapperConfig, notes: list[str]) -> dict[str, Any]:
    model = config.model_parameters
    if "Quantize" in model.remove_node_type:
        notes.append("remove_node_type: the Quantize node of an image belongs to the board's preprocessing and stays")
    values = {
        "output_nodes": model.output_nodes,
        "remove": tuple(kind for kind in model.remove_node_type if kind != "Quantize"),
        "remove_nodes": model.remove_node_name,
    }
    return {key: value for key, value in values.items() if value}


def _kept(config: HbMapperConfig) -> list[str]:
    """Keys that are valid, go into a package for the vendor's compiler, and change no number here."""
    keys = [key for key in CompilerParameters.model_fields if key in config.compiler_parameters.model_fields_set]
    if config.input_parameters.input_batch != 1:
        keys.append("input_batch")
    if config.input_parameters.input_layout_rt:
        keys.append("input_layout_rt")
    keys += [key for key in ("layer_out_dump", "debug_mode") if getattr(config.model_parameters, key)]
    notes = [f"for the vendor's compiler only, without influence here: {', '.join(keys)}"] if keys else []
    if config.model_parameters.log_level is not None:
        notes.append("log_level is a key of older versions of hb_mapper, without influence here")
    return notes
