"""What hb_mapper's keys may hold: how values are written, and what keys demand of each other.

Lists are written with ``;``, channels with spaces, shapes with ``x``. A check gives (key, what is wrong, what to do).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import BeforeValidator

from narrowcast.base.errors import nearest

if TYPE_CHECKING:
    from narrowcast.chips.rdk.hb_mapper import HbMapperConfig

__all__ = [
    "CHECKS", "MARCHES", "Chip", "March", "Names", "NodeTable", "NodeTypes", "Numbers", "Optimizations", "Problems",
    "Refusal", "Shapes", "Sources", "Text", "choice", "choices", "numbers", "operator_type", "unsupported", "written",
]  # fmt: skip

Problems = Iterator[tuple[str, str, str]]
Numbers = tuple[tuple[float, ...] | None, ...]
#: What the board may feed, to what the float model may then eat.
_RT_TO_TRAIN = {
    "nv12": ("yuv444", "rgb", "bgr"), "yuv444": ("yuv444", "rgb", "bgr"), "rgb": ("rgb", "bgr"), "bgr": ("rgb", "bgr"),
    "gray": ("gray",), "featuremap": ("featuremap",),
}  # fmt: skip
_CHANNELS = {"rgb": 3, "bgr": 3, "yuv444": 3, "gray": 1}
_RESIZER_AREA = 18432
_INTEGER_TYPES = ("int8", "int16")
_OPTIMIZATIONS = (
    "set_model_output_int8", "set_model_output_int16", "set_all_nodes_int16", "asymmetric", "bias_correction",
    "lstm_batch_last", "run_fast",
)  # fmt: skip
_OPERATOR_TYPE = re.compile(r"set_(\w+?)_(input|output)_(int8|int16)")


class Refusal(ValueError):
    """A value that is impossible or not supported, with what to do about it.

    Args:
        what: what is wrong, without the key.
        remedy: what to do.
        key: the key to blame, where a check of several keys found it.
    """

    def __init__(self, what: str, remedy: str = "", key: str = "") -> None:
        self.what, self.remedy, self.key = what, remedy, key
        super().__init__(what)


def _text(value: Any, form: str) -> str:
    if isinstance(value, (list, dict, bool)):
        raise Refusal(f"{value!r} is not of the form that hb_mapper reads", f"write it as {form}")
    return str(value).strip()


def _split(value: Any) -> list[str]:
    """Parts of a ``;`` list; a trailing ``;`` is allowed."""
    if isinstance(value, tuple):  # already split: a config built in Python
        return [str(part) for part in value]
    parts = [part.strip() for part in _text(value, "'first;second'").split(";")]
    return parts[:-1] if parts[-1] == "" else parts


def _checked(word: str, allowed: tuple[str, ...]) -> str:
    if word not in allowed:
        hint = nearest(word, allowed)
        raise Refusal(f"{word!r} is not possible", hint if hint.startswith("did") else f"use {' or '.join(allowed)}")
    return word


def choice(*allowed: str) -> BeforeValidator:
    """One of some words, written exactly so."""
    return BeforeValidator(lambda value: _checked(_text(value, "one word"), allowed))


def choices(*allowed: str, optional: bool = False) -> BeforeValidator:
    """A ``;`` list of words, one an input; entries may be empty where ``optional``."""
    return BeforeValidator(
        lambda value: tuple("" if optional and not part else _checked(part, allowed) for part in _split(value))
    )


def _names(value: Any) -> tuple[str, ...]:
    parts = _split(value)
    if "" in parts:
        raise Refusal("has an empty entry between two ';'", "remove it")
    twice = next((part for part in parts if parts.count(part) > 1), None)
    if twice is not None:
        raise Refusal(f"names {twice} twice", "remove one")
    return tuple(parts)


def numbers(example: str) -> BeforeValidator:
    """One value, or one a channel with spaces between; ``;`` between inputs; ``None`` for an input without."""

    def parse(value: Any) -> Numbers:
        if isinstance(value, tuple):
            return tuple(None if entry is None else tuple(map(float, entry)) for entry in value)
        if isinstance(value, (list, dict, bool)):
            raise Refusal(f"{value!r} is not of the form that hb_mapper reads", f"write '{example}'")
        return tuple(None if part == "None" else _channels(part, example) for part in _split(value))

    return BeforeValidator(parse)


def _channels(text: str, example: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split())
    except ValueError as error:
        remedy = "separate channels by spaces" if "," in text else f"write '{_divided(text) or example}'"
        raise Refusal(f"{text!r} is no number", remedy) from error
    if not values or not all(math.isfinite(value) for value in values):
        raise Refusal(f"{text!r} is no finite number", "write one value, or one a channel")
    return values


def _divided(text: str) -> str:
    """Fractions such as ``1/255``, which hb_mapper does not read, as decimal numbers; empty for anything else."""
    try:
        return " ".join(f"{float(Fraction(part)):.13g}" for part in text.split())
    except (ValueError, ZeroDivisionError):
        return ""


def _shapes(value: Any) -> tuple[tuple[int, ...], ...]:
    """``1x3x640x640``, with ``;`` between inputs."""
    if isinstance(value, tuple):
        return value
    result = []
    for part in _split(value):
        sizes = part.lower().split("x")
        if not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
            raise Refusal(f"{part!r} is no shape", "write '1x3x640x640'")
        result.append(tuple(map(int, sizes)))
    return tuple(result)


def _node_types(value: Any) -> dict[str, str]:
    """``'n1:int16;n2:int16'``, node to the type of its outputs; a node's own name may hold ``:``."""
    if isinstance(value, Mapping):
        return {str(name): _checked(str(kind), _INTEGER_TYPES) for name, kind in value.items()}
    pairs = {}
    for part in _split(value):
        name, separator, kind = part.rpartition(":")
        if not separator or not name.strip():
            raise Refusal(f"{part!r} is not understood", "write 'node:int16;other:int16'")
        pairs[name.strip()] = _checked(kind.strip(), _INTEGER_TYPES)
    return pairs


