"""hb_mapper's YAML: one table of every key, by which files are read strictly, translated both ways and written.

Keys, values and defaults are those of the vendor's public documentation of ``hb_mapper makertbin`` (OpenExplorer 1.2.8
for RDK X5, with X3 and Ultra). Where its pages disagree, what either of them accepts is accepted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from narrowcast.base.errors import UserError, nearest
from narrowcast.base.reading import read_yaml, reading
from narrowcast.bundle.settings import PATHS, Dialect, QuantizeSettings, explained, settings_text
from narrowcast.chips.rdk import hb_settings as to
from narrowcast.chips.rdk import hb_values as form
from narrowcast.chips.rdk.hb_settings import OLDER, Ours, compiler, kept, same
from narrowcast.chips.rdk.hb_values import CHECKS, MARCHES, Refusal, choice, choices, numbers, unsupported, written

__all__ = [
    "DIALECT", "Converted", "HbMapperConfig", "convert", "from_settings", "is_hb_mapper", "parse_hb_mapper",
    "to_values", "write_hb_mapper",
]  # fmt: skip

Words = tuple[str, ...]
_TYPES = choices("float32", "uint8", "int32", "int16", "int8")
_REMOVABLE = choices("Quantize", "Dequantize", "Transpose", "Cast", "Reshape", "Softmax")
_SEARCHES = choice("default", "mix", "kl", "max", "load", "skip")
_MODES = choice("latency", "bandwidth", "balance")
_NORMS = choices("no_preprocess", "data_mean", "data_scale", "data_mean_and_scale")


class _Group(BaseModel):
    """Rows of the table: key, type and how it is written, what it is among our settings, default, meaning."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _empty_means_default(cls, data: Any) -> Any:
        """hb_mapper's own templates leave keys empty; that is the same as leaving them out."""
        if not isinstance(data, Mapping):
            return data
        return {key: value for key, value in data.items() if value is not None and value != ""}


class ModelParameters(_Group):
    """What is compiled, for which chip."""

    onnx_model: Annotated[form.Text | None, same("model")] = None
    prototxt: form.Text | None = None  # of Caffe, which narrowcast does not read
    caffe_model: form.Text | None = None
    march: Annotated[form.Chip, same("target")]
    output_model_file_prefix: Annotated[form.Text, Ours(write=lambda ours: ours.out.name)] = "model"
    working_dir: Annotated[form.Text, Ours(to.read_out, lambda ours: ours.out.parent)] = "model_output"
    layer_out_dump: Annotated[bool, kept()] = False
    output_nodes: Annotated[form.Names, same("output_nodes")] = Field(default=(), max_length=32)
    remove_node_type: Annotated[Words, _REMOVABLE, Ours(to.read_removed, lambda ours: ours.remove)] = ()
    remove_node_name: Annotated[form.Names, same("remove_nodes")] = ()
    set_node_data_type: form.NodeTypes = {}  # of older versions; read with node_info
    node_info: Annotated[form.NodeTable, Ours(to.read_nodes, to.write_nodes)] = {}
    debug_mode: Annotated[str | None, choice("dump_calibration_data"), kept()] = None
    log_level: Annotated[form.Text | None, kept(sentence=OLDER)] = None


