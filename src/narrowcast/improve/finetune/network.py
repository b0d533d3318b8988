"""The quantized network in torch: the graph node by node, rounded where the plan has encodings.

Rounding lets gradients through unchanged inside the range and stops them outside (straight-through; Bengio et al.,
2013). Weights are trained in steps of their encoding, so that one learning rate fits every layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from narrowcast.improve.finetune.operators import check_operators, compute, is_moving
from narrowcast.ops.facts import Kind, facts
from narrowcast.ops.net import constant_of
from narrowcast.plan import Encoding, Plan, edge_key
from narrowcast.plan.drafting import read_encoding

Tensor = Any
Values = dict[str, Tensor]


class Weight:
    """A weight in steps of its encoding.

    Args:
        array: real values.
        encoding: of the plan.
        device: of torch.

    Attributes:
        steps: the trained tensor, real numbers of steps.
    """

    def __init__(self, array: NDArray[Any], encoding: Encoding, device: str) -> None:
        scale = encoding.broadcast(array.ndim)
        self.low, self.high = encoding.qmin - encoding.zero_point, encoding.qmax - encoding.zero_point
        nearest = np.rint(array / scale)
        if self.low == -self.high - 1 and nearest.min(initial=0) > self.low:
            self.low = -self.high  # the target may not want the lowest value, and these weights do not need it
        self.scale = torch.tensor(scale, dtype=torch.float32, device=device)
        self.steps = torch.tensor(array / scale, dtype=torch.float32, device=device)

    def value(self) -> Tensor:
        """Rounded real values, with gradients."""
        kept = self.steps.clamp(self.low, self.high)
        return (kept + (kept.round() - kept).detach()) * self.scale

    def array(self) -> NDArray[np.float32]:
        """Rounded real values."""
        whole = self.steps.detach().clamp(self.low, self.high).round().double() * self.scale.double()
        return np.asarray(whole.cpu().numpy(), np.float32)


class Scales:
    """Scales of activations in the log domain (Jain et al., TQT, 2020), one parameter for what shares an encoding.

    Args:
        groups: keys that share one scale: value names and edge keys.
        encodings: of every key.
        whole: scales stay powers of two: the forward pass rounds the exponent.
        device: of torch.

    Attributes:
        log2: the trained tensor, (groups,).
    """

    def __init__(
        self, groups: Sequence[Sequence[str]], encodings: Mapping[str, Encoding], whole: bool, device: str
    ) -> None:
        self.groups, self.whole = [list(group) for group in groups], whole
        self.index = {key: index for index, group in enumerate(self.groups) for key in group}
        start = [float(np.log2(float(encodings[group[0]].scales))) for group in self.groups]
        self.log2 = torch.tensor(start, dtype=torch.float32, device=device)

    def fake(self, x: Tensor, encoding: Encoding, key: str) -> Tensor:
        """Round to the trained scale, with gradients to it."""
        exponent = self.log2[self.index[key]]
        if self.whole:
            exponent = exponent + (exponent.round() - exponent).detach()
        scale = torch.exp2(exponent)
        steps = (x / scale).clamp(encoding.qmin - encoding.zero_point, encoding.qmax - encoding.zero_point)
        return (steps + (steps.round() - steps).detach()) * scale

    def found(self) -> list[float]:
        """The scale of every group."""
        exponents = self.log2.detach().double().cpu().numpy()
        return [float(2.0 ** (np.rint(value) if self.whole else value)) for value in exponents]


class Network:
    """A prepared graph under a plan.

    Args:
        model: prepared graph; not changed.
        plan: its encodings.
        device: of torch.
        scales: trained scales; by default the plan's are fixed.

    Attributes:
        nodes: in graph order.
        weights: rounded weights by name.
        biases: shift of each bias in its own steps, by name; 0 at the start.

    Raises:
        UserError: a node without a rule.
    """

    def __init__(self, model: ir.Model, plan: Plan, device: str = "cpu", scales: Scales | None = None) -> None:
        check_operators(model.graph)
        self.plan, self.device, self.scales = plan, device, scales
        self.nodes = list(model.graph)
        self.weights: dict[str, Weight] = {}
        self.biases: Values = {}
        self.bias_steps: Values = {}
        self.constants: Values = {}
        for node in self.nodes:
            self._take_parameters(node)
        for value in model.graph.initializers.values():
            name, array = str(value.name), constant_of(value)
            if name not in self.weights and array is not None:
                encoding = plan.tensors.get(name)
                fixed = array if encoding is None or encoding.dtype == "int32" else _nearest(array, encoding)
                self.constants[name] = torch.tensor(np.asarray(fixed), device=device)

    def _take_parameters(self, node: ir.Node) -> None:
        weight = constant_of(node.inputs[1]) if facts(node).is_product else None
        name = str(node.inputs[1].name) if weight is not None and node.inputs[1] is not None else ""
        encoding = self.plan.tensors.get(name)
        if weight is None or encoding is None:
            return
        if name not in self.weights:
            self.weights[name] = Weight(weight, encoding, self.device)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        array = constant_of(bias)
        read = self.encoding_read(node, 0)
        if bias is None or array is None or read is None or str(bias.name) in self.biases:
            return
        # what a change of every weight by a step does for a quarter of the largest input, divided over the inputs
        step = np.broadcast_to(encoding.scales * float(read.scales) * read.qmax / 4, array.shape)
        self.biases[str(bias.name)] = torch.zeros(array.shape, device=self.device)
        self.bias_steps[str(bias.name)] = torch.tensor(np.array(step), dtype=torch.float32, device=self.device)

    def encoding_read(self, node: ir.Node, index: int) -> Encoding | None:
        """How a node reads an operand."""
        return read_encoding(node, index, self.plan.tensors, self.plan.edges)

    def parameters(self, nodes: Iterable[ir.Node]) -> list[Tensor]:
        """Trained tensors of some nodes: weights in steps and shifts of biases."""
        names = dict.fromkeys(str(value.name) for node in nodes for value in node.inputs if value is not None)
        found = [self.weights[name].steps for name in names if name in self.weights]
        return found + [self.biases[name] for name in names if name in self.biases]

    def fake(self, x: Tensor, encoding: Encoding, key: str) -> Tensor:
        """Round activations; ``key`` is a value name or an edge key."""
        if self.scales is not None and key in self.scales.index:
            return self.scales.fake(x, encoding, key)
        low, high = encoding.qmin, encoding.qmax
        return torch.fake_quantize_per_tensor_affine(x, float(encoding.scales), encoding.zero_point, low, high)

    def enter(self, name: str, x: Tensor) -> Tensor:
        """A graph input as the network sees it."""
        encoding = self.plan.tensors.get(name)
        return x if encoding is None else self.fake(x, encoding, name)

    def run(self, values: Values, nodes: Sequence[ir.Node], keep: Iterable[str]) -> Values:
        """Run some nodes, in graph order, on encoded values, and return those of ``keep``, encoded too."""
        wanted = set(keep)
        last = {str(value.name): node for node in nodes for value in node.inputs if value is not None}
        present = dict(values)
        for node in nodes:
            outputs = compute(node, [self._operand(node, index, present) for index in range(len(node.inputs))])
            for output, result in zip(node.outputs, outputs, strict=True):
                present[str(output.name)] = self._encoded(node, str(output.name), result)
            for value in node.inputs:
                if value is not None and last[str(value.name)] is node and str(value.name) not in wanted:
                    present.pop(str(value.name), None)
        return {name: present[name] for name in wanted}

    def _operand(self, node: ir.Node, index: int, present: Values) -> Tensor:
        value = node.inputs[index]
        if value is None:
            return None
        name = str(value.name)
        if name in self.weights:
            return self.weights[name].value()
        if name in self.biases:
            return self.constants[name] + self.biases[name] * self.bias_steps[name]
        if name in self.constants:
            return self.constants[name]
        key = edge_key(str(node.name), index)
        edge = self.plan.edges.get(key)
        return present[name] if edge is None else self.fake(present[name], edge, key)

    def _encoded(self, node: ir.Node, name: str, result: Tensor) -> Tensor:
        encoding = self.plan.tensors.get(name)
        if encoding is None or encoding.dtype == "int32":
            return result  # an accumulator is exact
        moves = is_moving(node) or (facts(node).kind is Kind.RESIZE and _is_nearest(node))
        if moves and all(
            self.encoding_read(node, index) == encoding
            for index, value in enumerate(node.inputs)
            if value is not None and value.const_value is None
        ):
            return result
        return self.fake(result, encoding, name)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Weights, rounded, and biases as they are now, by name."""
        found = {name: weight.array() for name, weight in self.weights.items()}
        for name, shift in self.biases.items():
            moved = self.constants[name] + shift.detach() * self.bias_steps[name]
            found[name] = np.asarray(moved.cpu().numpy(), np.float32)
        return found


def _nearest(array: NDArray[Any], encoding: Encoding) -> NDArray[Any]:
    return encoding.dequantize(encoding.quantize(array))


def _is_nearest(node: ir.Node) -> bool:
    return bool(node.attributes.get_string("mode", "nearest") == "nearest")


