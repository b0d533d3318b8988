"""Which part of the network a node belongs to, and how much work it is."""

from __future__ import annotations

import math

import onnx_ir as ir

from narrowcast.analyze.subject import Subject
from narrowcast.ops.net import constant_of
from narrowcast.plan.structure import ACCUMULATING

__all__ = ["BACKBONE", "WHOLE", "macs", "regions"]

#: Region of the nodes that more than one kind of output depends on.
BACKBONE = "backbone and neck"
#: Region of every node of a graph without a head.
WHOLE = "whole network"
_STEMS = {"box": "box branch", "cls": "class branch", "kpt": "keypoint branch", "mask": "mask coefficient branch"}


def regions(subject: Subject) -> dict[str, str]:
    """Node name to its region, in graph order.

    A node belongs to a branch of the head when all that it leads to is outputs of that branch. A graph without a head
    is one region.
    """
    if subject.head is None:
        return dict.fromkeys(subject.nodes, WHOLE)
    reached: dict[str, set[str]] = {}
    for name, node in reversed(list(subject.nodes.items())):
        kinds: set[str] = set()
        for output in node.outputs:
            if output.is_graph_output():
                kinds.add(_branch(str(output.name), subject))
            for use in output.uses():
                kinds |= reached[str(use.node.name)]
        reached[name] = kinds
    return {name: next(iter(reached[name])) if len(reached[name]) == 1 else BACKBONE for name in subject.nodes}


def _branch(output: str, subject: Subject) -> str:
    if output == "proto":
        return "prototype branch"
    return _STEMS.get(output.partition("_s")[0], output)


def macs(node: ir.Node) -> int:
    """Multiplications of one inference; 0 for a node that is no sum of products.

    Conv: output elements times weights of one output channel; ConvTranspose: input elements times weights of one input
    channel; Gemm and MatMul: output elements times the common dimension.
    """
    if node.op_type not in ACCUMULATING or node.inputs[0] is None or node.inputs[1] is None:
        return 0
    weight = constant_of(node.inputs[1])
    if node.op_type == "Conv" and weight is not None:
        return _size(node.outputs[0]) * int(math.prod(weight.shape[1:]))
    if node.op_type == "ConvTranspose" and weight is not None:
        return _size(node.inputs[0]) * int(math.prod(weight.shape[1:]))
    common = list(node.inputs[0].shape or ())[-1:]
    if node.op_type == "Gemm" and node.attributes.get_int("transA", 0):
        common = list(node.inputs[0].shape or ())[:1]
    return _size(node.outputs[0]) * int(common[0] if common and isinstance(common[0], int) else 0)


def _size(value: ir.Value) -> int:
    return int(math.prod(int(dim) for dim in value.shape or ()))