class InputParameters(_Group):
    """What the board feeds and what the float model eats; one entry an input."""

    input_name: Annotated[form.Names, same("input_name", each=True)] = ()
    input_type_train: Annotated[
        Words, choices("rgb", "bgr", "yuv444", "gray", "featuremap"),
        Ours(to.read_pixels, lambda ours: ours.color or "rgb"),
    ]  # fmt: skip
    input_layout_train: Annotated[Words, choices("NCHW", "NHWC"), same("layout", to.layout, each=True)]
    input_type_rt: Annotated[
        Words, choices("rgb", "bgr", "yuv444", "nv12", "gray", "featuremap"),
        Ours(to.read_feed, lambda ours: "nv12" if to.nv12(ours) else ours.color or "rgb"),
    ]  # fmt: skip
    input_layout_rt: Annotated[
        Words, choices("NCHW", "NHWC", optional=True), kept(lambda ours: None if to.nv12(ours) else to.layout(ours))
    ] = ()
    input_space_and_range: Annotated[
        Words, choices("regular", "bt601_video", optional=True),
        Ours(write=lambda ours: next((name for name, camera in to.CAMERAS.items() if camera == ours.camera), None)),
    ] = ()  # fmt: skip
    input_shape: Annotated[form.Shapes, Ours(to.read_size, to.write_shape)] = ()
    input_batch: Annotated[int, kept()] = Field(default=1, ge=1, le=4096)
    norm_type: Annotated[Words, _NORMS, Ours(write=to.write_norm)] = ()
    mean_value: Annotated[form.Numbers, numbers("123.675 116.28 103.53"), Ours(write=to.write_numbers("mean"))] = ()
    scale_value: Annotated[form.Numbers, numbers("0.003921568627451"), Ours(write=to.write_numbers("scale"))] = ()

    def columns(self) -> dict[str, tuple[tuple[Any, ...], bool]]:
        """Keys with one entry an input, except for the name: their entries, and whether they must be there."""
        keys = (key for key in type(self).model_fields if key not in ("input_name", "input_batch"))
        return {key: (getattr(self, key), type(self).model_fields[key].is_required()) for key in keys}


class CalibrationParameters(_Group):
    """Which data, which ranges, which types."""

    cal_data_dir: Annotated[form.Names, Ours(to.read_data, lambda ours: ours.images)] = ()
    cal_data_type: Annotated[Words, _TYPES, Ours(write=lambda ours: ours.calibration_data.removeprefix("images"))] = ()
    preprocess_on: Annotated[bool, Ours(write=lambda ours: ours.calibration_data == "images" or None)] = False
    calibration_type: Annotated[
        str, _SEARCHES, Ours(to.read_ranges, lambda ours: to.TYPES.get(ours.method, "default"))
    ] = "default"
    max_percentile: Annotated[float, Ours(write=to.write_share)] = Field(default=1.0, gt=0, le=1)
    per_channel: bool = False
    run_on_cpu: form.Names = ()
    run_on_bpu: form.Names = ()
    optimization: Annotated[form.Optimizations, Ours(to.read_optimization, to.write_optimization)] = ()


class CompilerParameters(_Group):
    """For the vendor's compiler; nothing here changes a number that the model computes."""

    compile_mode: Annotated[str, _MODES, compiler(lambda ours: "latency")] = "latency"
    balance_factor: Annotated[int | None, compiler()] = Field(default=None, ge=0, le=100)
    optimize_level: Annotated[str, choice("O0", "O1", "O2", "O3"), compiler(lambda ours: "O3")] = "O0"
    debug: Annotated[bool, compiler(lambda ours: False)] = True
    core_num: Annotated[int, compiler()] = Field(default=1, ge=1, le=2)
    input_source: Annotated[form.Sources, compiler()] = {}
    max_time_per_fc: Annotated[int, compiler()] = Field(default=0, ge=0, le=4294967295)
    jobs: Annotated[int | None, compiler()] = Field(default=None, ge=1)
    advice: Annotated[int, compiler()] = Field(default=0, ge=0)


class CustomOp(_Group):
    """Operators of the user's own, on the CPU, which narrowcast does not take."""

    custom_op_method: Annotated[str | None, choice("register")] = None
    op_register_files: form.Names = ()
    custom_op_dir: form.Text | None = None


#: The groups and their rows, in the order in which people write them.
GROUPS: dict[str, type[_Group]] = {
    "model_parameters": ModelParameters,
    "input_parameters": InputParameters,
    "calibration_parameters": CalibrationParameters,
    "compiler_parameters": CompilerParameters,
    "custom_op": CustomOp,
}
#: The order in which files are translated.
_READ = ("compiler_parameters", "input_parameters", "calibration_parameters", "model_parameters")


def _group_of(key: str) -> str | None:
    return next((group for group, rows in GROUPS.items() if key in rows.model_fields), None)


def _rows(group: str) -> Iterator[tuple[str, Ours]]:
    for key, field in GROUPS[group].model_fields.items():
        yield from ((key, entry) for entry in field.metadata if isinstance(entry, Ours))


