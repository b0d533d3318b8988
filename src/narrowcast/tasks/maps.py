"""Heads that somebody cut off already: the outputs are the raw maps.

They are told apart by their shapes. Where shapes say several things, the file's metadata, names and what exports
usually have decide, in this order; what is open then is asked for. Nothing can be compared with a decode here, so that
a head which is not the usual one counts only where the file or the person says that it is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, TypeVar

from narrowcast.tasks.task import Cut, Ends, Given, HeadSpec, Tail

if TYPE_CHECKING:
    from narrowcast.tasks.objects import Objects, Role

__all__ = ["Maps", "maps_of", "raw_head"]

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Map:
    """An output as a map.

    Attributes:
        tail: the output.
        stride: input pixels a cell.
        channels: how many.
        last: they are the last axis.
    """

    tail: Tail
    stride: int
    channels: int
    last: bool

    @property
    def source(self) -> str:
        """Tensor at which the graph is cut, channels first wherever the graph has it so."""
        return self.tail.source if self.last else self.tail.name


@dataclass(frozen=True)
class Maps:
    """The outputs of a graph, each a map.

    Attributes:
        levels: maps of a stride, equally many in each, by ascending stride.
        shared: one that all strides share.
    """

    levels: Mapping[int, Sequence[Map]]
    shared: Map | None


@dataclass(frozen=True)
class _Reading:
    """One way to understand the maps.

    Attributes:
        head: that they are.
        deals: of each stride, the orders of its maps that give every role what it needs.
        doubts: names that say something else.
    """

    head: HeadSpec
    deals: Mapping[int, Sequence[tuple[Map, ...]]]
    doubts: int


def maps_of(ends: Ends) -> Maps | str | None:
    """The outputs as maps; a clause that says why they are none, ``None`` where they do not look like a head's."""
    found = [_readings(tail, ends.size) for tail in ends.outputs]
    if not all(found):
        return None
    settled = {each[0].last for each in found if len(each) == 1}
    levels, unclear = dict[int, list[Map]](), ""
    for each in found:
        layout = each[0].tail.layout
        last = {layout == "NHWC"} if layout else settled
        fitting = [entry for entry in each if len(each) == 1 or last == {entry.last}]
        unclear = unclear if fitting else f"{each[0].tail.name} may have its channels first or last"
        chosen = (fitting or each)[0]
        levels.setdefault(chosen.stride, []).append(chosen)
    alone = [stride for stride, each in levels.items() if len(each) == 1]
    shared = levels.pop(alone[0])[0] if len(alone) == 1 and len(levels) > 1 else None
    if len({len(each) for each in levels.values()}) != 1 or len(next(iter(levels.values()))) < 2:
        return None
    sources = [entry.source for each in levels.values() for entry in each]
    if len(set(sources)) != len(sources):
        return None
    return unclear or Maps(dict(sorted(levels.items())), shared)


