"""Ranges and a target give the plan."""

from __future__ import annotations

from collections.abc import Mapping

from narrowcast.base.errors import UserError
from narrowcast.calibrate.statistics import TensorStatistics
from narrowcast.plan.drafting import Draft, draft
from narrowcast.plan.following import Weigh, follow
from narrowcast.plan.ranging import choose_encoding
from narrowcast.plan.reading import read_encoding
from narrowcast.plan.structure import Group, activation_inputs
from narrowcast.plan.types import Encoding, Plan, edge_key

__all__ = ["Draft", "draft", "finish"]


def finish(
    drafted: Draft,
    statistics: Mapping[str, TensorStatistics],
    method: str,
    percentile: float = 99.99,
    chosen: Mapping[int, Encoding] | None = None,
    weigh: Weigh | None = None,
) -> tuple[Plan, list[str]]:
    """Choose every encoding.

    Args:
        drafted: from :func:`draft`.
        statistics: of :meth:`Draft.wanted_statistics`.
        method: calibration method, one of :data:`narrowcast.calibrate.METHODS` or ``"auto"`` (the target's).
        percentile: for that method.
        chosen: encodings already decided, by index of the group in the structure.
        weigh: what a weight alone wants; by default :meth:`Draft.weight`.

    Returns:
        The plan, and notes a person should read.
    """
    target = drafted.target
    method = target.calibration if method == "auto" else method
    tensors: dict[str, Encoding] = {}
    by_group: dict[int, Encoding] = {}
    for index, group in enumerate(drafted.structure.groups):
        encoding = (chosen or {}).get(index) or _group_encoding(group, drafted, statistics, method, percentile)
        by_group[id(group)] = encoding
        tensors.update(dict.fromkeys(group.values, encoding))
    edges = {key: by_group[id(group)] for key, group in drafted.structure.edges.items()}
    edges.update(_type_edges(drafted, tensors, edges, statistics, method, percentile))
    notes = follow(drafted, tensors, edges, weigh or drafted.weight)
    return Plan(target.name, tensors, edges, dict(drafted.placement)), notes


def _group_encoding(
    group: Group, drafted: Draft, statistics: Mapping[str, TensorStatistics], method: str, percentile: float
) -> Encoding:
    pinned = next((pin for name in group.values if (pin := drafted.pins.tensors.get(name)) is not None), None)
    dtype = pinned.dtype if pinned is not None and pinned.dtype else group.type
    if pinned is not None and pinned.scale is not None:
        if isinstance(pinned.scale, tuple):
            raise UserError(f"{group.values[0]} is pinned to {len(pinned.scale)} scales", "an activation has one")
        return Encoding(dtype, pinned.scale, pinned.zero_point)
    sources = [statistics[name] for name in group.sources]
    return choose_encoding(sources, drafted.target, dtype, method, percentile, group.through)


def _type_edges(
    drafted: Draft,
    tensors: Mapping[str, Encoding],
    edges: Mapping[str, Encoding],
    statistics: Mapping[str, TensorStatistics],
    method: str,
    percentile: float,
) -> dict[str, Encoding]:
    """Where all operands of a node must have its type, an input of another type is requantized on the edge."""
    result: dict[str, Encoding] = {}
    if not drafted.target.uniform_types:
        return result
    for node in drafted.graph:
        wanted = drafted.placement[str(node.name)].type
        if wanted == "float32":
            continue
        for index, value in activation_inputs(node):
            key = edge_key(str(node.name), index)
            current = read_encoding(node, index, tensors, edges)
            if current is None or current.dtype == wanted or drafted.is_passive(node):
                continue
            if wanted == "int16":  # every int8 value is an int16 value of a 256 times finer step
                result[key] = Encoding("int16", float(current.scales) / 256)
            else:
                group = drafted.structure.of[str(value.name)]
                sources = [statistics[name] for name in group.sources]
                result[key] = choose_encoding(sources, drafted.target, "int8", method, percentile)
    return result