def _node_table(value: Any) -> dict[str, dict[str, str]]:
    """``node_info`` in both spellings: a table, or ``'n1:int16;n2:int16'``."""
    if not isinstance(value, Mapping):
        return {name: {"OutputType": kind} for name, kind in _node_types(value).items()}
    return {str(name): _one_node(str(name), entry) for name, entry in value.items()}


def _one_node(name: str, entry: Any) -> dict[str, str]:
    if not isinstance(entry, Mapping):
        raise Refusal(f"{name} has {entry!r}", "write {'ON': 'BPU', 'InputType': 'int16', 'OutputType': 'int16'}")
    info: dict[str, str] = {}
    for key, value in entry.items():
        if key is True:
            raise Refusal(f"{name} has the key true", "write 'ON' in quotes, YAML reads ON as true")
        if re.fullmatch(r"OutputType\d+", str(key)):
            raise Refusal(f"{name} has {key}", "OutputType applies to all outputs of a node")
        if not re.fullmatch(r"ON|OutputType|InputType\d*", str(key)):
            raise Refusal(f"{name} has {key!r}", nearest(str(key), ("ON", "InputType", "InputType0", "OutputType")))
        info[str(key)] = _checked(str(value), ("BPU", "CPU") if key == "ON" else _INTEGER_TYPES)
    if info.get("ON") == "CPU" and len(info) > 1:
        raise Refusal(f"{name} is on the CPU and has integer types", "remove its types, the CPU computes in float")
    return {key: info[key] for key in sorted(info, key=_place)}


def _place(key: str) -> tuple[int, int]:
    """Of a key of ``node_info``: ON, InputType, InputType0, InputType1, ..., OutputType."""
    stem = key.rstrip("0123456789")
    return ("ON", "InputType", "OutputType").index(stem), int(key.removeprefix(stem) or -1)


