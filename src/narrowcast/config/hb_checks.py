"""What hb_mapper's keys demand of each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from narrowcast.base.errors import nearest
from narrowcast.config.hb_values import Refusal, operator_type

if TYPE_CHECKING:
    from narrowcast.config.hb_mapper import HbMapperConfig

__all__ = ["CHECKS", "MARCHES", "RT_TO_TRAIN", "March", "march"]


@dataclass(frozen=True)
class March:
    """What the tool accepts for one architecture.

    Attributes:
        board: where it is built in, in the vendor's words.
        int16: tensors may have 16 bits.
        cores: of the BPU.
        planar_yuv444: yuv444 may be fed as NCHW.
    """

    board: str
    int16: bool
    cores: int
    planar_yuv444: bool = True


#: Architectures that hb_mapper compiles for; each is also the name of a target.
MARCHES = {
    "bernoulli2": March("X3", False, 2, False),
    "bayes": March("Ultra", True, 2),
    "bayes-e": March("X5", True, 1),
}
_OTHER_TOOL = ("nash-e", "nash-m", "nash-p")
#: What the board may feed, to what the float model may then eat.
RT_TO_TRAIN = {
    "nv12": ("yuv444", "rgb", "bgr"),
    "yuv444": ("yuv444", "rgb", "bgr"),
    "rgb": ("rgb", "bgr"),
    "bgr": ("rgb", "bgr"),
    "gray": ("gray",),
    "featuremap": ("featuremap",),
}
_CHANNELS = {"rgb": 3, "bgr": 3, "yuv444": 3, "gray": 1}
_RESIZER_AREA = 18432


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def march(value: Any) -> str:
    """Check the architecture's name."""
    name = str(value)
    if name in _OTHER_TOOL:
        raise Refusal(f"{name} is compiled by hb_compile, not by hb_mapper", f"use {', '.join(MARCHES)}")
    if name not in MARCHES:
        known = ", ".join(f"{march} = {rules.board}" for march, rules in MARCHES.items())
        same = [march for march in MARCHES if _letters(march) == _letters(name)]
        raise Refusal(f"{name!r} is unknown", nearest(name, same) if same else f"write that of your board: {known}")
    return name


def _model_file(config: HbMapperConfig) -> None:
    model = config.model_parameters
    caffe = model.prototxt is not None or model.caffe_model is not None
    if caffe and model.onnx_model is not None:
        raise Refusal("a Caffe and an ONNX model are given", "keep one", "model_parameters.onnx_model")
    if caffe and (model.prototxt is None or model.caffe_model is None):
        raise Refusal("a Caffe model has two files", "give prototxt and caffe_model", "model_parameters.prototxt")
    if not caffe and model.onnx_model is None:
        raise Refusal("is missing", "give the path of the ONNX file", "model_parameters.onnx_model")


def _input_counts(config: HbMapperConfig) -> None:
    entries = config.input_parameters
    count = len(entries.input_name) or len(entries.input_type_rt)
    if len(entries.input_name) == 0 and count > 1:
        raise Refusal(f"{count} inputs are described, none is named", "name them", "input_parameters.input_name")
    required = ("input_type_train", "input_layout_train", "input_type_rt")
    optional = ("input_layout_rt", "input_space_and_range", "input_shape", "norm_type", "mean_value", "scale_value")
    for key in (*required, *optional):
        given = len(getattr(entries, key))
        if given != count and (given or key in required):
            raise Refusal(
                f"{given} value{'s' if given != 1 else ''} for {count} input{'s' if count != 1 else ''}",
                "write one an input, with ';' between",
                f"input_parameters.{key}",
            )


