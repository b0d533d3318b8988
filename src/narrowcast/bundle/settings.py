"""Every setting of ``quantize`` that a person can write, validated once, from a YAML file or the command line."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from narrowcast.base.errors import UserError, nearest
from narrowcast.base.reading import read_yaml, reading
from narrowcast.chips.vendors import offers
from narrowcast.ops.facts import removable

__all__ = [
    "Dialect", "QuantizeSettings", "check_input", "explained", "pinned_types", "read_settings",
    "settings_schema", "settings_text",
]  # fmt: skip

#: Settings that hold a path; relative ones are relative to the file that says them.
PATHS = ("model", "images", "out", "plan")
#: Settings that files may hold and that convert both ways, but that ``quantize`` refuses, with what to do instead.
REFUSED = {
    "outputs": "remove it; outputs leave in the chip's own type, which loses nothing, with scales in the manifest",
}
#: What ``remove`` takes; the first two are the normal state of an exact integer graph.
ALWAYS_REMOVED = ("Quantize", "Dequantize")
REMOVABLE = (*ALWAYS_REMOVED, *removable())


class QuantizeSettings(BaseModel):
    """Settings of one ``quantize`` run; names as the options of the command line, with ``_`` for ``-``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path = Field(description="float model: ONNX file, or .pt with the user's own 'yolo' command")
    images: Path = Field(description="calibration images: a folder, a list file or a .npy batch of model inputs")
    calibration_data: Literal["images", "float32", "uint8", "int8", "int16", "int32"] = Field(
        default="images",
        description="what 'images' holds: pictures, or files without header of that type in the shape of the model's "
        "input, in its colour and layout, pixels 0..255 before mean and scale",
    )
    out: Path = Field(description="folder to write")
    target: str = Field(default="onnx", description="chip: a name or the path of a target file")
    method: Literal["auto", "minmax", "mean-minmax", "percentile", "kl", "mse", "lp"] = Field(
        default="auto", description="how ranges are found; auto measures several"
    )
    percentile: float = Field(default=99.99, gt=50, le=100, description="for the method 'percentile', percent")
    effort: Literal["fast", "standard", "max"] = Field(
        default="standard",
        description="fast: ranges only; standard: also corrects weights, biases and outputs if it helps; max: longer",
    )
    output_factors: bool | None = Field(
        default=None, description="outputs may leave with a scale a channel; by default where the chip's readers can"
    )
    search: Literal["auto", "hb-mapper"] = Field(
        default="auto",
        description="what the method 'auto' tries; hb-mapper: also max and kl with percentiles 99.995 and 100",
    )
    asymmetric: bool = Field(default=False, description="free zero points although the chip's default is 0")
    bias_correction: bool = Field(default=False, description="correct the mean error of each channel in the biases")
    limit: int | None = Field(default=None, ge=1, description="use at most this many images")
    plan: Path | None = Field(default=None, description="edited plan.json")
    int16: tuple[str, ...] = Field(default=(), description="nodes or patterns to run at 16 bits")
    int8: tuple[str, ...] = Field(default=(), description="nodes or patterns to run at 8 bits, on the chip")
    float_: tuple[str, ...] = Field(default=(), alias="float", description="nodes or patterns to leave in float")
    int16_inputs: tuple[str, ...] = Field(
        default=(), description="nodes that read at 16 bits; 'node#1' is only its second input"
    )
    int16_operators: tuple[str, ...] = Field(default=(), description="ONNX operators to run at 16 bits")
    int8_operators: tuple[str, ...] = Field(default=(), description="ONNX operators to run at 8 bits, on the chip")
    all_int16: bool = Field(default=False, description="16 bits wherever the chip can")
    outputs: Literal["int8", "int16"] | None = Field(default=None, description="type in which outputs leave")
    output_nodes: tuple[str, ...] = Field(default=(), description="nodes whose outputs are all the model's outputs")
    remove: tuple[str, ...] = Field(
        default=(), description="types of nodes to remove at the head or tail, in this order (Dequantize, Softmax, ...)"
    )
    remove_nodes: tuple[str, ...] = Field(default=(), description="nodes to remove at the head or tail, by name")
    input_name: str | None = Field(default=None, description="name of the model's input, only checked")
    size: str | None = Field(default=None, description="HEIGHTxWIDTH for a model with dynamic axes")
    mean: str | float | tuple[float, ...] | None = Field(
        default=None, description="pixel units, one value or one a channel"
    )
    scale: str | float | tuple[float, ...] | None = Field(default=None, description="factor after the mean")
    color: Literal["rgb", "bgr", "gray"] | None = Field(default=None, description="what the model eats")
    layout: Literal["NCHW", "NHWC"] | None = Field(default=None, description="of the model's input")
    resize: Literal["letterbox", "stretch", "center-crop"] | None = Field(
        default=None, description="how a picture gets the size of the input"
    )
    camera: Literal["rgb", "nv12-full", "nv12-studio"] | None = Field(
        default=None, description="send images through the board camera's format first"
    )
    keep_head: bool = Field(default=False, description="do not cut the decode arithmetic off")
    head: str = Field(
        default="",
        description="what raw outputs are, with commas between: a task, keypoints=17x3, outputs such as box_s8=output0",
    )
    attention: Literal["keep", "rewrite"] = Field(
        default="keep", description="rewrite: Softmax of attention as operators that stay on the chip"
    )
    runtime: str | None = Field(default=None, description="version of the chip's runtime")
    threads: int = Field(default=0, ge=0, description="threads of onnxruntime; 0 for all cores")


