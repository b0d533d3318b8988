"""hb_mapper's YAML: four groups, every key, read strictly and written back.

Keys, values and defaults are those of the vendor's public documentation of ``hb_mapper makertbin`` (OpenExplorer 1.2.8
for RDK X5, with X3 and Ultra). Where its pages disagree, what either of them accepts is accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from narrowcast.base.errors import UserError, nearest
from narrowcast.base.yaml_files import read_yaml
from narrowcast.config import hb_checks
from narrowcast.config.hb_values import (
    NodeInfo,
    Refusal,
    choice,
    choices,
    names,
    node_table,
    node_types,
    numbers,
    optimizations,
    shapes,
    sources,
)

__all__ = ["GROUPS", "HbMapperConfig", "is_hb_mapper", "parse_hb_mapper", "read_hb_mapper", "write_hb_mapper"]

Names = Annotated[tuple[str, ...], names()]
Numbers = tuple[tuple[float, ...] | None, ...]


def _path(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


Text = Annotated[str, BeforeValidator(_path)]


class _Group(BaseModel):
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

    onnx_model: Text | None = None
    prototxt: Text | None = None
    caffe_model: Text | None = None
    march: Annotated[str, BeforeValidator(hb_checks.march)]
    output_model_file_prefix: Text = "model"
    working_dir: Text = "model_output"
    layer_out_dump: bool = False
    output_nodes: Names = Field(default=(), max_length=32)
    remove_node_type: Annotated[
        tuple[str, ...], choices("Quantize", "Dequantize", "Transpose", "Cast", "Reshape", "Softmax")
    ] = ()
    remove_node_name: Names = ()
    set_node_data_type: Annotated[dict[str, str], node_types()] = {}
    node_info: Annotated[dict[str, NodeInfo], node_table()] = {}
    debug_mode: Annotated[str | None, choice("dump_calibration_data")] = None
    log_level: Text | None = None  # of older versions of the tool


class InputParameters(_Group):
    """What the board feeds and what the float model eats; one entry an input."""

    input_name: Names = ()
    input_type_train: Annotated[tuple[str, ...], choices("rgb", "bgr", "yuv444", "gray", "featuremap")]
    input_layout_train: Annotated[tuple[str, ...], choices("NCHW", "NHWC")]
    input_type_rt: Annotated[tuple[str, ...], choices("rgb", "bgr", "yuv444", "nv12", "gray", "featuremap")]
    input_layout_rt: Annotated[tuple[str, ...], choices("NCHW", "NHWC", optional=True)] = ()
    input_space_and_range: Annotated[tuple[str, ...], choices("regular", "bt601_video", optional=True)] = ()
    input_shape: Annotated[tuple[tuple[int, ...], ...], shapes()] = ()
    input_batch: int = Field(default=1, ge=1, le=4096)
    norm_type: Annotated[
        tuple[str, ...], choices("no_preprocess", "data_mean", "data_scale", "data_mean_and_scale")
    ] = ()
    mean_value: Annotated[Numbers, numbers("123.675 116.28 103.53")] = ()
    scale_value: Annotated[Numbers, numbers("0.003921568627451")] = ()


class CalibrationParameters(_Group):
    """Which data, which ranges, which types."""

    cal_data_dir: Names = ()
    cal_data_type: Annotated[tuple[str, ...], choices("float32", "uint8", "int32", "int16", "int8")] = ()
    preprocess_on: bool = False
    calibration_type: Annotated[str, choice("default", "mix", "kl", "max", "load", "skip")] = "default"
    max_percentile: float = Field(default=1.0, gt=0, le=1)
    per_channel: bool = False
    run_on_cpu: Names = ()
    run_on_bpu: Names = ()
    optimization: Annotated[tuple[str, ...], optimizations()] = ()


class CompilerParameters(_Group):
    """For the vendor's compiler; nothing here changes a number that the model computes."""

    compile_mode: Annotated[str, choice("latency", "bandwidth", "balance")] = "latency"
    balance_factor: int | None = Field(default=None, ge=0, le=100)
    optimize_level: Annotated[str, choice("O0", "O1", "O2", "O3")] = "O0"
    debug: bool = True
    core_num: int = Field(default=1, ge=1, le=2)
    input_source: Annotated[dict[str, str], sources()] = {}
    max_time_per_fc: int = Field(default=0, ge=0, le=4294967295)
    jobs: int | None = Field(default=None, ge=1)
    advice: int = Field(default=0, ge=0)