def _formats(config: HbMapperConfig) -> None:
    entries = config.input_parameters
    rules = MARCHES[config.march]
    for index, (feed, eaten) in enumerate(zip(entries.input_type_rt, entries.input_type_train, strict=True)):
        if eaten not in RT_TO_TRAIN[feed]:
            allowed = " or ".join(RT_TO_TRAIN[feed])
            raise Refusal(f"{eaten} cannot be fed as {feed}", f"use {allowed}", "input_parameters.input_type_train")
        layout = entries.input_layout_rt[index] if entries.input_layout_rt else ""
        if feed in ("rgb", "bgr") and not layout:
            raise Refusal(f"is missing; {feed} needs it", "write NHWC or NCHW", "input_parameters.input_layout_rt")
        if feed == "yuv444" and layout == "NCHW" and not rules.planar_yuv444:
            raise Refusal(f"NCHW yuv444 is not for {config.march}", "use NHWC", "input_parameters.input_layout_rt")
        space = entries.input_space_and_range[index] if entries.input_space_and_range else ""
        if space == "bt601_video" and feed != "nv12":
            raise Refusal(f"{space} is for nv12, not {feed}", "remove it", "input_parameters.input_space_and_range")


def image_size(shape: tuple[int, ...], layout: str) -> tuple[int, int, int] | None:
    """Channels, height and width of a 4-D shape."""
    if len(shape) != 4:
        return None
    return (shape[1], shape[2], shape[3]) if layout == "NCHW" else (shape[3], shape[1], shape[2])


def _shapes(config: HbMapperConfig) -> None:
    entries = config.input_parameters
    for index, shape in enumerate(entries.input_shape):
        size = image_size(shape, entries.input_layout_train[index])
        feed = entries.input_type_rt[index]
        if size is None:
            if feed != "featuremap":
                raise Refusal(f"{len(shape)} axes for {feed}", "an image has 4", "input_parameters.input_shape")
            continue
        channels, height, width = size
        wanted = _CHANNELS.get(entries.input_type_train[index], channels)
        text = "x".join(str(n) for n in shape)
        if channels != wanted:
            layout = entries.input_layout_train[index]
            raise Refusal(
                f"{text} has {channels} channels in {layout}, {entries.input_type_train[index]} has {wanted}",
                "mend the shape or input_layout_train",
                "input_parameters.input_shape",
            )
        if feed in ("nv12", "yuv444") and (height % 2 or width % 2):
            raise Refusal(f"{feed} needs even sides, not {height}x{width}", "", "input_parameters.input_shape")
    if entries.input_batch > 1 and (config.count > 1 or any(shape[0] != 1 for shape in entries.input_shape)):
        raise Refusal("is for one input whose shape begins with 1", "remove it", "input_parameters.input_batch")


def _normalisation(config: HbMapperConfig) -> None:
    entries = config.input_parameters
    for index, norm in enumerate(entries.norm_type):
        for word, key in (("mean", "mean_value"), ("scale", "scale_value")):
            values = getattr(entries, key)
            if word in norm and not (values and values[index] is not None):
                raise Refusal(
                    f"norm_type {norm} needs it", "give one value, or one a channel", f"input_parameters.{key}"
                )
    for key in ("mean_value", "scale_value"):
        for index, values in enumerate(getattr(entries, key)):
            channels = _channels(config, index)
            if values is not None and channels is not None and len(values) not in (1, channels):
                kind = entries.input_type_train[index]
                raise Refusal(
                    f"{len(values)} values for {channels} channels of {kind}",
                    "give one value, or one a channel with spaces between",
                    f"input_parameters.{key}",
                )


def _channels(config: HbMapperConfig, index: int) -> int | None:
    entries = config.input_parameters
    known = _CHANNELS.get(entries.input_type_train[index])
    if known is not None or not entries.input_shape:
        return known
    size = image_size(entries.input_shape[index], entries.input_layout_train[index])
    return size[0] if size is not None else None


def _calibration_data(config: HbMapperConfig) -> None:
    data = config.calibration_parameters
    folders = len(data.cal_data_dir)
    if not folders and data.calibration_type not in ("load", "skip"):
        raise Refusal("is missing", "give the folder of calibration data", "calibration_parameters.cal_data_dir")
    if folders and folders != config.count:
        raise Refusal(
            f"{folders} folders for {config.count} inputs", "give one an input", "calibration_parameters.cal_data_dir"
        )
    if len(data.cal_data_type) not in (0, 1, config.count):
        raise Refusal(
            f"{len(data.cal_data_type)} types for {config.count} inputs",
            "give one, or one an input",
            "calibration_parameters.cal_data_type",
        )