@dataclass(frozen=True)
class Dialect:
    """A vendor's form of settings files, which ``quantize`` takes as it is; vendors' folders offer ``DIALECTS``.

    Attributes:
        recognises: whether a file's content has this form.
        read: our settings, and what a person should know, from the content of a file whose relative paths are relative
            to it. The names of settings that come from elsewhere and win are given too.
        page: where it is described.
    """

    recognises: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Mapping[str, Any], Path, frozenset[str]], tuple[dict[str, Any], tuple[str, ...]]]
    page: str


def settings_schema() -> str:
    """JSON schema of ``narrowcast.yaml``, as text.

    Nothing is required in it, because whatever the file does not say may be given on the command line.
    """
    schema: dict[str, Any] = QuantizeSettings.model_json_schema(by_alias=True)
    schema.pop("required", None)
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "narrowcast.yaml",
        "description": "Settings of narrowcast quantize",
    }
    for name, entry in schema["properties"].items():
        entry.pop("title", None)
        if "format" in entry and entry["format"] == "path":  # no format that editors know
            del entry["format"]
        entry.setdefault("description", name)
    return json.dumps(schema, indent=2) + "\n"


def settings_text(settings: QuantizeSettings) -> str:
    """The settings as YAML, without what is the default."""
    data: dict[str, Any] = {}
    for name, field in QuantizeSettings.model_fields.items():
        value = getattr(settings, name)
        if field.is_required() or value != field.default:
            plain = value.as_posix() if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            data[field.alias or name] = plain
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110))


def pinned_types(
    settings: QuantizeSettings, nodes: Iterable[tuple[str, str, Sequence[str]]]
) -> tuple[dict[str, str], dict[str, str]]:
    """Types that the settings fix, by name.

    Args:
        settings: with ``int8``, ``int16``, ``float``, ``int8_operators``, ``int16_operators`` and ``int16_inputs``.
        nodes: name, operator and computed inputs (``""`` for constants) of every node, in graph order.

    Returns:
        Node (or pattern) to type, and tensor to type. What is written by name wins over operators, and a later
        entry over an earlier one, as :class:`narrowcast.plan.Pins` reads them.

    Raises:
        UserError: ``int16_inputs`` names no node or no computed input.
    """
    known = list(nodes)
    types: dict[str, str] = {}
    for operators, kind in ((settings.int8_operators, "int8"), (settings.int16_operators, "int16")):
        for operator in operators:
            found = [name for name, op_type, _ in known if op_type == operator]
            if not found:
                raise UserError(
                    f"no node of this model is a {operator}", nearest(operator, sorted({entry[1] for entry in known}))
                )
            types.update(dict.fromkeys(found, kind))
    for names, kind in ((settings.int8, "int8"), (settings.int16, "int16"), (settings.float_, "float32")):
        types.update(dict.fromkeys(names, kind))
    tensors: dict[str, str] = {}
    for entry in settings.int16_inputs:
        tensors.update(dict.fromkeys(_inputs(entry, known), "int16"))
    return types, tensors


