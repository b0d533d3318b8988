"""What hb_mapper's keys are among our settings, both ways, as the rows of the table in ``hb_mapper.py`` name it.

Reading gives pairs of a setting and its value, and sentences that a person should know; paths are the file's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from narrowcast.base.errors import UserError
from narrowcast.bundle.settings import QuantizeSettings
from narrowcast.chips.rdk.hb_values import operator_type

if TYPE_CHECKING:
    from narrowcast.chips.rdk.hb_mapper import HbMapperConfig

__all__ = ["COMPILER", "OLDER", "UNSAID", "Ours", "compiler", "kept", "same", "unsaid"]

Told = Iterator[tuple[str, Any] | str]

#: What a person hears of keys that change no number here.
COMPILER = "for the vendor's compiler only, without influence here: {}"
OLDER = "{} is a key of older versions of hb_mapper, without influence here"
#: input_space_and_range to our word for the camera.
CAMERAS = {"regular": "nv12-full", "bt601_video": "nv12-studio"}
_DEFAULT_SCALE = 1 / 255
#: hb_mapper's own tools name raw folders so when the type is not given.
_FLOAT_FOLDER = "_f32"
#: calibration_type by our method; ``default`` for the others.
TYPES = {"kl": "kl", "minmax": "max", "percentile": "max"}
#: Entries of ``optimization`` that are settings of the same meaning.
_FLAGS = {"set_all_nodes_int16": "all_int16", "asymmetric": "asymmetric", "bias_correction": "bias_correction"}
#: Settings for which hb_mapper has no key.
UNSAID = ("limit", "plan", "runtime", "threads", "keep_head", "head", "attention", "effort", "output_factors")


@dataclass(frozen=True)
class Ours:
    """What a key is among our settings.

    Attributes:
        read: what the file and the key's value mean.
        write: the key's value by our settings; ``None`` and empty values are not written.
        kept: of a key that changes no number: the sentence about such keys.
        always: it is said of the default too.
    """

    read: Callable[[HbMapperConfig, Any], Told] | None = None
    write: Callable[[QuantizeSettings], Any] | None = None
    kept: str = ""
    always: bool = False


def same(name: str, write: Callable[[QuantizeSettings], Any] | None = None, *, each: bool = False) -> Ours:
    """The setting of this name has the same value, or that of ``each`` input, of which there is one."""

    def read(config: HbMapperConfig, value: Any) -> Told:
        yield from ((name, entry) for entry in (value if each else [value]) if entry)

    return Ours(read, write or (lambda ours: getattr(ours, name)))


def kept(write: Callable[[QuantizeSettings], Any] | None = None, sentence: str = COMPILER) -> Ours:
    """A key that changes no number here."""
    return Ours(write=write, kept=sentence)


def compiler(write: Callable[[QuantizeSettings], Any] | None = None) -> Ours:
    """A key for the vendor's compiler, told even where it has its default."""
    return Ours(write=write, kept=COMPILER, always=True)


def unsaid(ours: QuantizeSettings) -> Iterator[str]:
    """What hb_mapper's keys cannot say of our settings, or say in another way."""
    if ours.color is None:
        yield "color is not given: rgb is written"
    if ours.mean is None and ours.scale is None:
        yield "mean and scale are not given: scale 1/255 is written; see 'narrowcast inspect' for the model's"
    if ours.calibration_data == "images" and ours.resize != "stretch":
        yield "the vendor's tool stretches pictures; for another resize write calibration files first"
    if ours.method not in ("auto", *TYPES):
        yield f"hb_mapper has no method {ours.method}: default is written"
    fields = QuantizeSettings.model_fields
    others = [key for key in UNSAID if getattr(ours, key) != fields[key].default]
    if others:
        yield f"hb_mapper has no word for {', '.join(others)}"


def read_out(config: HbMapperConfig, folder: str) -> Told:
    yield "out", Path(folder, config.model_parameters.output_model_file_prefix)


def read_removed(config: HbMapperConfig, kinds: tuple[str, ...]) -> Told:
    if "Quantize" in kinds:
        yield "remove_node_type: the Quantize node of an image belongs to the board's preprocessing and stays"
    if others := tuple(kind for kind in kinds if kind != "Quantize"):
        yield "remove", others


