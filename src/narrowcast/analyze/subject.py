"""What is analyzed: its regions, plans that quantize only a part of it, and the images that say most."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.base.progress import track
from narrowcast.calibrate.images import ImageSet, spread
from narrowcast.engine.network import QuantizedNetwork
from narrowcast.engine.qdq import factored, lower_qdq
from narrowcast.graph.run import Runner
from narrowcast.ops.facts import Kind, facts, weight_axis
from narrowcast.ops.functions import unary_name
from narrowcast.ops.net import computed_inputs, constant_of, dims, leads_to, named, only_reader
from narrowcast.plan.structure import is_passive
from narrowcast.plan.types import Encoding, Plan, edge_key
from narrowcast.tasks import Look, Task, TaskJudge

#: Region of the nodes that more than one kind of output depends on.
BACKBONE = "backbone and neck"
#: Region of every node of a graph without a head.
WHOLE = "whole network"

@dataclass(frozen=True, kw_only=True)
class Subject(QuantizedNetwork):
    """A quantized network and the images to analyze it on.

    Attributes:
        meaning: of its outputs.
        inputs: model inputs, each (1, C, H, W) or (1, H, W, C) float32; none of them used for calibration.
        input_size: height and width of the input in pixels.
        source: the same graph before its weights were corrected; ``None`` where they were not.
        bundle: path of the bundle, for commands that a person may paste.
        command: words of the ``narrowcast quantize`` that makes the plan again, but for ``--out``.
    """

    meaning: Task
    inputs: Sequence[NDArray[np.float32]]
    input_size: tuple[int, int]
    source: ir.Model | None = None
    bundle: str = "BUNDLE"
    command: Sequence[str] = ("narrowcast", "quantize", "MODEL.onnx", "--images", "FOLDER")

    @cached_property
    def nodes(self) -> dict[str, ir.Node]:
        """Every node by name, in graph order."""
        return named(self.model.graph)

    @cached_property
    def model_proto(self) -> onnx.ModelProto:
        """The prepared graph as it is, with its activation units."""
        return ir.to_proto(self.model)

    @cached_property
    def float_graph(self) -> onnx.ModelProto:
        """The graph with nothing quantized, in standard operators."""
        return self.lower(Plan(self.plan.target))

    @cached_property
    def quantized_graph(self) -> onnx.ModelProto:
        """The graph with everything quantized."""
        return self.lower(self.plan)

    @property
    def output_names(self) -> list[str]:
        """Of the graph, in order."""
        return [str(value.name) for value in self.model.graph.outputs]

    @property
    def output_encodings(self) -> dict[str, Encoding]:
        """Of the outputs that are quantized, as a program reads them: factors of channels divided out."""
        found = {name: self.plan.tensors[name] for name in self.output_names if name in self.plan.tensors}
        for name, factors in self.factors.items():
            found[name] = factored(found[name], factors)
        return found

    def true_outputs(self, outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs of any lowering of the graph with the factors of channels divided out."""
        found = dict(outputs)
        for name, factors in self.factors.items():
            shape = (1, -1, *[1] * (found[name].ndim - 2))
            found[name] = (found[name] / factors.reshape(shape)).astype(np.float32)
        return found

    @cached_property
    def uncorrected(self) -> dict[str, onnx.TensorProto]:
        """Constants that were corrected, as they were before, times the factors of their output."""
        if self.source is None:
            return {}
        before = {str(node.name): node for node in self.source.graph}
        found: dict[str, onnx.TensorProto] = {}
        for name, node in self.nodes.items():
            factors = self.factors.get(str(node.outputs[0].name))
            for index, value in enumerate(node.inputs[1:3], 1):
                after, old = constant_of(value), constant_of(before[name].inputs[index]) if name in before else None
                if value is None or after is None or old is None or after.shape != old.shape:
                    continue
                if factors is not None:
                    old = old * factors.reshape(
                        [-1 if axis == _out_axis(node, index) else 1 for axis in range(old.ndim)]
                    )
                if not np.array_equal(after, old):
                    key = str(value.name)
                    found[key] = onnx.numpy_helper.from_array(np.asarray(old, after.dtype), key)
        return found

    def lower(self, plan: Plan) -> onnx.ModelProto:
        """The graph under another plan; what that leaves in float has its weights from before any correction."""
        proto = lower_qdq(self.model, plan)[0]
        for tensor in proto.graph.initializer:
            if tensor.name in self.uncorrected:
                tensor.CopyFrom(self.uncorrected[tensor.name])
        return proto

    def quantized_nodes(self) -> list[str]:
        """Nodes that compute something in integers, in graph order."""
        return [
            name
            for name, node in self.nodes.items()
            if self.plan.nodes[name].type != "float32" and not is_passive(node, self.target)
        ]

    def products(self) -> list[str]:
        """Those of them that are convolutions or other sums of products with a constant weight."""
        return [
            name
            for name in self.quantized_nodes()
            if facts(self.nodes[name]).is_product and constant_of(self.nodes[name].inputs[1]) is not None
        ]


def _out_axis(node: ir.Node, index: int) -> int:
    """Axis of output channels of a weight (input 1) or bias (input 2)."""
    return 0 if index == 2 else weight_axis(node)