def _sources(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise Refusal(f"{value!r} is no table", "write {'images': 'pyramid'}")
    return {str(name): _checked(str(kind), ("ddr", "pyramid", "resizer")) for name, kind in value.items()}


def _optimizations(value: Any) -> tuple[str, ...]:
    """A comma list of known entries."""
    parts = value
    if not isinstance(value, tuple):
        parts = [part.strip() for part in re.split("[,;]", _text(value, "'first,second'")) if part.strip()]
    for part in parts:
        operator_type(part)
    return tuple(parts)


def operator_type(entry: str) -> tuple[str, str, str] | None:
    """``set_Softmax_output_int16`` to (``"Softmax"``, ``"output"``, ``"int16"``); ``None`` for entries of no operator.

    Raises:
        Refusal: it is something else.
    """
    if entry in _OPTIMIZATIONS:
        return None
    match = _OPERATOR_TYPE.fullmatch(entry)
    if match is None:
        raise Refusal(f"{entry!r} is unknown", nearest(entry, (*_OPTIMIZATIONS, "set_Softmax_input_int8")))
    operator, side, kind = match.groups()
    if not operator[0].isupper():
        raise Refusal(f"{entry!r} names no operator", f"ONNX names begin with a capital: {operator.capitalize()}?")
    return operator, side, kind


class March(NamedTuple):
    """What the tool accepts for one architecture."""

    board: str  # where it is built in, in the vendor's words
    int16: bool  # tensors may have 16 bits
    cores: int  # of the BPU
    planar_yuv444: bool = True  # yuv444 may be fed as NCHW


#: Architectures that hb_mapper compiles for; each is also the name of a target.
MARCHES = {
    "bernoulli2": March("X3", False, 2, False), "bayes": March("Ultra", True, 2), "bayes-e": March("X5", True, 1),
}  # fmt: skip
_OTHER_TOOL = ("nash-e", "nash-m", "nash-p")


def _march(value: Any) -> str:
    name = str(value)
    if name in _OTHER_TOOL:
        raise Refusal(f"{name} is compiled by hb_compile, not by hb_mapper", f"use {', '.join(MARCHES)}")
    if name not in MARCHES:
        known = ", ".join(f"{march} = {rules.board}" for march, rules in MARCHES.items())
        same = re.sub(r"[\W_]", "", name.lower()) in {march.replace("-", "") for march in MARCHES}
        raise Refusal(f"{name!r} is unknown", nearest(name, MARCHES) if same else f"write that of your board: {known}")
    return name


Text = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Chip = Annotated[str, BeforeValidator(_march)]
Shapes = Annotated[tuple[tuple[int, ...], ...], BeforeValidator(_shapes)]
NodeTypes = Annotated[dict[str, str], BeforeValidator(_node_types)]
NodeTable = Annotated[dict[str, dict[str, str]], BeforeValidator(_node_table)]
Sources = Annotated[dict[str, str], BeforeValidator(_sources)]
Optimizations = Annotated[tuple[str, ...], BeforeValidator(_optimizations)]


def written(value: Any) -> Any:
    """A parsed value in hb_mapper's spelling."""
    if not isinstance(value, tuple):
        return value
    if len(value) == 1 and isinstance(value[0], tuple) and len(value[0]) == 1:
        return value[0][0]  # one number for one input
    return ";".join(_entry(entry) for entry in value)


def _entry(entry: Any) -> str:
    """One input's part of a list; ``None`` is the vendor's word for an input without mean or scale."""
    if not isinstance(entry, tuple):
        return str(entry)
    shape = all(isinstance(number, int) for number in entry)
    return "x".join(map(str, entry)) if shape else " ".join(map(repr, entry))


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
        yield "calibration_type", "load takes ranges out of the model", "use default, kl or max"
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
    _model_file, _input_counts, _formats, _image_shapes, _normalisation, _calibration_data, _int16, _nodes,
    _optimization, _compiler, _input_sources,
)  # fmt: skip
