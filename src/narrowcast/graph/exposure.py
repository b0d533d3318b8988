"""Find the decode head of a YOLOv8 / YOLO11 export by topology and cut it off after its last convolutions.

A stock export ends in arithmetic that puts pixels (0..640) and probabilities (0..1) into one tensor, which no
8-bit scale can hold. The walk goes back from the outputs and stops at convolutions, so names do not matter;
whether the guess is right is decided by running both graphs (:mod:`narrowcast.graph.check`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from narrowcast.ops.facts import Kind, facts
from narrowcast.ops.net import constant_of, dims
from narrowcast.vision.heads import HeadSpec

__all__ = ["Exposure", "cut", "find_head"]


@dataclass(frozen=True)
class Exposure:
    """A recognised head: its layout and the values at which the graph is cut, by new output name."""

    head: HeadSpec
    values: dict[str, ir.Value]


def find_head(graph: ir.Graph, keypoint_shape: tuple[int, int] | None = None) -> Exposure | str:
    """Recognise a detect, pose or segment head.

    Args:
        graph: static shapes, constants as initializers.
        keypoint_shape: (keypoints, 2 or 3) where the file says it.

    Returns:
        The head, or one clause that says why there is none.
    """
    decoded = [output for output in graph.outputs if len(dims(output)) == 3]
    if len(decoded) != 1:
        return "no single decoded output with three axes (1, rows, anchors)"
    rows, anchors = dims(decoded[0])[1:]
    convolutions = _last_convolutions(decoded[0])
    if isinstance(convolutions, str):
        return convolutions
    levels = _levels(graph, convolutions)
    if isinstance(levels, str):
        return levels
    cells = sum(dims(convs[0])[2] * dims(convs[0])[3] for convs in levels.values())
    if cells != anchors:
        return f"the last convolutions have {cells} cells, the output {anchors} anchors"
    channels = {tuple(dims(conv)[1] for conv in convs) for convs in levels.values()}
    if len(channels) != 1:
        return "the strides differ in their channels"
    return _describe(graph, levels, next(iter(channels)), rows, keypoint_shape)


def _describe(
    graph: ir.Graph,
    levels: dict[int, list[ir.Value]],
    channels: tuple[int, ...],
    rows: int,
    keypoint_shape: tuple[int, int] | None,
) -> Exposure | str:
    if len(channels) not in (2, 3) or channels[0] % 4:
        return f"{len(channels)} last convolutions a stride with {channels} channels fit no known head"
    box, classes, extra = channels[0], channels[1], channels[2] if len(channels) == 3 else 0
    if rows != 4 + classes + extra:
        return f"{rows} output rows fit no head with {channels} channels"
    protos = [output for output in graph.outputs if len(dims(output)) == 4]
    task, role = ("detect", "") if not extra else ("segment", "mask") if protos else ("pose", "kpt")
    if task == "segment" and (len(protos) != 1 or dims(protos[0])[1] != extra):
        return "the mask prototypes do not fit the mask coefficients"
    if task == "pose":
        if keypoint_shape is None and extra % 3 == 0:
            keypoint_shape = (extra // 3, 3)
        if keypoint_shape is None or keypoint_shape[0] * keypoint_shape[1] != extra:
            return f"{extra} extra channels are no known keypoint layout"
    head = HeadSpec(
        task=task,
        strides=tuple(levels),
        num_classes=classes,
        reg_max=box // 4,
        keypoint_shape=keypoint_shape if task == "pose" else None,
        num_masks=extra if task == "segment" else 0,
    )
    values = {
        f"{name}_s{stride}": conv
        for stride, convs in levels.items()
        for name, conv in zip(("box", "cls", role), convs, strict=False)
    }
    if protos:
        values["proto"] = protos[0]
    return Exposure(head, values)


def _is_decode_arithmetic(conv: ir.Node) -> bool:
    """The 1x1 convolution of DFL with the fixed weights 0, 1, 2, ... is part of decode."""
    weight = constant_of(conv.inputs[1])
    return weight is not None and weight.shape[0] == 1 and bool(np.array_equal(weight.ravel(), np.arange(weight.size)))


def _last_convolutions(output: ir.Value) -> list[ir.Value] | str:
    """Outputs of the convolutions first met when walking back, in the order of the operands (box first)."""
    found: list[ir.Value] = []
    seen: set[ir.Value] = set()
    stack = [output]
    while stack:
        value = stack.pop()
        if value in seen or value.const_value is not None:
            continue
        seen.add(value)
        node = value.producer()
        if node is None:
            return "the output depends on the input without a convolution between"
        if facts(node).kind in (Kind.CONVOLUTION, Kind.TRANSPOSED) and not _is_decode_arithmetic(node):
            found.append(value)
        else:
            stack.extend(operand for operand in reversed(node.inputs) if operand is not None)
    return found


def _levels(graph: ir.Graph, convolutions: list[ir.Value]) -> dict[int, list[ir.Value]] | str:
    """Group by feature-map size: stride (ascending) to convolutions in walking order."""
    height, width = dims(graph.inputs[0])[2:]
    levels: dict[int, list[ir.Value]] = {}
    for conv in convolutions:
        sizes = dims(conv)
        if len(sizes) != 4 or height % sizes[2] or height // sizes[2] != width // sizes[3] or width % sizes[3]:
            return f"{conv.name} has the shape {list(sizes)}, which is no whole stride of the input"
        levels.setdefault(height // sizes[2], []).append(conv)
    return dict(sorted(levels.items()))


def cut(model: ir.Model, exposure: Exposure) -> None:
    """Make the values of ``exposure`` the graph's outputs, named as there, in place."""
    graph = model.graph
    graph.outputs.clear()
    for name, value in exposure.values.items():
        value.name = name
        graph.outputs.append(value)
    remove_unused(model)


def remove_unused(model: ir.Model) -> None:
    """Drop nodes, functions and initializers that no output needs, in place."""
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)
