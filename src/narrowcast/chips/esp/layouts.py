"""How a file lays numbers out: the order of a tensor's axes, and the packed order of filters.

An order says for every axis of the file's tensor which axis of the model's tensor it holds: ``(0, 2, 3, 1)`` is a
model's NCHW stored as NHWC.

Of a filter (N, C, ...) with N output channels, ESP-DL's vector units read the first ``N // lanes * lanes`` channels in
blocks of ``lanes``, as (N/lanes) H W C lanes; the rest follows as N H W C, or as C H W N of a depthwise filter (C is
1). ``lanes`` is 16 for 8-bit activations and 8 for 16-bit ones. A fully connected layer is a 1x1 convolution.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Order", "channels_last", "filter_layout", "identity", "inverse", "moves_nothing", "pack_filter", "pack_matrix",
    "packed_lanes", "reordered", "then", "unpack_filter", "unpack_matrix",
]  # fmt: skip

Order = tuple[int, ...]

_BLOCKED = re.compile(r"\(?N/?(\d+)\)?(H?W)C\1(_UNALIGNED)?")


def identity(rank: int) -> Order:
    """The model's own order."""
    return tuple(range(rank))


def channels_last(rank: int) -> Order:
    """N, then the window's axes, then the channels; the model's own order below three axes."""
    return (0, *range(2, rank), 1) if rank > 2 else identity(rank)


def inverse(order: Order) -> Order:
    """The permutation that undoes another."""
    return tuple(order.index(axis) for axis in range(len(order)))


def then(first: Order, second: Order) -> Order:
    """The permutation that a transposition by ``first`` and then one by ``second`` amount to."""
    return tuple(first[axis] for axis in second)


def reordered(shape: Sequence[int], order: Order) -> tuple[int, ...]:
    """A shape after transposition by an order."""
    return tuple(int(shape[axis]) for axis in order)


def moves_nothing(shape: Sequence[int], order: Order) -> bool:
    """Whether transposing a tensor of that shape leaves its elements where they are in memory: only axes of length
    one change places."""
    kept = [axis for axis in order if shape[axis] != 1]
    return kept == sorted(kept)


def packed_lanes(text: str) -> int | None:
    """What a tensor's layout text means: channels of a block, 0 for a filter without blocks (plain C targets), and
    ``None`` when the numbers lie in the order of the dims.

    Raises:
        ValueError: a layout that is not known.
    """
    match = _BLOCKED.fullmatch(text)
    if match:
        return int(match.group(1))
    if text in ("NHWC", "HWCN", "NWC", "WCN"):
        return 0
    if text in ("", "UNK", "NCHW", "NCW"):
        return None
    raise ValueError(f"layout {text}")


def filter_layout(channels: int, spatial: int, lanes: int) -> str:
    """The text for a packed filter.

    Args:
        channels: output channels.
        spatial: 1 or 2 axes.
        lanes: of a block.
    """
    window = "HW"[2 - spatial :]
    return f"(N/{lanes}){window}C{lanes}" + ("_UNALIGNED" if channels % lanes else "")


def pack_filter(weight: NDArray[Any], lanes: int, depthwise: bool = False) -> NDArray[Any]:
    """A filter in the order of the file.

    Args:
        weight: shape (N, C, H, W) or (N, C, W).
        lanes: channels of a block; 0 for the order of plain C targets.
        depthwise: one input channel per output channel; C must be 1.

    Returns:
        The same numbers, flat.
    """
    last = np.moveaxis(weight, 1, -1)  # N H W C
    full = len(weight) // lanes * lanes if lanes else 0
    blocks = last[:full].reshape(-1, max(lanes, 1), *last.shape[1:])
    rest = last[full:]
    if depthwise:
        rest = np.moveaxis(rest, (0, -1), (-1, 0))
    return np.concatenate([np.moveaxis(blocks, 1, -1).ravel(), rest.ravel()])


def unpack_filter(data: NDArray[Any], shape: tuple[int, ...], lanes: int, depthwise: bool = False) -> NDArray[Any]:
    """The inverse of :func:`pack_filter`.

    Args:
        data: flat.
        shape: (N, C, H, W) or (N, C, W).
        lanes: as it was packed.
        depthwise: as it was packed.
    """
    count, channels, *window = shape
    full = count // lanes * lanes if lanes else 0
    size = full * channels * int(np.prod(window))
    blocks = data[:size].reshape(-1, *window, channels, max(lanes, 1))
    aligned = np.moveaxis(blocks, -1, 1).reshape(full, *window, channels)
    if depthwise:
        rest = np.moveaxis(data[size:].reshape(channels, *window, count - full), (0, -1), (-1, 0))
    else:
        rest = data[size:].reshape(count - full, *window, channels)
    return np.moveaxis(np.concatenate([aligned, rest]), -1, 1)


def pack_matrix(matrix: NDArray[Any], lanes: int) -> NDArray[Any]:
    """The constant right operand of a MatMul, shape (..., C, N): each matrix as a 1x1 filter; flat."""
    columns, rows = matrix.shape[-1], matrix.shape[-2]
    matrices = matrix.reshape(-1, rows, columns)
    return np.concatenate([pack_filter(one.T[:, :, None, None], lanes) for one in matrices])


def unpack_matrix(data: NDArray[Any], shape: tuple[int, ...], lanes: int) -> NDArray[Any]:
    """The inverse of :func:`pack_matrix`."""
    rows, columns = shape[-2:]
    matrices = data.reshape(-1, rows * columns)
    unpacked = [unpack_filter(one, (columns, rows, 1, 1), lanes)[:, :, 0, 0].T for one in matrices]
    return np.stack(unpacked).reshape(shape)
