"""How hb_mapper's YAML writes values: lists with ``;``, channels with spaces, shapes with ``x``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator

from narrowcast.base.errors import nearest

__all__ = [
    "MARCHES", "Chip", "March", "Names", "NodeTable", "NodeTypes", "Numbers", "Optimizations", "Refusal",
    "Shapes", "Sources", "Text", "choice", "choices", "numbers", "operator_type", "written",
]  # fmt: skip

Numbers = tuple[tuple[float, ...] | None, ...]
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
