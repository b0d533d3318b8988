"""Filters in the order in which ESP-DL's vector units read them.

Of a filter (N, C, ...) with N output channels, the first ``N // lanes * lanes`` channels are stored in blocks of
``lanes``, as (N/lanes) H W C lanes; the rest follows as N H W C, or as C H W N of a depthwise filter (C is 1).
``lanes`` is 16 for 8-bit activations and 8 for 16-bit ones. A fully connected layer is a 1x1 convolution.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Layout",
    "filter_layout",
    "pack_filter",
    "pack_matrix",
    "parse_layout",
    "unpack_filter",
    "unpack_matrix",
]

_BLOCKED = re.compile(r"\(?N/?(\d+)\)?(H?W)C\1(_UNALIGNED)?")


@dataclass(frozen=True)
class Layout:
    """How a filter is stored: in blocks of ``lanes`` channels; 0 lanes: not in blocks (plain C targets)."""

    lanes: int


def parse_layout(text: str) -> Layout | None:
    """What a tensor's layout text means; ``None`` when the numbers lie in the order of the dims.

    Raises:
        ValueError: a layout that is not known.
    """
    match = _BLOCKED.fullmatch(text)
    if match:
        return Layout(int(match.group(1)))
    if text in ("NHWC", "HWCN", "NWC", "WCN"):
        return Layout(0)
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
