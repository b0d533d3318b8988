"""Run-length encoding of masks as COCO does it: column by column, beginning with the zeros.

All masks of an image are encoded together, because most are small and the work on one is less than that of a call.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["compress", "counts_of_edges", "edges_of_columns"]


def edges_of_columns(columns: NDArray[np.bool_], left: int, top: int, height: int) -> NDArray[np.int64]:
    """Where the mask changes, counted through the image column by column.

    Args:
        columns: (w, h) a window of the mask, transposed and contiguous; everything around it is 0.
        left, top: of the window in the image, pixels.
        height: of the image, pixels.

    Returns:
        (2 * runs,) first index of a run of ones, first index behind it, and so on; not decreasing.
    """
    count, size = columns.shape
    padded = np.zeros(count * (size + 1) + 1, np.bool_)  # a zero before everything and below each column
    padded[1:].reshape(count, size + 1)[:, :size] = columns
    column, row = np.divmod(np.flatnonzero(padded[1:] != padded[:-1]), size + 1)
    return np.asarray((column + left) * height + row + top, np.int64)


def counts_of_edges(edges: Sequence[NDArray[np.int64]], height: int, width: int) -> list[NDArray[np.int64]]:
    """Run lengths of zeros, ones, zeros, ... of masks.

    Args:
        edges: of each mask, as :func:`edges_of_columns` gives them, windows from left to right.
        height, width: of the image, pixels.

    Returns:
        For each mask the lengths as COCO counts them: the first may be 0, the last is not.
    """
    if not edges:
        return []
    pixels = height * width
    # one long row of masks, each with a spare pixel behind it, so that runs of two masks never touch
    starts = np.arange(len(edges)) * (pixels + 1)
    places = np.concatenate(edges) + np.repeat(starts, [len(part) for part in edges])
    # a run that reaches the bottom goes on at the top of the next column
    joined = np.flatnonzero(places[1:-1:2] == places[2::2]) * 2 + 1
    apart = np.ones(len(places), np.bool_)
    apart[joined] = apart[joined + 1] = False
    places = places[apart]
    first = np.searchsorted(places, starts)
    after = np.append(first[1:], len(places))
    bounds = np.insert(
        places, np.stack([first, after], 1).reshape(-1), np.stack([starts, starts + pixels], 1).reshape(-1)
    )
    lengths = np.diff(bounds)
    begins = first + 2 * np.arange(len(edges))
    masks = [lengths[begin : begin + size + 1] for begin, size in zip(begins, after - first, strict=True)]
    return [counts if counts[-1] else counts[:-1] for counts in masks]


def compress(masks: Sequence[NDArray[np.int64]]) -> list[str]:
    """Run lengths in the text form of COCO result files (``rleToString`` of the COCO API, BSD).

    Each count, less the count before the previous one from the fourth on, is cut into groups of 5 bits, lowest
    first; bit 5 says that another group follows, and 48 is added to make a printable character.
    """
    if not masks:
        return []
    counts = np.concatenate(masks)
    sizes = np.array([len(mask) for mask in masks])
    begins = np.cumsum(sizes) - sizes
    place = np.arange(len(counts)) - np.repeat(begins, sizes)
    values = counts.copy()
    late = np.flatnonzero(place > 2)
    values[late] -= counts[late - 2]
    most = int(np.abs(values).max()).bit_length() // 5 + 1
    shifted = values[:, None] >> (5 * np.arange(most + 1))
    groups, rest = shifted[:, :-1] & 31, shifted[:, 1:]
    more = rest != np.where(groups & 16, -1, 0)  # a group ends the number when its top bit is the sign of the rest
    written = np.ones_like(more)
    for group in range(1, most):
        written[:, group] = written[:, group - 1] & more[:, group - 1]
    text: str = (groups + 32 * more + 48).astype(np.uint8)[written].tobytes().decode("ascii")
    ends = np.cumsum(np.add.reduceat(written.sum(axis=1), begins))
    return [text[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
