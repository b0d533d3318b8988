"""Every setting of ``quantize`` that a person can write, validated once, from a YAML file or the command line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from narrowcast.errors import UserError

__all__ = ["QuantizeSettings", "read_settings"]


class QuantizeSettings(BaseModel):
    """Settings of one ``quantize`` run; names as the options of the command line, with ``_`` for ``-``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path = Field(description="float model: ONNX file, or .pt with the user's own 'yolo' command")
    images: Path = Field(description="calibration images: a folder, a list file or a .npy batch of model inputs")
    out: Path = Field(description="folder to write")
    target: str = "onnx"
    method: Literal["auto", "minmax", "mean-minmax", "percentile", "kl", "mse", "lp"] = "auto"
    percentile: float = Field(default=99.99, gt=50, le=100)
    limit: int | None = Field(default=None, ge=1, description="use at most this many images")
    plan: Path | None = Field(default=None, description="edited plan.json")
    int16: tuple[str, ...] = Field(default=(), description="nodes or patterns to run at 16 bits")
    float_: tuple[str, ...] = Field(default=(), alias="float", description="nodes or patterns to leave in float")
    size: str | None = Field(default=None, description="HEIGHTxWIDTH for a model with dynamic axes")
    mean: str | float | tuple[float, ...] | None = Field(
        default=None, description="pixel units, one value or one a channel"
    )
    scale: str | float | tuple[float, ...] | None = Field(default=None, description="factor after the mean")
    color: Literal["rgb", "bgr", "gray"] | None = None
    resize: Literal["letterbox", "stretch", "center-crop"] | None = None
    camera: Literal["rgb", "nv12-full", "nv12-studio"] | None = Field(
        default=None, description="send images through the board camera's format first"
    )
    keep_head: bool = False
    runtime: str | None = None
    threads: int = Field(default=0, ge=0)


def read_settings(file: Path | None, options: Mapping[str, Any]) -> QuantizeSettings:
    """Settings from a YAML file with the command line's options on top.

    Args:
        file: YAML; its relative paths are relative to the file.
        options: by field name (``float`` for nodes left in float); ``None`` and empty lists are not given.

    Raises:
        UserError: an unknown key (with the nearest known one), an impossible value, something missing.
    """
    values = _read(file) if file is not None else {}
    values.update({key: value for key, value in options.items() if value is not None and value != []})
    try:
        return QuantizeSettings.model_validate(values)
    except ValidationError as error:
        raise _explained(error.errors()[0], file) from error


def _read(file: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(file.read_text())
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}", "check the path of --config") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid YAML: {error}", "mend the line it names") from error
    if not isinstance(data, dict):
        raise UserError(f"{file} is no table of settings", "write lines such as 'target: esp32p4'")
    for key in ("model", "images", "out", "plan"):
        if isinstance(data.get(key), str):
            data[key] = file.parent / data[key]
    return data


def _explained(problem: Any, file: Path | None) -> UserError:
    key = str(problem["loc"][0])
    where = f"{file}: {key}" if file is not None else f"--{key.replace('_', '-')}"
    if problem["type"] == "extra_forbidden":
        known = [field.alias or name for name, field in QuantizeSettings.model_fields.items()]
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        return UserError(f"{where} is no setting", hint)
    if problem["type"] == "missing":
        return UserError(f"{key} is not given", f"give it on the command line or in a --config file ({key}: ...)")
    return UserError(f"{where}: {problem['msg']}", "see narrowcast quantize --help")