def subplan(
    subject: Subject, chosen: Collection[str], *, weights: bool = True, activations: bool = True, alone: bool = True
) -> Plan:
    """The plan with nothing quantized but some nodes.

    A node is quantized with its weights and bias, its output, and what it reads: other readers of the same tensor keep
    the float values. Where the chip runs a node and the next as one unit, the output is the unit's.

    Args:
        subject: the model.
        chosen: names of nodes.
        weights: quantize constants.
        activations: quantize what is computed.
        alone: also what the nodes read from nodes that are not chosen.
    """
    plan, names = subject.plan, set(chosen)
    tensors: dict[str, Encoding] = {}
    edges: dict[str, Encoding] = {}
    for name, node in subject.nodes.items():
        if name not in names:
            continue
        if weights:
            constants = (str(value.name) for value in node.inputs if constant_of(value) is not None and value)
            tensors.update({entry: plan.tensors[entry] for entry in constants if entry in plan.tensors})
        if activations:
            for output in _unit_outputs(node, plan):
                if str(output.name) in plan.tensors:
                    tensors[str(output.name)] = plan.tensors[str(output.name)]
    if activations:
        for name in names:
            _read_edges(subject, name, tensors, edges, alone)
    return replace(plan, tensors=tensors, edges=edges)


def _unit_outputs(node: ir.Node, plan: Plan) -> list[ir.Value]:
    """Outputs of the node, or of the last node of the chain that runs as one unit with it."""
    outputs = list(node.outputs)
    while len(outputs) == 1 and str(outputs[0].name) not in plan.tensors:
        user = only_reader(outputs[0])
        if user is None or plan.nodes[str(user.name)].type == "float32":
            break
        outputs = list(user.outputs)
    return outputs


def _read_edges(
    subject: Subject, name: str, tensors: dict[str, Encoding], edges: dict[str, Encoding], alone: bool
) -> None:
    plan = subject.plan
    for index, value in computed_inputs(subject.nodes[name]):
        key = edge_key(name, index)
        if key in plan.edges:
            edges[key] = plan.edges[key]
        elif alone and str(value.name) in plan.tensors and str(value.name) not in tensors:
            edges[key] = plan.tensors[str(value.name)]


def regions(subject: Subject) -> dict[str, str]:
    """Node name to its region, in graph order.

    A node belongs to a branch of the head when all that it leads to is outputs of that branch. A graph without a head
    is one region.
    """
    if subject.meaning.head is None:
        return dict.fromkeys(subject.nodes, WHOLE)
    names = subject.output_names
    branches = {name: subject.meaning.branch(name) for name in names}
    found = {}
    for node, outputs in leads_to(subject.model.graph, names).items():
        kinds = {branches[name] for name in outputs}
        found[node] = kinds.pop() if len(kinds) == 1 else BACKBONE
    return found


def macs(node: ir.Node) -> int:
    """Multiplications of one inference; 0 for a node that is no sum of products.

    Conv: output elements times weights of one output channel; ConvTranspose: input elements times weights of one input
    channel; Gemm and MatMul: output elements times the common dimension.
    """
    if not facts(node).is_product or node.inputs[0] is None or node.inputs[1] is None:
        return 0
    weight, read, written = constant_of(node.inputs[1]), dims(node.inputs[0]), dims(node.outputs[0])
    if facts(node).kind in (Kind.CONVOLUTION, Kind.TRANSPOSED) and weight is not None:
        return math.prod(written if facts(node).kind is Kind.CONVOLUTION else read) * math.prod(weight.shape[1:])
    common = read[:1] if facts(node).kind is Kind.LINEAR and node.attributes.get_int("transA", 0) else read[-1:]
    return math.prod(written) * (common[0] if common else 0)


def with_activation(node: ir.Node) -> list[str]:
    """Names of the node and of the activation function that alone reads it, if there is one."""
    reader = only_reader(node.outputs[0])
    last = [str(reader.name)] if reader is not None and unary_name(reader) is not None else []
    return [str(node.name), *last]


def unseen(images: ImageSet, used: Collection[str]) -> tuple[ImageSet, int]:
    """Images that nothing was made from yet, each content once.

    Args:
        images: those given.
        used: SHA-256 of those that something was made from, such as the calibration images.

    Returns:
        What remains, and how many were left out because they were used.

    Raises:
        UserError: nothing remains.
    """
    digests, known = images.hashes(), set(used)
    first = {digest: index for index, digest in reversed(list(enumerate(digests)))}
    keep = sorted(index for digest, index in first.items() if digest not in known)
    if not keep:
        raise UserError(
            f"all {len(images)} images were used for calibration", "give others, or calibrate on fewer of them"
        )
    return images.subset(keep), sum(digest in known for digest in digests)


def telling(images: ImageSet, limit: int, proto: onnx.ModelProto, meaning: Task) -> ImageSet:
    """At most ``limit`` images, those in which the float model finds something first.

    An image in which nothing is found only tells about false positives. Up to four times as many images are looked
    at, spread evenly; unreadable ones are left out.

    Args:
        images: to choose from.
        limit: how many.
        proto: float graph.
        meaning: of its outputs; without a head the images are spread evenly.
    """
    count = len(images)
    wanted = min(limit, count)
    looked_at = images.spread(min(count, wanted if meaning.head is None else 4 * limit)).usable()
    seen = len(looked_at)
    if meaning.head is None or seen <= wanted:
        return looked_at
    size = images.preprocess.height, images.preprocess.width
    runner = Runner(proto, 0, "basic")
    found = []
    for tensor in track(looked_at, "choose", seen):
        found.append(TaskJudge(meaning, [runner.run(tensor)], Look(size)).detections[0] > 0)
    order = sorted(range(seen), key=lambda index: (not found[index], index))
    first = [index for index in order if found[index]]
    chosen = spread(first, wanted) if len(first) >= wanted else order[:wanted]
    return looked_at.subset(sorted(chosen))
