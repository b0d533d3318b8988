"""How hb_mapper's YAML writes values: lists with ``;``, channels with spaces, shapes with ``x``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from narrowcast.base.errors import nearest

__all__ = [
    "NodeInfo",
    "Refusal",
    "choice",
    "choices",
    "names",
    "node_table",
    "node_types",
    "numbers",
    "operator_type",
    "optimizations",
    "shapes",
    "sources",
]

INTEGER_TYPES = ("int8", "int16")
_OPTIMIZATIONS = (
    "set_model_output_int8", "set_model_output_int16", "set_all_nodes_int16", "asymmetric", "bias_correction",
    "lstm_batch_last", "run_fast",
)  # fmt: skip
_OPERATOR_TYPE = re.compile(r"set_(?P<operator>\w+?)_(?P<side>input|output)_(?P<type>int8|int16)")


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


class NodeInfo(BaseModel):
    """What ``node_info`` says of one node.

    Attributes:
        on: ``"BPU"``, ``"CPU"`` or ``None`` for the tool's choice.
        input: type of all inputs.
        inputs: type of single inputs, by index.
        output: type of all outputs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    on: str | None = None
    input: str | None = None
    inputs: dict[int, str] = {}
    output: str | None = None

    def to_dict(self) -> dict[str, str]:
        """In hb_mapper's spelling."""
        pairs = {"ON": self.on, "InputType": self.input}
        pairs |= {f"InputType{index}": kind for index, kind in sorted(self.inputs.items())}
        pairs["OutputType"] = self.output
        return {key: value for key, value in pairs.items() if value is not None}


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


def names() -> BeforeValidator:
    """A ``;`` list of names."""

    def parse(value: Any) -> tuple[str, ...]:
        parts = _split(value)
        if "" in parts:
            raise Refusal("has an empty entry between two ';'", "remove it")
        twice = next((part for part in parts if parts.count(part) > 1), None)
        if twice is not None:
            raise Refusal(f"names {twice} twice", "remove one")
        return tuple(parts)

    return BeforeValidator(parse)


def choice(*allowed: str) -> BeforeValidator:
    """One of some words, written exactly so."""

    def parse(value: Any) -> str:
        return _checked(_text(value, "one word"), allowed)

    return BeforeValidator(parse)


def choices(*allowed: str, optional: bool = False) -> BeforeValidator:
    """A ``;`` list of words, one an input; entries may be empty where ``optional``."""

    def parse(value: Any) -> tuple[str, ...]:
        return tuple("" if optional and not part else _checked(part, allowed) for part in _split(value))

    return BeforeValidator(parse)


def _checked(word: str, allowed: tuple[str, ...]) -> str:
    if word not in allowed:
        hint = nearest(word, allowed)
        remedy = hint if hint.startswith("did") else f"use {' or '.join(allowed)}"
        raise Refusal(f"{word!r} is not possible", remedy)
    return word


def numbers(example: str) -> BeforeValidator:
    """One value, or one a channel with spaces between; ``;`` between inputs; ``None`` for an input without."""

    def parse(value: Any) -> tuple[tuple[float, ...] | None, ...]:
        if isinstance(value, tuple):
            return tuple(None if entry is None else tuple(map(float, entry)) for entry in value)
        if isinstance(value, (list, dict, bool)):
            raise Refusal(f"{value!r} is not of the form that hb_mapper reads", f"write '{example}'")
        return tuple(_channels(part, example) for part in _split(value))

    return BeforeValidator(parse)


def _channels(text: str, example: str) -> tuple[float, ...] | None:
    if text == "None":
        return None
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


def shapes() -> BeforeValidator:
    """``1x3x640x640``, with ``;`` between inputs."""

    def parse(value: Any) -> tuple[tuple[int, ...], ...]:
        if isinstance(value, tuple):
            return value
        result = []
        for part in _split(value):
            sizes = part.lower().split("x")
            if not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
                raise Refusal(f"{part!r} is no shape", "write '1x3x640x640'")
            result.append(tuple(int(size) for size in sizes))
        return tuple(result)

    return BeforeValidator(parse)


