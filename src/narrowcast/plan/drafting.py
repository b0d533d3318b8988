"""Everything about a plan that is known before calibration: placement, structure, and what a weight alone wants."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import onnx_ir as ir

from narrowcast.base.errors import UserError
from narrowcast.plan.parameters import weight_encoding
from narrowcast.plan.pins import Pins
from narrowcast.plan.structure import Structure, is_passive, structure
from narrowcast.plan.types import Encoding, Placement
from narrowcast.targets.placement import place
from narrowcast.targets.schema import Target

__all__ = ["Draft", "draft"]


@dataclass(frozen=True)
class Draft:
    """Everything about a plan that is known before calibration.

    Attributes:
        graph: the prepared graph.
        target: the chip's rules.
        placement: of every node.
        structure: groups of tensors.
        pins: what the person fixed.
    """

    graph: ir.Graph
    target: Target
    placement: dict[str, Placement]
    structure: Structure
    pins: Pins = field(default_factory=Pins)

    @cached_property
    def nodes_by_name(self) -> dict[str, ir.Node]:
        """Every node by its name."""
        return {str(node.name): node for node in self.graph}

    @cached_property
    def _weights(self) -> dict[tuple[str, str], Encoding]:
        return {}

    def weight(self, node: ir.Node, dtype: str) -> Encoding:
        """The pinned encoding of a node's constant second input, or the one with the least error."""
        name = str(node.inputs[1].name) if node.inputs[1] is not None else ""
        pin = self.pins.tensors.get(name)
        if pin is not None and pin.scale is not None:
            return Encoding(pin.dtype or dtype, pin.scale, pin.zero_point, pin.axis)
        if (name, dtype) not in self._weights:
            self._weights[name, dtype] = weight_encoding(node, self.target, dtype)
        return self._weights[name, dtype]

    def on(self, graph: ir.Graph) -> Draft:
        """The same draft for a copy of the graph with other weights."""
        return replace(self, graph=graph)

    def is_passive(self, node: ir.Node) -> bool:
        """Whether the node only moves bytes."""
        return is_passive(node, self.target)

    def wanted_statistics(self) -> list[str]:
        """Names of the tensors whose statistics :func:`finish` needs, in graph order."""
        return list(dict.fromkeys(name for group in self.structure.groups for name in group.sources))


def draft(graph: ir.Graph, target: Target, pins: Pins | None = None, runtime: str | None = None) -> Draft:
    """Place the nodes and group the tensors.

    Args:
        graph: prepared graph.
        target: the chip's rules.
        pins: types and encodings that a person fixed.
        runtime: version of the chip's runtime; ``None`` for the newest that the target knows.

    Raises:
        UserError: a node that the chip cannot run, a pin that names nothing or asks for an unsupported type.
    """
    pins = pins or Pins()
    pins.check(graph)
    supports = place(graph, target, runtime, pins.type_of)
    placement: dict[str, Placement] = {}
    for node in graph:
        name = str(node.name)
        support = supports[name]
        if not support.supported:
            raise UserError(f"{target.name} cannot run {node.op_type} {name}: {support.reason}", support.remedy)
        wanted = pins.type_of(name) or ("int8" if "int8" in support.types else support.types[0])
        if wanted != "float32" and wanted not in support.types:
            allowed = ", ".join(support.types)
            raise UserError(f"{name} ({node.op_type}) cannot be {wanted} on {target.name}", f"it can be {allowed}")
        if wanted == "float32" and "float32" not in support.types and not target.float_nodes:
            raise UserError(f"{target.name} has no float unit for {name} ({node.op_type})", "pin it to int16 instead")
        reason = f"pinned to {wanted}" if pins.type_of(name) else support.reason
        unit = support.unit if wanted in support.types else target.units[-1]
        placement[name] = Placement(unit, wanted, reason)
    narrow = {name for name, verdict in supports.items() if "int16" not in verdict.types}
    return Draft(graph, target, placement, structure(graph, target, placement, narrow), pins)