class Input(NamedTuple):
    """What a file says of one input, empty where nothing: entries of the keys of ``input_parameters``."""

    eaten: str
    layout: str
    feed: str
    fed_layout: str
    space: str
    shape: tuple[int, ...]
    norm: str
    mean: tuple[float, ...] | None
    scale: tuple[float, ...] | None

    @property
    def size(self) -> tuple[int, int, int] | None:
        """Channels, height and width of a 4-D shape."""
        if len(self.shape) != 4:
            return None
        _, *sides = self.shape
        return (sides[0], sides[1], sides[2]) if self.layout == "NCHW" else (sides[2], sides[0], sides[1])


class HbMapperConfig(BaseModel):
    """One hb_mapper YAML file, validated as a whole: see :func:`parse_hb_mapper`.

    Built in Python, values may be in the vendor's spelling (``"a;b"``) or parsed (``("a", "b")``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_parameters: ModelParameters
    input_parameters: InputParameters
    calibration_parameters: CalibrationParameters
    compiler_parameters: CompilerParameters
    custom_op: CustomOp | None = None

    @model_validator(mode="before")
    @classmethod
    def _empty_group(cls, data: Any) -> Any:
        """``calibration_parameters:`` with nothing below it is a group with defaults."""
        if not isinstance(data, Mapping):
            return data
        given = {key: value for key, value in data.items() if key != "custom_op" or value}
        return {key: {} if value is None and key in GROUPS else value for key, value in given.items()}

    @model_validator(mode="after")
    def _check(self) -> HbMapperConfig:
        problem = next(chain.from_iterable(check(self) for check in CHECKS), None)
        if problem is not None:
            key, what, remedy = problem
            raise Refusal(what, remedy, key)
        return self

    @property
    def march(self) -> str:
        """The chip, by the name of its architecture."""
        return self.model_parameters.march

    @property
    def count(self) -> int:
        """How many inputs the file describes."""
        return len(self.input_parameters.input_type_rt)

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        """What is said of each input."""
        empty = Input("", "", "", "", "", (), "", None, None)
        columns = [entries for entries, _ in self.input_parameters.columns().values()]
        return tuple(
            Input._make(entries[row] if entries else none for entries, none in zip(columns, empty, strict=True))
            for row in range(self.count)
        )


def is_hb_mapper(data: Mapping[str, Any]) -> bool:
    """Whether settings have hb_mapper's form: at least one of its groups is there."""
    return any(group in data for group in GROUPS)


def parse_hb_mapper(data: Mapping[str, Any], where: str = "hb_mapper YAML") -> HbMapperConfig:
    """Validate settings in hb_mapper's form.

    Args:
        data: the file's contents.
        where: names the file in messages.

    Raises:
        UserError: an unknown key (with the nearest known one, or the group where it belongs), an impossible value, or
            values that contradict each other. One line, naming the key.
    """
    try:
        return HbMapperConfig.model_validate(data)
    except ValidationError as error:
        raise _explained(error.errors()[0], where) from error


def _explained(problem: Any, where: str) -> UserError:
    path = [str(part) for part in problem["loc"][:2]]
    kind, refusal = problem["type"], problem.get("ctx", {}).get("error")
    if isinstance(refusal, Refusal):
        return _refused(where, refusal, path)
    name = ".".join(path)
    if kind == "extra_forbidden":
        group = _group_of(path[-1])
        known = GROUPS if len(path) == 1 else GROUPS[path[0]].model_fields
        remedy = f"it belongs below {group}" if group is not None else nearest(path[-1], known)
        return UserError(f"{where}: {name} is no key of hb_mapper", remedy)
    if kind == "missing":
        what = "group" if len(path) == 1 else "key"
        return UserError(f"{where}: the {what} {name} is missing", "hb_mapper needs it")
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return UserError(f"{where}: {name} is no table", "write its keys below it, indented")
    return UserError(f"{where}: {name}: {problem['msg']}", "see docs/rdk-x5.md")


def _refused(where: str, refusal: Refusal, path: Sequence[str]) -> UserError:
    path = [_group_of(refusal.key) or "", refusal.key] if refusal.key else path
    return UserError(f"{where}: {'.'.join(filter(None, path))}: {refusal.what}", refusal.remedy)