def read_nodes(config: HbMapperConfig, table: dict[str, dict[str, str]]) -> Told:
    """Where nodes run and in which types: ``node_info``, and the older keys that say parts of it."""
    data = config.calibration_parameters
    told = [(name, {"OutputType": kind}) for name, kind in config.model_parameters.set_node_data_type.items()]
    told += [(name, {"ON": unit}) for unit in ("CPU", "BPU") for name in getattr(data, f"run_on_{unit.lower()}")]
    found: dict[str, dict[str, None]] = {"int16": {}, "int8": {}, "float": {}, "int16_inputs": {}}
    for name, info in (*told, *table.items()):
        unit, output = info.get("ON"), info.get("OutputType")
        if unit == "CPU":
            found["float"][name] = None
        elif output is not None or unit == "BPU":
            found[output or "int8"][name] = None
        for key, kind in info.items():
            if key.startswith("InputType") and kind == "int16":
                index = key.removeprefix("InputType")
                found["int16_inputs"][f"{name}#{index}" if index else name] = None
    found["int8"] = {name: None for name in found["int8"] if name not in found["int16"]}
    yield from ((key, tuple(names)) for key, names in found.items() if names)


def write_nodes(ours: QuantizeSettings) -> dict[str, dict[str, str]]:
    table: dict[str, dict[str, str]] = {}
    for key, names in (("int16", ours.int16), ("int8", ours.int8), ("float", ours.float_)):
        for name in names:
            if any(mark in name for mark in "*?["):
                raise UserError(f"{key}: hb_mapper knows no patterns such as {name}", "name the nodes")
            table[name] = {"ON": "CPU"} if key == "float" else {"ON": "BPU", "OutputType": key}
    for entry in ours.int16_inputs:
        name, _, index = entry.rpartition("#")
        if not name or not index.isdecimal():
            name, index = entry, ""
        table.setdefault(name, {})[f"InputType{index}"] = "int16"
    return table


def read_pixels(config: HbMapperConfig, value: tuple[str, ...]) -> Told:
    """What the float model eats: colour, mean and scale."""
    entry = config.inputs[0]
    if entry.eaten != "featuremap":
        yield "color", entry.eaten
    norm = entry.norm or "no_preprocess"
    for word, numbers, without in (("mean", entry.mean, (0.0,)), ("scale", entry.scale, (1.0,))):
        yield word, (numbers or without) if word in norm else without
        if word not in norm and {*(numbers or without)} != {*without}:
            yield f"{word}_value is not used, because norm_type is {norm}"


def numbers(ours: QuantizeSettings) -> dict[str, tuple[float, ...]]:
    """The mean, the scale, or both: what hb_mapper must be told."""
    given = {"mean": _numbers(ours.mean), "scale": _numbers(ours.scale)}
    if ours.mean is None and ours.scale is None:
        given["scale"] = (_DEFAULT_SCALE,)
    return {word: values for word, values in given.items() if {*values} - {0 if word == "mean" else 1}}


def _numbers(value: str | float | tuple[float, ...] | None) -> tuple[float, ...]:
    if isinstance(value, str):
        return tuple(float(part) for part in value.replace(",", " ").split())
    return value if isinstance(value, tuple) else () if value is None else (float(value),)


def write_norm(ours: QuantizeSettings) -> str:
    words = "_and_".join(numbers(ours))
    return f"data_{words}" if words else "no_preprocess"


def write_numbers(word: str) -> Callable[[QuantizeSettings], Any]:
    """Of ``"mean"`` or ``"scale"``."""
    return lambda ours: tuple(values for known, values in numbers(ours).items() if known == word)


def read_feed(config: HbMapperConfig, value: tuple[str, ...]) -> Told:
    """What the board feeds."""
    entry = config.inputs[0]
    if entry.feed == "nv12":
        yield "camera", CAMERAS[entry.space or "regular"]
        if not entry.space:
            yield (
                "input_space_and_range is not given, so the board reads NV12 as full range (regular); "
                "OpenCV and most cameras write bt601_video"
            )
    elif entry.eaten != "featuremap":
        yield "camera", "rgb"
        if entry.feed != entry.eaten:
            yield f"the board converts {entry.feed} to {entry.eaten}: the rounding of that step is not simulated"


