"""Ranges and a target give the plan, or a plan gives another one.

The scale that a weight alone wants is the one with the least error. Beside its bias it may have to be coarser. A bias
is an integer of input scale * weight scale and has to fit its type, and from there to the result the chip shifts (or
multiplies) by what it has. A channel whose weights are next to nothing meets neither: with the scale that it wants, its
bias would saturate. So scales leave room, and where a sum would have to be shifted to the left, its result gets a
coarser scale: to clip the weights instead could change the channel altogether.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.calibrate.statistics import RangeSpec, TensorStatistics, choose_range
from narrowcast.chips.schema import Target
from narrowcast.ops.facts import facts
from narrowcast.ops.net import computed_inputs, constant_of
from narrowcast.plan.drafting import (
    Draft,
    accumulator_encoding,
    bias_encoding,
    constant_encoding,
    operand_encoding,
    read_encoding,
    read_name,
    written_value,
)
from narrowcast.plan.invariants import product_violations
from narrowcast.plan.structure import Group
from narrowcast.plan.types import DTYPES, EIGHT_BITS, Encoding, Plan, TensorPin, edge_key

#: What a weight alone wants: of a node with a constant second input, and its integer type.
Weigh = Callable[[ir.Node, str], Encoding]
Array = NDArray[np.float64]
#: Passes in which results may get coarser scales. A coarser scale is a coarser operand further on, so there may be
#: several; where a tensor would have to be coarser than itself, weights are clipped in the end.
_PASSES = 8
#: Rounding that changes a channel by a smaller share is not worth a word: half a step of an 8-bit result.
_UNSEEN = 2.0**-9


def follow(drafted: Draft, tensors: dict[str, Encoding], edges: dict[str, Encoding], weigh: Weigh) -> list[str]:
    """Complete a plan in place.

    Args:
        drafted: what is known of it before calibration.
        tensors: encodings of all activations; those of constants and accumulators are set here, and where a shift
            demands it, activations become coarser.
        edges: of requantized inputs, those that change nothing included; these are removed here.
        weigh: what a weight alone wants.

    Returns:
        Notes for a person: what this cost.

    Raises:
        UserError: a pinned scale leaves no room, a computed bias.
    """
    follower = _Follower(drafted, tensors, edges, weigh)
    for _ in range(_PASSES):
        if not follower.visit(growing=True):
            break
    follower.visit(growing=False)
    nodes = drafted.nodes_by_name
    for key in [key for key, encoding in edges.items() if encoding == tensors.get(read_name(key, nodes))]:
        del edges[key]
    for name, producer in drafted.structure.accumulators.items():
        tensors[name] = accumulator_encoding(producer, tensors, edges)
    plan = Plan(drafted.target.name, tensors, edges, dict(drafted.placement))
    for wrong in product_violations(drafted.graph, plan, drafted.target):
        raise AssertionError(wrong)
    return follower.notes()


@dataclass
class _Follower:
    drafted: Draft
    tensors: dict[str, Encoding]
    edges: dict[str, Encoding]
    weigh: Weigh
    coarse: dict[str, int] = field(default_factory=dict)
    clipped: dict[str, int] = field(default_factory=dict)
    grown: dict[str, None] = field(default_factory=dict)
    widened: dict[str, None] = field(default_factory=dict)

    def visit(self, growing: bool) -> bool:
        """Every quantized node once; whether an activation became coarser."""
        changed = False
        for node in self.drafted.graph:
            kind = self.drafted.placement[str(node.name)].type
            if kind == "float32":
                continue
            if not facts(node).is_product:
                changed |= growing and self._widened(node)
                self._constants(node, kind)
            elif constant_of(node.inputs[1]) is not None:
                changed |= self._weighted(node, kind, growing)
            else:
                self._constants(node, kind)  # a constant on the left
                changed |= self._dynamic(node, growing)
        return changed

    def notes(self) -> list[str]:
        """What a person should know."""
        found = []
        if self.coarse:
            found.append(
                f"{_listed(self.coarse)}: {sum(self.coarse.values())} channels have coarser weights than they want, so "
                "that biases and shifts fit"
            )
        if self.grown:
            found.append(f"{_listed(self.grown)}: a coarser scale, or the sums behind would be shifted to the left")
        if self.widened:
            found.append(f"{_listed(self.widened)}: a coarser scale, so that the constant added there fits")
        if self.clipped:
            found.append(f"{_listed(self.clipped)}: {sum(self.clipped.values())} channels have clipped weights")
        return found

    def _widened(self, node: ir.Node) -> bool:
        """Enlarge the scale in which a sum and its operands are read until a constant among them is not cut off."""
        name, target = str(node.outputs[0].name), self.drafted.target
        output = self.tensors.get(name)
        if output is None or output.zero_point or target.shared.get(node.op_type) != "output":
            return False
        if facts(node).aligns or node.op_type not in target.constant_operands:
            return False
        constants = [constant for value in node.inputs if (constant := constant_of(value)) is not None]
        largest = max((float(np.abs(constant).max(initial=0)) for constant in constants), default=0.0)
        wanted = largest / (output.qmax + 1)  # one step beyond is rounding
        if float(output.scales) >= wanted:
            return False
        group = self.drafted.structure.of[name].values
        if self.drafted.pins.fixed(group) is not None:
            return False  # as a person wants it
        self.widened[name] = None
        power = target.activation.scale == "power-of-two"
        self._enlarge(group, float(np.exp2(np.ceil(np.log2(wanted)))) if power else wanted)
        return True

    def _constants(self, node: ir.Node, kind: str) -> None:
        target = self.drafted.target
        if node.op_type not in target.constant_operands:
            return
        aligned = target.shared.get(node.op_type) == "output" or facts(node).aligns
        output = self.tensors.get(str(node.outputs[0].name)) if aligned else None
        if output is None and facts(node).aligns:
            return  # the float end of a network
        for value in node.inputs:
            constant = constant_of(value)
            if value is not None and constant is not None and constant.dtype == np.float32:
                self.tensors[str(value.name)] = output or constant_encoding(constant, target, kind)

    def _dynamic(self, node: ir.Node, growing: bool) -> bool:
        """A product of two activations: only its result can give way."""
        read = [read_encoding(node, index, self.tensors, self.edges) for index in (0, 1)]
        if read[0] is None or read[1] is None or not growing:
            return False
        return self._coarsen(node, float(read[0].scales * read[1].scales))

    def _weighted(self, node: ir.Node, kind: str, growing: bool) -> bool:
        target, bias = self.drafted.target, _bias(node)
        read = operand_encoding(node, 0, self.tensors, self.edges)
        own, step = self.weigh(node, target.weight.type_for(kind)), float(read.scales)
        least = _sides(bias, own) / (target.bias.largest_for(kind) * step)
        low, high = target.requantize.shift_range
        result = self._written(node)
        if result is not None:
            least = np.maximum(least, float(result.scales) * 2.0**-high / step)
        else:
            least = np.maximum(least, target.outputs.smallest_scale / step)
        weight = self._roomy(node, own, least)
        changed = growing and self._coarsen(node, float(np.max(weight.scales)) * step)
        if result is not None and not growing:
            weight = self._clipped(node, weight, least, float(result.scales) * 2.0**-low / step)
        self._count(node, own, weight, read, bias)
        names = [str(value.name) for value in node.inputs[1:3] if value is not None]
        self.tensors.update(zip(names, (weight, bias_encoding(read, weight)), strict=False))
        return changed

    def _written(self, node: ir.Node) -> Encoding | None:
        value = written_value(node, self.tensors, self.drafted.target, self.drafted.placement)
        return None if value is None else self.tensors[str(value.name)]

    def _roomy(self, node: ir.Node, own: Encoding, least: Array) -> Encoding:
        """The encoding with scales of ``least`` or more."""
        if not np.any(own.scales < least * (1 - 1e-9)):
            return own
        if (name := self.drafted.pins.fixed([_weight_name(node)])) is not None:
            raise UserError(
                f"the pinned scale of {name} leaves no room for bias and shift of {node.name}",
                f"pin {float(np.max(least)):.3g} or more, or nothing",
            )
        if self.drafted.target.weight.scale == "power-of-two":
            least = np.exp2(np.ceil(np.log2(np.maximum(least, 1e-300)) - 1e-9))
        return _scaled(own, np.maximum(own.scales, least))

    def _clipped(self, node: ir.Node, weight: Encoding, least: Array, most: float) -> Encoding:
        """The encoding with scales of ``most`` or less."""
        over = int(np.count_nonzero(weight.scales > most * (1 + 1e-9)))
        if not over:
            return weight
        if np.any(least > most * (1 + 1e-9)):
            raise UserError(f"the biases of {node.name} are too large for its result", "calibrate on more images")
        self.clipped[str(node.name)] = over
        return _scaled(weight, np.minimum(weight.scales, most))

    def _coarsen(self, node: ir.Node, product: float) -> bool:
        """Enlarge the scale of the node's result until nothing is shifted further to the left than the chip can."""
        value = written_value(node, self.tensors, self.drafted.target, self.drafted.placement)
        if value is None:
            return False
        name, low = str(value.name), self.drafted.target.requantize.shift_range[0]
        wanted = product * 2.0**low
        if float(self.tensors[name].scales) >= wanted * (1 - 1e-9):
            return False
        group = self.drafted.structure.of[name]
        if (pinned := self.drafted.pins.fixed(group.values)) is not None:
            raise UserError(
                f"the pinned scale of {pinned} is too fine: what {node.name} adds up would be shifted to the left",
                f"pin {wanted:.3g} or more, or nothing",
            )
        source = node.inputs[0]
        if source is not None and str(source.name) in group.values:
            return False  # it would have to be coarser than itself
        self.grown[name] = None
        self._enlarge(group.values, wanted)
        return True

    def _enlarge(self, values: list[str], scale: float) -> None:
        """Give all tensors of a group, and whatever is read in its encoding, another scale."""
        structure, nodes = self.drafted.structure, self.drafted.nodes_by_name
        group = structure.of[values[0]]
        for name in values:
            self.tensors[name] = replace(self.tensors[name], scale=scale)
        for key, encoding in list(self.edges.items()):
            if structure.edges.get(key) is group:
                self.edges[key] = replace(encoding, scale=scale)
            elif read_name(key, nodes) in values and (encoding.dtype, group.type) == ("int16", "int8"):
                self.edges[key] = replace(encoding, scale=scale / 256)  # every int8 value is an int16 value

    def _count(self, node: ir.Node, own: Encoding, weight: Encoding, read: Encoding, bias: Any) -> None:
        """Remember the channels that a coarser scale costs something."""
        self.coarse.pop(str(node.name), None)
        values = constant_of(node.inputs[1])
        if weight == own or values is None or str(node.name) in self.clipped:
            return
        axes = tuple(axis for axis in range(values.ndim) if axis != own.axis)
        top = max(read.qmax - read.zero_point, read.zero_point - read.qmin) * float(read.scales)
        errors = [np.abs(each.dequantize(each.quantize(values)) - values).sum(axis=axes) for each in (own, weight)]
        signal = np.abs(values).sum(axis=axes) * top + _sides(bias, own)
        worse = int(np.count_nonzero((errors[1] - errors[0]) * top > _UNSEEN * signal))
        if worse:
            self.coarse[str(node.name)] = worse


