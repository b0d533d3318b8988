"""Find the tensor that a chain of byte-moving nodes packs for a MatMul.

Exporters write a computed right operand through Reshape, Transpose, Slice and Concat nodes that put it into the order
of a packed filter. Instead of matching patterns, the chain is run on the numbers 0, 1, 2, ... and the result compared
with what packing gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.deploy.espdl.file import EspdlFile, EspdlNode
from narrowcast.deploy.espdl.packing import pack_matrix

__all__ = ["packing_source"]

_MOVING = ("Reshape", "Transpose", "Slice", "Concat")
#: The longest chain that exporters write has seven nodes.
_DEPTH = 8


def packing_source(
    file: EspdlFile, producers: Mapping[str, EspdlNode], name: str, shapes: Mapping[str, tuple[int, ...]], lanes: int
) -> str | None:
    """The tensor (..., C, N) whose packed form a tensor is; ``None`` when it is none.

    Args:
        file: the file.
        producers: activation to the node that computes it.
        name: of the packed tensor.
        shapes: of the activations, in the file's order of axes.
        lanes: channels of a block.
    """
    shape = shapes[name]
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    wanted = pack_matrix(numbers, lanes)
    for source in _ancestors(producers, name):
        if shapes.get(source) != shape:
            continue
        moved = _run(file, producers, name, source, numbers)
        if moved is not None and moved.size == wanted.size and np.array_equal(moved.ravel(), wanted):
            return source
    return None


def _ancestors(producers: Mapping[str, EspdlNode], name: str) -> list[str]:
    """Where the bytes of a tensor may come from, nearest first."""
    found, level = [], [name]
    for _ in range(_DEPTH):
        nodes = [producers[entry] for entry in level if entry in producers]
        moving = [node for node in nodes if node.op_type in _MOVING]
        level = list(dict.fromkeys(
            entry for node in moving for entry in (node.inputs if node.op_type == "Concat" else node.inputs[:1])
        ))  # fmt: skip
        found += level
    return list(dict.fromkeys(found))


def _run(
    file: EspdlFile, producers: Mapping[str, EspdlNode], name: str, source: str, numbers: NDArray[Any]
) -> NDArray[Any] | None:
    """A tensor of the file when ``source`` holds ``numbers``; ``None`` when it depends on something else."""
    if name == source:
        return numbers
    node = producers.get(name)
    if node is None or node.op_type not in _MOVING:
        return None
    if node.op_type == "Concat":
        parts = [_run(file, producers, entry, source, numbers) for entry in node.inputs]
        known = [part for part in parts if part is not None]
        return np.concatenate(known, node.integer("axis")) if len(known) == len(parts) else None
    x = _run(file, producers, node.inputs[0], source, numbers)
    if x is None:
        return None
    if node.op_type == "Transpose":
        return x.transpose(node.integers("perm") or None)
    if any(entry and entry not in file.tensors for entry in node.inputs[1:]):
        return None
    if node.op_type == "Reshape":
        return x.reshape([int(size) for size in file.array(node.inputs[1])])
    operands = [[int(number) for number in file.array(entry)] for entry in node.inputs[1:]]
    starts, ends, axes, steps = (*operands, *[[1] * len(operands[0])][: 4 - len(operands)])
    window = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        window[axis] = slice(start, end, step)
    return x[tuple(window)]