def write_hb_mapper(config: HbMapperConfig) -> str:
    """YAML text in hb_mapper's spelling: what was given, and what differs from the defaults.

    Reading it back gives an equal config.
    """
    data: dict[str, dict[str, Any]] = {}
    for group, rows in GROUPS.items():
        if (values := getattr(config, group)) is not None:
            defaults = {key: field.default for key, field in rows.model_fields.items()}
            told = {key: getattr(values, key) for key in defaults}
            data[group] = {
                key: written(value)
                for key, value in told.items()
                if key in values.model_fields_set or value != defaults[key]
            }
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000))


def to_values(
    config: HbMapperConfig, folder: Path, where: str = "hb_mapper YAML", given: Collection[str] = ()
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Our settings, not validated yet.

    Args:
        config: from :func:`parse_hb_mapper`.
        folder: relative paths are relative to it.
        where: names the file in messages.
        given: settings that come from elsewhere and win.

    Returns:
        The settings, and what a person should know: keys without influence here, and approximations.

    Raises:
        UserError: a key asks for what narrowcast does not do; the reason is in the message.
    """
    for key, what, remedy in unsupported(config, given):
        raise _refused(where, Refusal(what, remedy, key), ())
    values: dict[str, Any] = {}
    notes: list[str] = []
    kept: dict[str, list[str]] = {}
    for group in _READ:
        entries = getattr(config, group)
        for key, ours in _rows(group):
            value = getattr(entries, key)
            for told in ours.read(config, value) if ours.read is not None else ():
                if isinstance(told, str):
                    notes.append(told)
                else:
                    values[told[0]] = folder / told[1] if told[0] in PATHS else told[1]
            said = key in entries.model_fields_set and (ours.always or value != GROUPS[group].model_fields[key].default)
            if ours.kept and said:
                kept.setdefault(ours.kept, []).append(key)
    return values, (*notes, *(sentence.format(", ".join(keys)) for sentence, keys in kept.items()))


def from_settings(settings: QuantizeSettings) -> tuple[HbMapperConfig, tuple[str, ...]]:
    """Our settings as an hb_mapper file; paths are written as they are.

    Returns:
        The config, and what it cannot say.

    Raises:
        UserError: the target is none of hb_mapper's, or a node is given by a pattern.
    """
    if settings.target not in MARCHES:
        raise UserError(f"hb_mapper does not compile for {settings.target}", f"use {', '.join(MARCHES)}")
    data: dict[str, dict[str, Any]] = {}
    for group in GROUPS:
        told = {key: ours.write(settings) for key, ours in _rows(group) if ours.write is not None}
        told = {key: value.as_posix() if isinstance(value, Path) else value for key, value in told.items()}
        data[group] = {key: value for key, value in told.items() if value not in (None, "", (), {})}
    return parse_hb_mapper(data, "the converted file"), tuple(to.unsaid(settings))


def _read(data: Mapping[str, Any], file: Path, given: frozenset[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    return to_values(parse_hb_mapper(data, str(file)), file.parent, str(file), given)


#: For ``quantize --config``.
DIALECT = Dialect(is_hb_mapper, _read, "docs/rdk-x5.md")


class Converted(NamedTuple):
    """A settings file in the other form."""

    text: str  # YAML
    form: Literal["narrowcast", "hb_mapper"]  # whose it is now
    notes: tuple[str, ...]  # what was approximated or could not be said


def convert(file: Path) -> Converted:
    """Write a settings file in the other form: hb_mapper's becomes ours, ours becomes hb_mapper's.

    Args:
        file: YAML; relative paths in it stay as they are, so the result belongs beside it.

    Raises:
        UserError: the file is wrong, or asks for what the other form cannot say.
    """
    data, notes = read_yaml(file)
    with reading(file, f"see {DIALECT.page}", "is not understood"):
        theirs = is_hb_mapper(data)
        try:
            if theirs:
                values, told = to_values(parse_hb_mapper(data, str(file)), Path())
                notes, text = (*notes, *told), settings_text(QuantizeSettings.model_validate(values))
            else:
                config, notes = from_settings(QuantizeSettings.model_validate(data))
                text = write_hb_mapper(config)
        except ValidationError as error:
            raise explained(error.errors()[0], file) from error
    return Converted("".join(f"# {note}\n" for note in notes) + text, "narrowcast" if theirs else "hb_mapper", notes)
