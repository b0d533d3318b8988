"""May this node run there? One evaluator for the limits of every target."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from narrowcast.base.errors import UserError
from narrowcast.chips.schema import OpRule, Target
from narrowcast.graph.windows import floor_positions, linear_positions, nearest_positions, resize_scales, window_counts
from narrowcast.ops.facts import GRIDS, Kind, facts, no_integers
from narrowcast.ops.net import dims, input_at, integers_at

__all__ = ["Support", "runtime_version", "support"]

#: Why a node breaks a limit, as a clause; empty where it keeps it.
_Check = Callable[[ir.Node, Any], str]


@dataclass(frozen=True)
class Support:
    """The verdict on one node.

    Attributes:
        unit: where it runs.
        types: representations it can have there, the default first.
        reason: one clause.
        remedy: what to do where the reason is bad news, else empty.
        supported: ``False`` when the target cannot run the node at all.
        tail: operator that the vendor's tool adds on the last unit if nothing of the first unit follows.
    """

    unit: str
    types: tuple[str, ...]
    reason: str
    remedy: str = ""
    supported: bool = True
    tail: str = ""


class _Refusal(NamedTuple):
    """Why a rule does not take a node, as a clause; ``limit`` is the one of :class:`Limits` that is broken."""

    text: str
    rule: OpRule
    limit: str = ""


def support(node: ir.Node, target: Target, runtime: str | None = None, wanted: str | None = None) -> Support:
    """Judge a node of a prepared graph (static shapes) by the target's rules.

    Args:
        node: the node.
        target: the chip.
        runtime: version of its runtime; ``None`` for the newest known.
        wanted: type to which a person pinned the node; opens the rules that hold on request only.

    Raises:
        UserError: an unknown runtime version.
    """
    version = runtime_version(runtime, target)
    refusals: list[_Refusal] = []
    if node.op_type in target.unsupported:
        return Support("", (), f"{target.runtime.name} has no {node.op_type}", "change the model", supported=False)
    form, remedy = no_integers(node)
    if form and not target.float_nodes:
        return Support("", (), form, remedy, supported=False)
    if form:
        return Support(target.units[-1], ("float32",), form, remedy)
    for rule in target.ops:
        if node.op_type not in rule.ops or (rule.on_request and wanted not in rule.types):
            continue
        if rule.since is not None and _number(rule.since) > version:
            refusals.append(_Refusal(f"needs {target.runtime.name} {rule.since} or newer", rule))
            continue
        if (broken := _broken(node, rule)) is not None:
            refusals.append(broken)
            continue
        reason = rule.note or ("; ".join(refusal.text for refusal in refusals) if refusals else f"{rule.unit} runs it")
        remedy = rule.remedy or (refusals[0].rule.remedy if refusals else "")
        return Support(rule.unit, tuple(rule.types), reason, remedy, tail=rule.tail)
    texts = list(dict.fromkeys(refusal.text for refusal in refusals))
    why = "; ".join(texts) or f"{node.op_type} is not in the op table"
    remedy = next((refusal.rule.remedy for refusal in refusals if refusal.rule.remedy), "")
    rank = refusals[0].rule.limits.rank if refusals and refusals[0].limit == "rank" else None
    if rank is not None and len(refusals) > 1 and len(texts) == 1:
        remedy = f"reshape the operands to {rank[0]} to {rank[1]} axes"  # no rule's own remedy helps
    if target.fallback is None:
        return Support("", (), why, remedy or "change the model, or choose another target", supported=False)
    return Support(target.fallback.unit, tuple(target.fallback.types), why, remedy)


def runtime_version(runtime: str | None, target: Target) -> tuple[int, ...]:
    """A version of the target's runtime as numbers; the newest known for ``None``.

    Raises:
        UserError: it is no version.
    """
    if runtime is None:
        return _number(target.runtime.versions[-1])
    try:
        return _number(runtime)
    except ValueError as error:
        known = ", ".join(target.runtime.versions)
        raise UserError(f"{runtime!r} is no version of {target.runtime.name}", f"known are {known}") from error


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _tensors(node: ir.Node) -> list[tuple[int, ...]]:
    """Shapes of the computed operands and of the results."""
    return [dims(value) for value in [*node.inputs, *node.outputs] if value is not None and value.const_value is None]


def _integers(node: ir.Node, name: str, default: int) -> list[int]:
    attribute = node.attributes.get(name)
    return [int(value) for value in attribute.as_ints()] if attribute is not None else [default]


def _kernel(node: ir.Node) -> list[int]:
    given = "kernel_shape" in node.attributes
    return _integers(node, "kernel_shape", 0) if given else list(dims(input_at(node, 1))[2:]) or [1]


def _within(values: Sequence[int], bounds: tuple[int, int], what: str) -> str:
    bad = [value for value in values if not bounds[0] <= value <= bounds[1]]
    return f"{what} {bad[0]} is outside {bounds[0]}..{bounds[1]}" if bad else ""


def _groups(node: ir.Node, allowed: str) -> str:
    group, channels = node.attributes.get_int("group", 1), dims(node.inputs[0])[1]
    if allowed == "one":
        return "" if group == 1 else f"{group} groups (only 1)"
    return "" if group in (1, channels) else f"{group} groups of {channels} channels (only 1 or all)"


def _group_channels(node: ir.Node, bounds: tuple[int, int]) -> str:
    group = node.attributes.get_int("group", 1)
    sizes = [dims(node.inputs[0])[1] // group, dims(node.outputs[0])[1] // group]
    return _within(sizes, bounds, "channels of a group")


def _axis(node: ir.Node, allowed: tuple[int, ...]) -> str:
    rank = len(dims(node.inputs[0]))
    axis = node.attributes.get_int("axis", -1) % max(1, rank)
    return "" if axis in allowed else f"axis {axis} (only {', '.join(map(str, allowed))})"


def _matrix(node: ir.Node, largest: int) -> str:
    rows, inner = dims(node.inputs[0])[-2:]
    return "" if max(rows, inner) <= largest else f"a matrix of {rows}x{inner} is above {largest}"


def _constant(node: ir.Node, wanted: str) -> str:
    constants = [value.const_value for value in node.inputs[1:] if value is not None and value.const_value is not None]
    if wanted in ("required", "scalar") and not constants:
        return "needs a constant operand"
    if wanted == "scalar" and constants[0].size != 1:
        return f"a constant of {constants[0].size} numbers (only 1)"
    return "takes no constant operand" if wanted == "forbidden" and constants else ""


def _mode(node: ir.Node, allowed: tuple[str, ...]) -> str:
    mode = node.attributes.get_string("mode", "constant" if facts(node).kind is Kind.PAD else "nearest")
    return "" if mode in allowed else f"mode {mode}"


def _factor(node: ir.Node, _: bool) -> str:
    before, after = dims(node.inputs[0]), dims(node.outputs[0])
    ratios = [b / a for a, b in zip(before, after, strict=True)]
    bad = [ratio for ratio in ratios if ratio <= 0 or not math.log2(ratio).is_integer()]
    return f"factor {bad[0]:g} is no power of two" if bad else ""


def _split(node: ir.Node, _: bool) -> str:
    axis = node.attributes.get_int("axis", 0)
    whole = dims(node.inputs[0])[axis]
    bad = [part for output in node.outputs if whole % (part := dims(output)[axis])]
    return f"{whole} is no multiple of the part {bad[0]}" if bad else ""


def _dilation(node: ir.Node, _: bool) -> str:
    bad = [value for value in _integers(node, "dilations", 1) if value & (value - 1)]
    return f"dilation {bad[0]} is no power of two" if bad else ""


def _strides(node: ir.Node, allowed: tuple[int, ...]) -> str:
    bad = [value for value in _integers(node, "strides", 1) if value not in allowed]
    return f"stride {bad[0]} (only {', '.join(map(str, allowed))})" if bad else ""


def _elements(node: ir.Node, largest: int, aligned: bool = False) -> str:
    sizes = dims(node.inputs[0])
    if len(sizes) != 4 or sizes[0] != 1:
        return f"the shape {'x'.join(map(str, sizes))} is not 1 x channels x height x width"
    _, channels, height, width = sizes
    count = channels * height * width
    if aligned:
        narrow = -(-channels // 4) * 4 * height * (-(-width // 8) * 8)
        count = min(narrow, -(-channels // 32) * 32 * height * width)
    return "" if count <= largest else f"{count} {'aligned ' if aligned else ''}elements are above {largest}"


def _reduced(node: ir.Node, allowed: str) -> str:
    rank = len(dims(node.inputs[0]))
    axes = sorted(axis % rank for axis in integers_at(node, "axes", 1) or range(rank))
    if not node.attributes.get_int("keepdims", 1):
        return "the reduced axis is dropped (keepdims 0)"
    fits = (len(axes) == 1 and allowed != "plane") or (axes == [2, 3] and rank == 4 and allowed != "one")
    return "" if fits else f"axes {', '.join(map(str, axes))}"


def _padded(node: ir.Node, _: bool) -> str:
    pads = integers_at(node, "pads", 1) or []
    half = len(pads) // 2
    return "pads batch or channels" if half != 4 or any(pads[:2]) or any(pads[half : half + 2]) else ""


def _second_matrix(node: ir.Node, _: bool) -> str:
    lead = math.prod(dims(node.inputs[1])[:-2])
    return "" if lead == 1 else f"the second operand is {lead} matrices (only 1)"


def _row(node: ir.Node, least: int) -> str:
    """Rows are what is left of the last axis when neighbouring axes that repeat in the same way are one; channels may
    lie last in the chip's memory."""
    rank = len(dims(node.outputs[0]))
    shapes = [[1] * (rank - len(sizes)) + list(sizes) for sizes in map(dims, node.inputs)]
    orders = [list(range(rank)), [0, *range(2, rank), 1] if rank > 2 else list(range(rank))]
    shortest = min(_last_run([[shape[axis] for axis in order] for shape in shapes]) for order in orders)
    return "" if shortest >= least else f"rows of {shortest} numbers (at least {least})"