def _weight_name(node: ir.Node) -> str:
    return str(node.inputs[1].name) if node.inputs[1] is not None else ""


def _bias(node: ir.Node) -> NDArray[Any] | None:
    """The constant bias of a sum of products, ``None`` where it has none."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    bias = constant_of(value)
    if value is not None and bias is None:
        raise UserError(f"the bias of {node.name} is computed", "export the model with constant biases")
    return bias


def _sides(bias: Any, weight: Encoding) -> Array:
    """Magnitudes of the biases, one for each scale of the weight: the largest where it has one scale."""
    if bias is None:
        return np.zeros(weight.scales.shape)
    sides = np.abs(np.asarray(bias, np.float64)).reshape(-1)
    return np.asarray(sides.max() if weight.axis is None else np.broadcast_to(sides, weight.scales.shape))


def _scaled(encoding: Encoding, scales: Array) -> Encoding:
    flat = tuple(float(scale) for scale in scales) if encoding.axis is not None else float(scales)
    return replace(encoding, scale=flat)


def _listed(names: dict[str, Any]) -> str:
    first = next(iter(names))
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"


def choose_encoding(
    statistics: Sequence[TensorStatistics],
    target: Target,
    dtype: str,
    method: str,
    percentile: float = 99.99,
    through: str | None = None,
) -> Encoding:
    """Choose the range.

    A histogram bin is wider than an int16 step, so 16 bits take the whole range. Except where a 16-bit function is a
    table with steps (2049 entries on ESP-DL): all that reads the tensor sees those 11 bits, so the range is chosen for
    them. The whole range of the convolutions before SiLU, which reach far into its flat side, would leave no more
    than 8 of them.

    Args:
        statistics: of each tensor.
        target: the chip's rules.
        dtype: ``"int8"`` or ``"int16"``.
        method, percentile: one of :data:`narrowcast.calibrate.METHODS`, and its number in percent.
        through: name of the one function that reads the tensors, if there is one.
    """
    rules = target.activation
    power_of_two = rules.scale == "power-of-two"
    qmin, qmax = DTYPES[dtype]
    if rules.restricted_range and rules.symmetric:
        qmin = -qmax
    spec = RangeSpec(qmin, qmax, rules.symmetric, power_of_two, method if dtype == "int8" else "minmax", percentile)
    table = target.table16
    name = through.split()[0] if through else ""
    stepped = table is not None and name in target.tables and name not in table.exact
    if dtype == "int16" and table is not None and stepped and power_of_two:
        half = table.entries // 2
        scale, _ = choose_range(statistics, replace(spec, qmin=-half, qmax=half - 1, method="lp"), through)
        return Encoding(dtype, scale / table.step)
    return Encoding(dtype, *choose_range(statistics, spec, through))


def finish(
    drafted: Draft,
    statistics: Mapping[str, TensorStatistics],
    method: str,
    percentile: float = 99.99,
    chosen: Mapping[int, Encoding] | None = None,
) -> tuple[Plan, list[str]]:
    """Choose every encoding.

    Args:
        drafted: from :func:`draft`.
        statistics: of :meth:`Draft.wanted_statistics`.
        method, percentile: one of :data:`narrowcast.calibrate.METHODS` or ``"auto"`` (the target's), and its number.
        chosen: encodings already decided, by index of the group in the structure.

    Returns:
        The plan, and notes a person should read.
    """
    target, given = drafted.target, chosen or {}
    method = target.calibration if method == "auto" else method

    def ranged(group: Group, dtype: str, through: str | None = None) -> Encoding:
        return choose_encoding([statistics[name] for name in group.sources], target, dtype, method, percentile, through)

    def encode(group: Group) -> Encoding:
        pin = next((pin for name in group.values if (pin := drafted.pins.tensors.get(name)) is not None), TensorPin())
        dtype = pin.dtype or group.type
        if isinstance(pin.scale, tuple):
            raise UserError(f"{group.values[0]} is pinned to {len(pin.scale)} scales", "an activation has one")
        if pin.scale is not None:
            return Encoding(dtype, pin.scale, pin.zero_point)
        return ranged(group, dtype, group.through)

    encodings = [given.get(index) or encode(group) for index, group in enumerate(drafted.structure.groups)]
    return _completed(drafted, encodings, lambda _, group: ranged(group, "int8"), drafted.weight)


def replan(
    drafted: Draft,
    plan: Plan,
    statistics: Mapping[str, TensorStatistics] | None = None,
    *,
    room: float = 1.0,
    own_weight: Weigh | None = None,
) -> tuple[Plan, list[str]]:
    """A plan for a graph whose weights, scales or types have changed since: what keeps its type keeps its encoding.

    Planning again from statistics would move ranges that were chosen with care. Only what changes its type is made
    anew: a 16-bit tensor takes the whole range that float needs, a 16-bit weight its own least-error scale.

    Args:
        drafted: of the graph as it is now, with the types that are wanted.
        plan: whose scales stay, but for those that leave biases and shifts no room any more.
        statistics: in float, of every tensor whose type may change; none where no type does.
        room: by which a free scale of a new 16-bit tensor is larger than what the statistics need.
        own_weight: what a weight of another type wants; by default :meth:`Draft.weight`.

    Returns:
        The plan, and notes a person should read. Reasons of nodes whose type stays are those of ``plan``.
    """
    target, known = drafted.target, plan.tensors

    def full_range(group: Group, dtype: str, through: str | None = None) -> Encoding:
        assert statistics is not None, f"{group.values[0]} changes its type"
        found = choose_encoding([statistics[name] for name in group.sources], target, dtype, "minmax", through=through)
        free = dtype == "int16" and target.activation.scale == "free"
        return replace(found, scale=float(found.scales) * room) if free else found

    def encode(group: Group) -> Encoding:
        before = (known[name] for name in group.values if name in known)
        same = (encoding for encoding in before if (encoding.dtype in EIGHT_BITS) == (group.type in EIGHT_BITS))
        return next(same, None) or full_range(group, group.type, group.through)

    def narrow(key: str, group: Group) -> Encoding:
        """How 8-bit readers see a 16-bit tensor: as it was in 8 bits."""
        before = plan.edges.get(key) or next((known[name] for name in group.values if name in known), None)
        return before if before is not None and before.dtype in EIGHT_BITS else full_range(group, "int8")

    def weigh(node: ir.Node, dtype: str) -> Encoding:
        before = known.get(_weight_name(node))
        return before if before is not None and before.dtype == dtype else (own_weight or drafted.weight)(node, dtype)

    found, notes = _completed(drafted, [encode(group) for group in drafted.structure.groups], narrow, weigh)
    nodes = {
        name: plan.nodes[name] if name in plan.nodes and plan.nodes[name].type == placement.type else placement
        for name, placement in found.nodes.items()
    }
    return replace(found, nodes=nodes), notes


def _completed(
    drafted: Draft, encodings: Sequence[Encoding], narrow: Callable[[str, Group], Encoding], weigh: Weigh
) -> tuple[Plan, list[str]]:
    """The plan of the encodings of all groups, and notes.

    Where all operands of a node must have its type, an input of another type is requantized on the edge; how 8-bit
    nodes read a 16-bit group there, ``narrow`` says for the key of the edge.
    """
    structure = drafted.structure
    by_group = {id(group): encoding for group, encoding in zip(structure.groups, encodings, strict=True)}
    tensors = {name: by_group[id(group)] for group in structure.groups for name in group.values}
    edges = {key: by_group[id(group)] for key, group in structure.edges.items()}
    mixed: dict[str, Encoding] = {}
    for node in drafted.graph if drafted.target.uniform_types else ():
        wanted = drafted.placement[str(node.name)].type
        if wanted == "float32" or drafted.is_passive(node):
            continue
        for index, value in computed_inputs(node):
            key = edge_key(str(node.name), index)
            current = read_encoding(node, index, tensors, edges)
            if current is None or current.dtype == wanted:
                continue
            if wanted == "int16":  # every int8 value is an int16 value of a 256 times finer step
                mixed[key] = Encoding("int16", float(current.scales) / 256)
            else:
                mixed[key] = narrow(key, structure.of[str(value.name)])
    edges.update(mixed)
    notes = follow(drafted, tensors, edges, weigh)
    return Plan(drafted.target.name, tensors, edges, dict(drafted.placement)), notes
