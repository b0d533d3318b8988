"""What a person fixes before planning: types of nodes, encodings of tensors."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from narrowcast.base.errors import UserError, closest

__all__ = ["ExactPins", "Pins", "TensorPin"]

NODE_TYPES = ("int8", "int16", "float32")


@dataclass(frozen=True)
class TensorPin:
    """A fixed type, or a fixed type and scale, of one tensor (and of those that share its encoding)."""

    dtype: str | None = None
    scale: float | tuple[float, ...] | None = None
    zero_point: int = 0
    axis: int | None = None


@dataclass(frozen=True)
class Pins:
    """Fixed decisions.

    Attributes:
        nodes: node name or pattern (``*`` and ``?``) to ``"int8"``, ``"int16"`` or ``"float32"``; a later entry
            wins over an earlier one.
        tensors: tensor name to its pin.
    """

    nodes: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, TensorPin] = field(default_factory=dict)

    def type_of(self, node: str) -> str | None:
        """The pinned type of a node, if any."""
        found = None
        for pattern, wanted in self.nodes.items():
            if pattern == node or fnmatch.fnmatchcase(node, pattern):
                found = wanted
        return found

    def merged(self, other: Pins) -> Pins:
        """These pins with ``other`` on top."""
        return Pins({**self.nodes, **other.nodes}, {**self.tensors, **other.tensors})

    def check(self, graph: ir.Graph) -> None:
        """Raise when a pin names nothing in the graph.

        Raises:
            UserError: with the nearest name.
        """
        nodes = [str(node.name) for node in graph]
        values = {str(value.name) for value in graph.inputs} | set(graph.initializers)
        values |= {str(output.name) for node in graph for output in node.outputs}
        for pattern, wanted in self.nodes.items():
            if wanted not in NODE_TYPES:
                raise UserError(f"{pattern} is pinned to {wanted!r}", f"use one of {', '.join(NODE_TYPES)}")
            if pattern not in nodes and not fnmatch.filter(nodes, pattern):
                raise _unknown("node", pattern, nodes)
        for name in self.tensors:
            if name not in values:
                raise _unknown("tensor", name, sorted(values))


class ExactPins(Pins):
    """Pins by whole names, for names that no person wrote: they may hold characters that patterns use."""

    def type_of(self, node: str) -> str | None:
        """The pinned type of a node, if any."""
        return self.nodes.get(node)


def _unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    near = closest(name, known, 0.3)
    return UserError(f"no {kind} of this model is named {name}", f"did you mean {near}?" if near else "see inspect")
