"""What hb_mapper's keys demand of each other: each check gives (key, what is wrong, what to do)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

from narrowcast.base.errors import nearest
from narrowcast.chips.rdk.hb_values import MARCHES, operator_type

if TYPE_CHECKING:
    from narrowcast.chips.rdk.hb_mapper import HbMapperConfig

__all__ = ["CHECKS", "unsupported"]

Problems = Iterator[tuple[str, str, str]]
#: What the board may feed, to what the float model may then eat.
_RT_TO_TRAIN = {
    "nv12": ("yuv444", "rgb", "bgr"), "yuv444": ("yuv444", "rgb", "bgr"), "rgb": ("rgb", "bgr"), "bgr": ("rgb", "bgr"),
    "gray": ("gray",), "featuremap": ("featuremap",),
}  # fmt: skip
_CHANNELS = {"rgb": 3, "bgr": 3, "yuv444": 3, "gray": 1}
_RESIZER_AREA = 18432


def _model_file(config: HbMapperConfig) -> Problems:
    model = config.model_parameters
    caffe = model.prototxt is not None or model.caffe_model is not None
    if caffe and model.onnx_model is not None:
        yield "onnx_model", "a Caffe and an ONNX model are given", "keep one"
    if caffe and (model.prototxt is None or model.caffe_model is None):
        yield "prototxt", "a Caffe model has two files", "give prototxt and caffe_model"
    if not caffe and model.onnx_model is None:
        yield "onnx_model", "is missing", "give the path of the ONNX file"


def _input_counts(config: HbMapperConfig) -> Problems:
    entries = config.input_parameters
    count = len(entries.input_name) or len(entries.input_type_rt)
    if not entries.input_name and count > 1:
        yield "input_name", f"{count} inputs are described, none is named", "name them"
    for key, (values, required) in entries.columns().items():
        if len(values) != count and (values or required):
            given = f"{len(values)} value{'s' if len(values) != 1 else ''}"
            yield key, f"{given} for {count} input{'s' if count != 1 else ''}", "write one an input, with ';' between"


def _formats(config: HbMapperConfig) -> Problems:
    for entry in config.inputs:
        fed = _RT_TO_TRAIN[entry.feed]
        if entry.eaten not in fed:
            yield "input_type_train", f"{entry.eaten} cannot be fed as {entry.feed}", f"use {' or '.join(fed)}"
        if entry.feed in ("rgb", "bgr") and not entry.fed_layout:
            yield "input_layout_rt", f"is missing; {entry.feed} needs it", "write NHWC or NCHW"
        if entry.feed == "yuv444" and entry.fed_layout == "NCHW" and not MARCHES[config.march].planar_yuv444:
            yield "input_layout_rt", f"NCHW yuv444 is not for {config.march}", "use NHWC"
        if entry.space == "bt601_video" and entry.feed != "nv12":
            yield "input_space_and_range", f"{entry.space} is for nv12, not {entry.feed}", "remove it"


def _image_shapes(config: HbMapperConfig) -> Problems:
    for entry in config.inputs:
        if entry.size is None:
            if entry.shape and entry.feed != "featuremap":
                yield "input_shape", f"{len(entry.shape)} axes for {entry.feed}", "an image has 4"
            continue
        channels, height, width = entry.size
        wanted = _CHANNELS.get(entry.eaten, channels)
        if channels != wanted:
            has = f"{'x'.join(map(str, entry.shape))} has {channels} channels in {entry.layout}"
            yield "input_shape", f"{has}, {entry.eaten} has {wanted}", "mend the shape or input_layout_train"
        if entry.feed in ("nv12", "yuv444") and (height % 2 or width % 2):
            yield "input_shape", f"{entry.feed} needs even sides, not {height}x{width}", ""
    first = [entry.shape[0] for entry in config.inputs if entry.shape]
    if config.input_parameters.input_batch > 1 and (config.count > 1 or any(size != 1 for size in first)):
        yield "input_batch", "is for one input whose shape begins with 1", "remove it"


def _normalisation(config: HbMapperConfig) -> Problems:
    for entry in config.inputs:
        for word, values in (("mean", entry.mean), ("scale", entry.scale)):
            if word in entry.norm and values is None:
                yield f"{word}_value", f"norm_type {entry.norm} needs it", "give one value, or one a channel"
    for word in ("mean", "scale"):
        for entry in config.inputs:
            values = entry.mean if word == "mean" else entry.scale
            channels = _CHANNELS.get(entry.eaten) or (entry.size[0] if entry.size is not None else None)
            if values is not None and channels is not None and len(values) not in (1, channels):
                what = f"{len(values)} values for {channels} channels of {entry.eaten}"
                yield f"{word}_value", what, "give one value, or one a channel with spaces between"


def _calibration_data(config: HbMapperConfig) -> Problems:
    data, count = config.calibration_parameters, config.count
    folders, types = len(data.cal_data_dir), len(data.cal_data_type)
    if not folders and data.calibration_type not in ("load", "skip"):
        yield "cal_data_dir", "is missing", "give the folder of calibration data"
    if folders and folders != count:
        yield "cal_data_dir", f"{folders} folders for {count} inputs", "give one an input"
    if types not in (0, 1, count):
        yield "cal_data_type", f"{types} types for {count} inputs", "give one, or one an input"


def _int16(config: HbMapperConfig) -> Problems:
    if MARCHES[config.march].int16:
        return
    for key in ("node_info", "set_node_data_type"):
        if getattr(config.model_parameters, key):
            yield key, f"is not for {config.march}", "use run_on_cpu and run_on_bpu"
    for entry in config.calibration_parameters.optimization:
        if entry.endswith("int16"):
            yield "optimization", f"{entry}: {config.march} has no int16", "remove it"


def _nodes(config: HbMapperConfig) -> Problems:
    """No node may be sent to both units."""
    data = config.calibration_parameters
    wanted = {name: info["ON"] for name, info in config.model_parameters.node_info.items() if "ON" in info}
    for key, unit, names in (("run_on_cpu", "CPU", data.run_on_cpu), ("run_on_bpu", "BPU", data.run_on_bpu)):
        for name in names:
            if wanted.setdefault(name, unit) != unit:
                yield key, f"{name} is sent to the {wanted[name]} elsewhere", "keep one"


def _optimization(config: HbMapperConfig) -> Problems:
    given = config.calibration_parameters.optimization
    if "set_model_output_int8" in given and "set_model_output_int16" in given:
        yield "optimization", "outputs cannot be int8 and int16", "keep one"
    types: dict[tuple[str, str], str] = {}
    for operator, side, kind in filter(None, map(operator_type, given)):
        if types.setdefault((operator, side), kind) != kind:
            yield "optimization", f"the {side} of {operator} cannot be int8 and int16", "keep one"


def _compiler(config: HbMapperConfig) -> Problems:
    options, cores = config.compiler_parameters, MARCHES[config.march].cores
    if options.core_num > cores:
        yield "core_num", f"{config.march} has {cores} core", "write 1"
    balance = options.compile_mode == "balance"
    if balance != (options.balance_factor is not None):
        remedy = "give 0..100" if balance else "remove it, or write compile_mode: balance"
        yield "balance_factor", "goes with compile_mode balance", remedy
    if 0 < options.max_time_per_fc < 1000:
        yield "max_time_per_fc", "is 0 or at least 1000 us", ""


def _input_sources(config: HbMapperConfig) -> Problems:
    key, names = "input_source", config.input_parameters.input_name
    for name, source in config.compiler_parameters.input_source.items():
        if names and name not in names:
            yield key, f"no input is named {name}", nearest(name, names)
        entry = config.inputs[names.index(name) if names else 0]
        if source != "ddr" and entry.feed not in ("nv12", "gray"):
            yield key, f"{source} delivers nv12 or gray, not {entry.feed}", "use ddr"
        if source != "resizer":
            continue
        if config.model_parameters.layer_out_dump:
            yield key, "resizer excludes layer_out_dump", "remove one"
        if entry.size is not None and entry.size[1] * entry.size[2] >= _RESIZER_AREA:
            yield key, f"resizer takes less than {_RESIZER_AREA} pixels", "use pyramid or ddr"


def unsupported(config: HbMapperConfig, given: Collection[str]) -> Problems:
    """What hb_mapper does and narrowcast does not; ``given`` are settings that come from elsewhere."""
    data = config.calibration_parameters
    if config.custom_op is not None and config.custom_op.model_fields_set:
        yield "custom_op", "narrowcast cannot run operators written for the vendor's tool", "remove it"
    if config.count > 1:
        names = ", ".join(config.input_parameters.input_name)
        yield "input_name", f"{config.count} inputs ({names})", "narrowcast takes one"
    if config.model_parameters.onnx_model is None:
        yield "caffe_model", "narrowcast reads ONNX", "convert the Caffe model first"
    if config.inputs[0].eaten == "yuv444":
        yield "input_type_train", "models trained on yuv444 are not supported", "use rgb or bgr"
    if data.calibration_type == "load":
        yield "calibration_type", "load needs a model of the vendor's training plugin", "use default, kl or max"
    if not data.cal_data_dir and "images" not in given:
        what = "skip calibrates on random numbers, which say nothing about accuracy"
        yield "calibration_type", what, "add --images FOLDER; 'narrowcast check' needs no images"
    if data.per_channel and data.calibration_type in ("kl", "max"):
        yield "per_channel", "an activation has one scale here, not one a channel", "use default, or False"
    if data.calibration_type == "max" and data.max_percentile <= 0.5:
        yield "max_percentile", f"{data.max_percentile} leaves nothing", "use 0.999 to 1"
    if "run_fast" in data.optimization:
        yield "optimization", f"run_fast is not for {config.march}", "remove it"


#: In the order in which a person would want to hear of problems.
CHECKS: tuple[Callable[[HbMapperConfig], Problems], ...] = (
    _model_file, _input_counts, _formats, _image_shapes, _normalisation, _calibration_data, _int16, _nodes, _optimization,
    _compiler, _input_sources,
)  # fmt: skip