def _int16(config: HbMapperConfig) -> None:
    if MARCHES[config.march].int16:
        return
    model, optimization = config.model_parameters, config.calibration_parameters.optimization
    for key in ("node_info", "set_node_data_type"):
        if getattr(model, key):
            raise Refusal(f"is not for {config.march}", "use run_on_cpu and run_on_bpu", f"model_parameters.{key}")
    wide = next((entry for entry in optimization if entry.endswith("int16")), None)
    if wide is not None:
        raise Refusal(f"{wide}: {config.march} has no int16", "remove it", "calibration_parameters.optimization")


def _nodes(config: HbMapperConfig) -> None:
    """No node may be sent to both units."""
    data, info = config.calibration_parameters, config.model_parameters.node_info
    wanted = {name: entry.on for name, entry in info.items() if entry.on is not None}
    for key, unit in (("run_on_cpu", "CPU"), ("run_on_bpu", "BPU")):
        for name in getattr(data, key):
            if wanted.setdefault(name, unit) != unit:
                raise Refusal(
                    f"{name} is sent to the {wanted[name]} elsewhere", "keep one", f"calibration_parameters.{key}"
                )


def _optimization(config: HbMapperConfig) -> None:
    given = config.calibration_parameters.optimization
    key = "calibration_parameters.optimization"
    if "set_model_output_int8" in given and "set_model_output_int16" in given:
        raise Refusal("outputs cannot be int8 and int16", "keep one", key)
    types: dict[tuple[str, str], str] = {}
    for entry in given:
        if not entry.startswith("set_") or entry.startswith(("set_model_", "set_all_")):
            continue
        operator, side, kind = operator_type(entry)
        if types.setdefault((operator, side), kind) != kind:
            raise Refusal(f"the {side} of {operator} cannot be int8 and int16", "keep one", key)


def _compiler(config: HbMapperConfig) -> None:
    options, rules = config.compiler_parameters, MARCHES[config.march]
    if options.core_num > rules.cores:
        raise Refusal(f"{config.march} has {rules.cores} core", "write 1", "compiler_parameters.core_num")
    balance = options.compile_mode == "balance"
    if balance != (options.balance_factor is not None):
        remedy = "give 0..100" if balance else "remove it, or write compile_mode: balance"
        raise Refusal("goes with compile_mode balance", remedy, "compiler_parameters.balance_factor")
    if 0 < options.max_time_per_fc < 1000:
        raise Refusal("is 0 or at least 1000 us", "", "compiler_parameters.max_time_per_fc")
    _sources(config)


def _sources(config: HbMapperConfig) -> None:
    entries, key = config.input_parameters, "compiler_parameters.input_source"
    for name, source in config.compiler_parameters.input_source.items():
        if entries.input_name and name not in entries.input_name:
            raise Refusal(f"no input is named {name}", nearest(name, entries.input_name), key)
        index = entries.input_name.index(name) if entries.input_name else 0
        feed = entries.input_type_rt[index]
        if source != "ddr" and feed not in ("nv12", "gray"):
            raise Refusal(f"{source} delivers nv12 or gray, not {feed}", "use ddr", key)
        if source != "resizer":
            continue
        if config.model_parameters.layer_out_dump:
            raise Refusal("resizer excludes layer_out_dump", "remove one", key)
        shape = entries.input_shape[index] if entries.input_shape else ()
        size = image_size(shape, entries.input_layout_train[index])
        if size is not None and size[1] * size[2] >= _RESIZER_AREA:
            raise Refusal(f"resizer takes less than {_RESIZER_AREA} pixels", "use pyramid or ddr", key)


#: In the order in which a person would want to hear of problems.
CHECKS: tuple[Callable[[HbMapperConfig], None], ...] = (
    _model_file, _input_counts, _formats, _shapes, _normalisation, _calibration_data, _int16, _nodes, _optimization,
    _compiler,
)  # fmt: skip