class CustomOp(_Group):
    """Operators of the user's own, on the CPU."""

    custom_op_method: Annotated[str | None, choice("register")] = None
    op_register_files: Names = ()
    custom_op_dir: Text | None = None


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
        empty: dict[str, Any] = {}
        return {key: empty if value is None and key in GROUPS else value for key, value in given.items()}

    @model_validator(mode="after")
    def _check(self) -> HbMapperConfig:
        for check in hb_checks.CHECKS:
            check(self)
        return self

    @property
    def march(self) -> str:
        """The chip, by the name of its architecture."""
        return self.model_parameters.march

    @property
    def count(self) -> int:
        """How many inputs the file describes."""
        return len(self.input_parameters.input_type_rt)


#: The groups and their models, in the order in which people write them.
GROUPS: dict[str, type[_Group]] = {
    "model_parameters": ModelParameters,
    "input_parameters": InputParameters,
    "calibration_parameters": CalibrationParameters,
    "compiler_parameters": CompilerParameters,
    "custom_op": CustomOp,
}


def is_hb_mapper(data: Mapping[str, Any]) -> bool:
    """Whether settings have hb_mapper's form: at least one of its groups is there."""
    return any(group in data for group in GROUPS)


def read_hb_mapper(file: Path) -> HbMapperConfig:
    """Read and validate an hb_mapper YAML file.

    Raises:
        UserError: as :func:`parse_hb_mapper`, or it cannot be read.
    """
    return parse_hb_mapper(read_yaml(file)[0], str(file))


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
    path = [str(part) for part in problem["loc"]]
    kind = problem["type"]
    refusal = problem.get("ctx", {}).get("error")
    if isinstance(refusal, Refusal):
        path = [*path[:2], refusal.key] if refusal.key else path[:2]
        return UserError(f"{where}: {'.'.join(filter(None, path))}: {refusal.what}", refusal.remedy)
    name = ".".join(path[:2])
    if kind == "extra_forbidden":
        return UserError(f"{where}: {name} is no key of hb_mapper", _near_key(path))
    if kind == "missing":
        what = "group" if len(path) == 1 else "key"
        return UserError(f"{where}: the {what} {name} is missing", "hb_mapper needs it")
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return UserError(f"{where}: {name} is no table", "write its keys below it, indented")
    return UserError(f"{where}: {name}: {problem['msg']}", "see docs/rdk-x5.md")


def _near_key(path: list[str]) -> str:
    if len(path) == 1:
        for group, model in GROUPS.items():
            if path[0] in model.model_fields:
                return f"it belongs below {group}"
        return nearest(path[0], GROUPS)
    for group, model in GROUPS.items():
        if path[1] in model.model_fields:
            return f"it belongs below {group}"
    return nearest(path[1], GROUPS[path[0]].model_fields)


def write_hb_mapper(config: HbMapperConfig) -> str:
    """YAML text in hb_mapper's spelling: what was given, and what differs from the defaults.

    Reading it back gives an equal config.
    """
    data: dict[str, dict[str, Any]] = {}
    for group in GROUPS:
        values = getattr(config, group)
        if values is None:
            continue
        fields = type(values).model_fields
        data[group] = {
            key: _written(getattr(values, key))
            for key in fields
            if key in values.model_fields_set or getattr(values, key) != fields[key].default
        }
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000))


def _written(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: entry.to_dict() if isinstance(entry, NodeInfo) else entry for key, entry in value.items()}
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