def _node_pairs(text: str) -> dict[str, str]:
    """``'n1:int16;n2:int16'``; a node's own name may hold ``:``."""
    pairs = {}
    for part in _split(text):
        name, separator, kind = part.rpartition(":")
        if not separator or not name.strip():
            raise Refusal(f"{part!r} is not understood", "write 'node:int16;other:int16'")
        pairs[name.strip()] = _checked(kind.strip(), INTEGER_TYPES)
    return pairs


def node_types() -> BeforeValidator:
    """``set_node_data_type``: node to the type of its outputs."""

    def parse(value: Any) -> dict[str, str]:
        return dict(value) if isinstance(value, Mapping) else _node_pairs(value)

    return BeforeValidator(parse)


def node_table() -> BeforeValidator:
    """``node_info`` in both spellings: a table, or ``'n1:int16;n2:int16'``."""

    def parse(value: Any) -> dict[str, NodeInfo]:
        if not isinstance(value, Mapping):
            return {name: NodeInfo(output=kind) for name, kind in _node_pairs(value).items()}
        return {str(name): _one_node(str(name), entry) for name, entry in value.items()}

    return BeforeValidator(parse)


def _one_node(name: str, entry: Any) -> NodeInfo:
    if isinstance(entry, NodeInfo):
        return entry
    if not isinstance(entry, Mapping):
        raise Refusal(f"{name} has {entry!r}", "write {'ON': 'BPU', 'InputType': 'int16', 'OutputType': 'int16'}")
    found: dict[str, Any] = {"inputs": {}}
    for key, value in entry.items():
        if key is True:
            raise Refusal(f"{name} has the key true", "write 'ON' in quotes, YAML reads ON as true")
        if key == "ON":
            found["on"] = _checked(str(value), ("BPU", "CPU"))
        elif key in ("InputType", "OutputType"):
            found["input" if key == "InputType" else "output"] = _checked(str(value), INTEGER_TYPES)
        elif match := re.fullmatch(r"InputType(\d+)", str(key)):
            found["inputs"][int(match[1])] = _checked(str(value), INTEGER_TYPES)
        elif re.fullmatch(r"OutputType\d+", str(key)):
            raise Refusal(f"{name} has {key}", "OutputType applies to all outputs of a node")
        else:
            raise Refusal(f"{name} has {key!r}", nearest(str(key), ("ON", "InputType", "InputType0", "OutputType")))
    if found.get("on") == "CPU" and (found["inputs"] or "input" in found or "output" in found):
        raise Refusal(f"{name} is on the CPU and has integer types", "remove its types, the CPU computes in float")
    return NodeInfo(**found)


def sources() -> BeforeValidator:
    """``input_source``: input name to where the board's data come from."""

    def parse(value: Any) -> dict[str, str]:
        if not isinstance(value, Mapping):
            raise Refusal(f"{value!r} is no table", "write {'images': 'pyramid'}")
        return {str(name): _checked(str(kind), ("ddr", "pyramid", "resizer")) for name, kind in value.items()}

    return BeforeValidator(parse)


def optimizations() -> BeforeValidator:
    """``optimization``: a comma list of known entries."""

    def parse(value: Any) -> tuple[str, ...]:
        if isinstance(value, tuple):
            parts = list(value)
        else:
            parts = [part.strip() for part in re.split("[,;]", _text(value, "'first,second'")) if part.strip()]
        for part in parts:
            if part not in _OPTIMIZATIONS:
                operator_type(part)
        return tuple(parts)

    return BeforeValidator(parse)


def operator_type(entry: str) -> tuple[str, str, str]:
    """``set_Softmax_output_int16`` to (``"Softmax"``, ``"output"``, ``"int16"``).

    Raises:
        Refusal: it is something else.
    """
    match = _OPERATOR_TYPE.fullmatch(entry)
    if match is None:
        raise Refusal(f"{entry!r} is unknown", nearest(entry, (*_OPTIMIZATIONS, "set_Softmax_input_int8")))
    operator = match["operator"]
    if not operator[0].isupper():
        raise Refusal(f"{entry!r} names no operator", f"ONNX names begin with a capital: {operator.capitalize()}?")
    return operator, match["side"], match["type"]