def _last_run(shapes: list[list[int]]) -> int:
    """Numbers in the last run of axes along which the same operands repeat."""
    axes = [sizes for sizes in zip(*shapes, strict=True) if max(sizes) > 1]
    run, kind = 1, None
    for sizes in reversed(axes):
        repeats = tuple(size == 1 for size in sizes)
        if kind not in (None, repeats):
            break
        run, kind = run * max(sizes), repeats
    return run


def _whole_windows(node: ir.Node, _: bool) -> str:
    counts = window_counts(node, dims(node.inputs[0])[2:], dims(node.outputs[0])[2:])
    area = math.prod(_kernel(node))
    return "" if (counts == area).all() else f"a window at the border averages {counts.min()} of {area} numbers"


def _grid(node: ir.Node, _: bool) -> str:
    mode = node.attributes.get_string("mode", "nearest")
    given = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    before, after = dims(node.inputs[0]), dims(node.outputs[0])
    if before[:2] != after[:2]:
        return "resizes batch or channels"
    if node.attributes.get_int("antialias", 0):
        return "antialias"
    if mode == "linear" and given not in GRIDS:
        return f"linear with {given}"
    for size, outputs, scale in list(zip(before, after, resize_scales(node, before, after), strict=True))[2:]:
        if mode == "linear":
            usual = "align_corners" if given == "align_corners" else "half_pixel"
            pairs = (linear_positions(size, outputs, scale, grid) for grid in (given, usual))
            if size != outputs and not all(np.array_equal(*parts) for parts in zip(*pairs, strict=True)):
                return f"linear with {given} reads other places than half_pixel and align_corners"
        elif not _reads_floor(node, size, outputs, scale):
            rule = node.attributes.get_string("nearest_mode", "round_prefer_floor")
            return f"nearest with {given} and {rule} reads other pixels than floor(i / scale)"
    return ""