def _readings(tail: Tail, size: tuple[int, int]) -> list[Map]:
    """As channels first and as channels last, where that gives a whole stride of the input."""
    if len(tail.shape) != 4 or tail.shape[0] != 1:
        return []
    _, first, second, third = tail.shape
    both = [(first, (second, third), False), (third, (first, second), True)]
    return [
        Map(tail, size[0] // sides[0], channels, last)
        for channels, sides, last in both
        if all(sides) and not size[0] % sides[0] and size[0] // sides[0] * sides[1] == size[1]
    ]


def raw_head(task: type[Objects], maps: Maps, ends: Ends) -> Cut | str | None:
    """The head of a task whose raw outputs the maps are; a clause that says why not, ``None`` for another task's."""
    first = next(iter(maps.levels.values()))
    if len(first) != len(task.roles) or (maps.shared is not None) != bool(task.shared):
        return None
    if len({tuple(sorted(entry.channels for entry in each)) for each in maps.levels.values()}) != 1:
        return "the strides differ in their channels"
    names = [f"{role.stem}_s{stride}" for stride in maps.levels for role in task.roles]
    wrong = [name for name in ends.named if name not in (*names, *(role.stem for role in task.shared))]
    if wrong:
        return f"--head: {wrong[0]} is none of {', '.join(names)}"
    if maps.shared is not None and ends.named.get(task.shared[0].stem, maps.shared.tail.name) != maps.shared.tail.name:
        return f"--head: {task.shared[0].stem} can only be {maps.shared.tail.name}"
    readings = _readings_of(task, maps, ends)
    if isinstance(readings, str):
        return readings
    readings = _preferred(readings, lambda one: one.head.num_classes == ends.classes)
    fewest = min(reading.doubts for reading in readings)
    readings = _preferred(readings, lambda one: one.doubts == fewest)
    readings = _preferred(readings, lambda one: one.head.reg_max == HeadSpec.reg_max)
    readings = _preferred(readings, lambda one: task.usual(one.head))
    reading = readings[0]
    told = ends.task == task.name or bool(ends.named) or ends.keypoint_shape == reading.head.keypoint_shape is not None
    named = not reading.doubts and all(_said(task, entry) for each in maps.levels.values() for entry in each)
    if not told and not named and not (len(maps.levels) > 1 and task.usual(reading.head)):
        return f"the outputs may be those of a {task.kind} head: --head {task.name} says so"
    return _open(task, readings) or _cut(task, reading, maps.shared)


def _readings_of(task: type[Objects], maps: Maps, ends: Ends) -> list[_Reading] | str:
    """Every way to understand the maps, or one clause that says why there is none."""
    shared = [maps.shared] if maps.shared is not None else []
    counts = [entry.channels for entry in next(iter(maps.levels.values()))]
    readings, reason = list[_Reading](), f"{len(counts)} maps a stride with {counts} channels are no {task.kind} head"
    for box, classes, *extra in sorted(set(permutations(counts)), reverse=True):
        fitting = task.fit(extra[0] if extra else 0, ends, [entry.channels for entry in shared])
        if box % 4 or not fitting or isinstance(fitting, str):
            continue
        deals, doubts = dict[int, list[tuple[Map, ...]]](), 0
        for stride, maps_there in maps.levels.items():
            orders = [o for o in permutations(maps_there) if [m.channels for m in o] == [box, classes, *extra]]
            orders = [order for order in orders if _as_named(task, order, ends.named)]
            found = [(sum(_denied(r, m, task) for r, m in zip(task.roles, o, strict=True)), o) for o in orders]
            fewest = min((count for count, _ in found), default=0)
            deals[stride], doubts = [order for count, order in found if count == fewest], doubts + fewest
        if all(deals.values()):
            heads = [HeadSpec(task.name, tuple(deals), classes, box // 4, **entries) for entries in fitting]
            readings += [_Reading(head, deals, doubts) for head in heads]
    return readings or reason


def _preferred(items: list[_Item], test: Callable[[_Item], bool]) -> list[_Item]:
    """Those that pass, if any does."""
    return [item for item in items if test(item)] or items


def _as_named(task: type[Objects], order: Iterable[Map], named: Mapping[str, str]) -> bool:
    """Whether an order gives the roles what the person says."""
    pairs = {f"{role.stem}_s{entry.stride}": entry.tail.name for role, entry in zip(task.roles, order, strict=True)}
    return all(
        named.get(name, theirs) == theirs and (theirs not in named.values() or named.get(name) == theirs)
        for name, theirs in pairs.items()
    )


def _said(task: type[Objects], entry: Map) -> Role | None:
    """The role that the first telling name of a map says."""
    for name in entry.tail.words:
        found = [
            role for role in task.roles
            if re.search(rf"(?<![a-z])({'|'.join((role.stem, role.parser, *role.also))})s?(?![a-z])", name.lower())
        ]  # fmt: skip
        if found:
            return found[0] if len(found) == 1 else None
    return None


def _denied(role: Role, entry: Map, task: type[Objects]) -> bool:
    return _said(task, entry) not in (None, role)


def _open(task: type[Objects], readings: Sequence[_Reading]) -> str:
    """What has to be asked for, as a clause that says how; empty where everything is clear."""
    first = readings[0]
    for reading in readings[1:]:
        if reading.head.keypoint_shape != first.head.keypoint_shape and reading.deals == first.deals:
            one, other = ("x".join(map(str, r.head.keypoint_shape or ())) for r in (first, reading))
            return f"its keypoints may be {one} or {other}: --head keypoints={one} or keypoints={other} says which"
    for index, role in enumerate(task.roles):
        choices = [
            {deal[index].tail.name: None for reading in readings for deal in reading.deals[stride]}
            for stride in first.deals
        ]
        if any(len(names) > 1 for names in choices):
            several = " or ".join(next(names for names in map(list, choices) if len(names) > 1))
            pairs = zip(first.deals, choices, strict=True)
            said = ",".join(f"{role.stem}_s{stride}={next(iter(n))}" for stride, n in pairs if len(n) > 1)
            return f"its {role.says} map may be {several}: --head {said} says so, or name others"
    return ""


def _cut(task: type[Objects], reading: _Reading, shared: Map | None) -> Cut | str:
    stems = [role.stem for role in task.roles]
    chosen = {
        f"{stem}_s{stride}": entry
        for stride, (order, *_) in reading.deals.items()
        for stem, entry in zip(stems, order, strict=True)
    }
    chosen |= {role.stem: shared for role in task.shared if shared is not None}
    for entry in chosen.values():
        if entry.tail.maker in _BENT:
            return f"{entry.tail.name} comes from a {entry.tail.maker}, so it is not raw: cut the graph before it"
    given = {name: Given(entry.tail.name, entry.last) for name, entry in chosen.items()}
    return Cut(task(reading.head), {name: entry.source for name, entry in chosen.items()}, given)


#: Operators that a decode applies itself.
_BENT = ("Sigmoid", "Softmax")