def _inputs(entry: str, nodes: Sequence[tuple[str, str, Sequence[str]]]) -> list[str]:
    """Tensors that ``node`` or ``node#index`` reads."""
    pattern, separator, index = entry.rpartition("#")
    if not separator or not index.isdecimal():
        pattern, index = entry, ""
    matches = [inputs for name, _, inputs in nodes if name == pattern or fnmatch.fnmatchcase(name, pattern)]
    if not matches:
        raise UserError(f"no node of this model is named {pattern}", nearest(pattern, [name for name, _, _ in nodes]))
    if not index:
        return [tensor for inputs in matches for tensor in inputs if tensor]
    chosen = [inputs[int(index)] for inputs in matches if int(index) < len(inputs) and inputs[int(index)]]
    if not chosen:
        raise UserError(f"{pattern} has no computed input {index}", "count from 0, constants do not count as computed")
    return chosen


def check_input(settings: QuantizeSettings, name: str, shape: Sequence[int]) -> None:
    """Compare what the settings say of the input with the model.

    Args:
        settings: with ``input_name``, ``layout`` and ``size``, where given.
        name: of the model's input.
        shape: of the model's input, 4 axes.

    Raises:
        UserError: they disagree.
    """
    if settings.input_name not in (None, name):
        raise UserError(f"the settings name the input {settings.input_name}, the model's is {name}", "mend input_name")
    text = "x".join(map(str, shape))
    planar = shape[1] in (1, 3) or shape[3] not in (1, 3)
    if settings.layout is not None and (settings.layout == "NCHW") != planar:
        raise UserError(f"the settings say {settings.layout}, the model's input is {text}", "mend the layout")
    if settings.size is not None:
        height, _, width = settings.size.lower().partition("x")
        real = tuple(shape[2:] if planar else shape[1:3])
        if (height, width or height) != tuple(map(str, real)):
            raise UserError(f"the settings say {settings.size} pixels, the model's input is {text}", "mend the size")


def read_settings(file: Path | None, options: Mapping[str, Any]) -> tuple[QuantizeSettings, tuple[str, ...]]:
    """Settings from a YAML file with the command line's options on top.

    Args:
        file: YAML, ours or of a vendor's dialect; its relative paths are relative to the file.
        options: by field name (``float`` for nodes left in float); ``None`` and empty lists are not given.

    Returns:
        The settings, and what a person should know about a vendor's keys that have no influence here.

    Raises:
        UserError: an unknown key (with the nearest known one), an impossible value, something missing.
    """
    given = {key: value for key, value in options.items() if value is not None and value != []}
    values, notes = _from_file(file, given) if file is not None else ({}, ())
    if "images" in given and "calibration_data" not in given:
        values.pop("calibration_data", None)  # said of the file's own images
    values.update(given)
    try:
        settings = QuantizeSettings.model_validate(values)
    except ValidationError as error:
        raise explained(error.errors()[0], file) from error
    _check_supported(settings, file)
    return settings, notes


def _check_supported(settings: QuantizeSettings, file: Path | None) -> None:
    where = f"{file}: " if file is not None else ""
    for key in PATHS:
        if "\0" in str(getattr(settings, key)):
            raise UserError(f"{where}{key} holds a null character", "mend the path")
    for key, remedy in REFUSED.items():
        if getattr(settings, key):
            raise UserError(f"{where}{key} is understood, but quantize cannot do it", remedy)
    other = next((kind for kind in settings.remove if kind not in REMOVABLE), None)
    if other is not None:
        raise UserError(f"{where}remove: {other} nodes cannot be removed", nearest(other, REMOVABLE))


def _from_file(file: Path, given: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    data, written = read_yaml(file)
    dialects: tuple[Dialect, ...] = offers("DIALECTS")
    for dialect in dialects:
        if dialect.recognises(data):
            with reading(file, f"see {dialect.page}", "is not understood"):
                values, notes = dialect.read(data, file, frozenset(given))
            return values, (*written, *notes)
    for key in PATHS:
        if isinstance(data.get(key), str):
            data[key] = file.parent / data[key]
    return data, ()


def explained(problem: Any, file: Path | str | None) -> UserError:
    """One problem that pydantic found, as one line."""
    key = str(problem["loc"][0]) if problem["loc"] else "settings"
    where = f"{file}: {key}" if file is not None else f"--{key.replace('_', '-')}"
    if problem["type"] == "extra_forbidden":
        known = [field.alias or name for name, field in QuantizeSettings.model_fields.items()]
        return UserError(f"{where} is no setting", nearest(key, known))
    if problem["type"] == "missing":
        return UserError(f"{key} is not given", f"give it on the command line or in a --config file ({key}: ...)")
    return UserError(f"{where}: {problem['msg']}", "see narrowcast quantize --help")