def nv12(ours: QuantizeSettings) -> bool:
    """Whether the board feeds NV12."""
    return ours.camera in CAMERAS.values()


def layout(ours: QuantizeSettings) -> str:
    """Of the model's input."""
    return ours.layout or "NCHW"


def read_size(config: HbMapperConfig, value: Any) -> Told:
    if (size := config.inputs[0].size) is not None:
        yield "size", f"{size[1]}x{size[2]}"


def write_shape(ours: QuantizeSettings) -> Any:
    if ours.size is None:
        return None
    height, _, width = ours.size.lower().partition("x")
    channels, sides = 1 if ours.color == "gray" else 3, (int(height), int(width or height))
    return ((1, channels, *sides) if layout(ours) == "NCHW" else (1, *sides, channels),)


def read_data(config: HbMapperConfig, folders: tuple[str, ...]) -> Told:
    """The calibration images and their type."""
    data = config.calibration_parameters
    if not folders:
        return
    yield "images", folders[0]
    if data.preprocess_on:
        yield "preprocess_on: pictures are stretched to the input, as the vendor's tool does"
        yield "resize", "stretch"
        return
    kind = data.cal_data_type[0] if data.cal_data_type else ""
    if not kind:
        kind = "float32" if Path(folders[0]).name.endswith(_FLOAT_FOLDER) else "uint8"
        yield f"cal_data_type is not given: {kind} by the name of {folders[0]}"
    yield "calibration_data", kind


def read_ranges(config: HbMapperConfig, kind: str) -> Told:
    """The calibration method."""
    data = config.calibration_parameters
    searched, whole = kind in ("default", "mix", "skip"), data.max_percentile == 1.0
    if kind != "max" and not whole:
        yield f"max_percentile is not used with calibration_type {kind}"
    asymmetric = "asymmetric" in data.optimization
    for key, asked in (("per_channel", data.per_channel), ("asymmetric", asymmetric)):
        if asked and searched:
            yield f"{key} is not used with calibration_type {kind}"
    if asymmetric and not searched:
        yield "asymmetric", True
    yield "method", {"kl": "kl", "max": "minmax" if whole else "percentile"}.get(kind, "auto")
    if kind == "max" and not whole:
        yield "percentile", round(100 * data.max_percentile, 10)
    if kind == "default":
        yield "search", "hb-mapper"
        yield "calibration_type default: 'auto' compares methods by the noise that they leave at the outputs"
    if kind == "mix":
        yield "calibration_type mix: the method 'auto' also chooses range by range, by its own measure"


def write_share(ours: QuantizeSettings) -> float | None:
    return {"minmax": 1.0, "percentile": round(ours.percentile / 100, 12)}.get(ours.method)


def read_optimization(config: HbMapperConfig, entries: tuple[str, ...]) -> Told:
    """Types by operator, and wishes for the whole model; ``asymmetric`` belongs to the calibration method."""
    operators: dict[str, dict[str, str]] = {}
    for entry in entries:
        if (found := operator_type(entry)) is not None:
            operators.setdefault(found[0], {})[found[1]] = found[2]
        elif entry.startswith("set_model_output_"):
            yield "outputs", entry.removeprefix("set_model_output_")
        elif entry == "lstm_batch_last":
            yield "lstm_batch_last has no influence here"
        elif entry != "asymmetric":
            yield _FLAGS[entry], True
    types: dict[str, tuple[str, ...]] = {}
    for operator, sides in operators.items():
        if sides.get("input") == "int16" and sides.get("output") != "int16":
            yield f"set_{operator}_input_int16: {operator} computes at 16 bits, its output too"
        key = "int16_operators" if "int16" in sides.values() else "int8_operators"
        types[key] = (*types.get(key, ()), operator)
    yield from types.items()


def write_optimization(ours: QuantizeSettings) -> tuple[str, ...]:
    entries = [f"set_{operator}_output_int16" for operator in ours.int16_operators]
    for operator in ours.int8_operators:
        entries += [f"set_{operator}_input_int8", f"set_{operator}_output_int8"]
    entries += [f"set_model_output_{ours.outputs}"] if ours.outputs else []
    return (*entries, *(entry for entry, name in _FLAGS.items() if getattr(ours, name)))