def _reads_floor(node: ir.Node, size: int, outputs: int, scale: float) -> bool:
    try:
        own = nearest_positions(node, size, outputs, scale)
    except ValueError:
        return False
    return np.array_equal(own, floor_positions(size, outputs, scale))


def _bounded(what: str, values: Callable[[ir.Node], Sequence[int]]) -> _Check:
    return lambda node, bounds: _within(values(node), bounds, what)


#: What each of the :class:`Limits` asks, in the order in which it is asked.
_CHECKS: dict[str, _Check] = {
    "rank": _bounded("rank", lambda node: [len(sizes) for sizes in _tensors(node)]),
    "dims": _bounded("axis", lambda node: [size for sizes in _tensors(node) for size in sizes]),
    "kernel": _bounded("kernel", _kernel),
    "kernel_area": _bounded("kernel area", lambda node: [math.prod(_kernel(node))]),
    "stride": _bounded("stride", lambda node: _integers(node, "strides", 1)),
    "dilation": _bounded("dilation", lambda node: _integers(node, "dilations", 1)),
    "pad": _bounded("padding", lambda node: _integers(node, "pads", 0)),
    "channels": _bounded("channels", lambda node: [sizes[1] for sizes in _tensors(node) if len(sizes) > 1]),
    "group_channels": _group_channels,
    "weight_size": lambda node, most: _within(
        [math.prod(dims(input_at(node, 1))[1:])], (1, most), "channels * kernel area"
    ),
    "groups": _groups,
    "modes": _mode,
    "axes": _axis,
    "matrix_size": _matrix,
    "constant_operand": _constant,
    "power_of_two_factor": _factor,
    "divisible_split": _split,
    "block": _bounded("block size", lambda node: [node.attributes.get_int("blocksize", 0)]),
    "power_of_two_dilation": _dilation,
    "strides": _strides,
    "sides": _bounded("side", lambda node: dims(node.inputs[0])[2:]),
    "plane": _bounded("height * width", lambda node: [math.prod(dims(node.inputs[0])[2:])]),
    "elements": _elements,
    "aligned_elements": lambda node, most: _elements(node, most, True),
    "reduced": _reduced,
    "padded_plane": _padded,
    "single_matrix": _second_matrix,
    "row": _row,
    "whole_windows": _whole_windows,
    "floor_grid": _grid,
}


def _broken(node: ir.Node, rule: OpRule) -> _Refusal | None:
    """The first limit of a rule that the node breaks."""
    given = ((name, check, getattr(rule.limits, name)) for name, check in _CHECKS.items())
    found = ((check(node, bound), name) for name, check, bound in given if bound is not None)
    return next((_Refusal(text, rule, name) for text, name in found if text), None)
