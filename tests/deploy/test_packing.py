"""Packed filters against a slow loop over the rule's words."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowcast.chips.esp.file import (
    channels_last,
    filter_layout,
    inverse,
    moves_nothing,
    pack_filter,
    pack_matrix,
    packed_lanes,
    reordered,
    then,
    unpack_filter,
    unpack_matrix,
)

sizes = st.tuples(st.integers(1, 40), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))


def slowly(weight: np.ndarray, lanes: int, depthwise: bool) -> list[int]:
    """(N/lanes) H W C lanes, then the remainder as N H W C or C H W N."""
    count, channels, height, width = weight.shape
    full = count // lanes * lanes
    found = []
    for block in range(0, full, lanes):
        for y in range(height):
            for x in range(width):
                for c in range(channels):
                    found += [int(weight[block + lane, c, y, x]) for lane in range(lanes)]
    rest = range(full, count)
    if depthwise:
        found += [int(weight[n, c, y, x]) for c in range(channels) for y in range(height) for x in range(width)
                  for n in rest]  # fmt: skip
    else:
        found += [int(weight[n, c, y, x]) for n in rest for y in range(height) for x in range(width)
                  for c in range(channels)]  # fmt: skip
    return found


@given(sizes, st.sampled_from([8, 16]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_filters_are_packed_as_the_rule_says(shape: tuple[int, ...], lanes: int, depthwise: bool) -> None:
    shape = (shape[0], 1, *shape[2:]) if depthwise else shape
    weight = np.random.default_rng(0).integers(-128, 128, shape).astype(np.int8)
    data = pack_filter(weight, lanes, depthwise)
    assert data.tolist() == slowly(weight, lanes, depthwise)
    np.testing.assert_array_equal(unpack_filter(data, shape, lanes, depthwise), weight)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.sampled_from([0, 8, 16]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_filters_of_one_axis_come_back(count: int, channels: int, width: int, lanes: int, depthwise: bool) -> None:
    shape = (count, 1 if depthwise else channels, width)
    weight = np.arange(np.prod(shape)).reshape(shape)
    flat = pack_filter(weight, lanes, depthwise)
    np.testing.assert_array_equal(unpack_filter(flat, shape, lanes, depthwise), weight)
    if lanes and not depthwise:
        np.testing.assert_array_equal(flat, slowly(weight[:, :, None], lanes, False))


def test_plain_targets_have_no_blocks() -> None:
    weight = np.arange(24).reshape(2, 3, 2, 2)
    np.testing.assert_array_equal(pack_filter(weight, 0), weight.transpose(0, 2, 3, 1).ravel())


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 40), st.sampled_from([8, 16]))
@settings(max_examples=30, deadline=None)
def test_matrices_are_filters_of_one_pixel(batch: int, rows: int, columns: int, lanes: int) -> None:
    matrix = np.random.default_rng(1).integers(-9, 9, (batch, rows, columns))
    data = pack_matrix(matrix, lanes)
    wanted = [slowly(one.T[:, :, None, None], lanes, False) for one in matrix]
    assert data.tolist() == [number for part in wanted for number in part]
    np.testing.assert_array_equal(unpack_matrix(data, matrix.shape, lanes), matrix)


def test_layout_texts() -> None:
    assert filter_layout(32, 2, 16) == "(N/16)HWC16"
    assert filter_layout(20, 1, 8) == "(N/8)WC8_UNALIGNED"
    for text, lanes in (("(N/16)HWC16", 16), ("N16HWC16_UNALIGNED", 16), ("(N/8)WC8", 8), ("NHWC", 0)):
        assert packed_lanes(text) == lanes
    assert packed_lanes("UNK") is None and packed_lanes("") is None
    with pytest.raises(ValueError, match="layout"):
        packed_lanes("(N/16)HWC8")


@given(st.permutations(range(4)), st.permutations(range(4)))
def test_orders_compose_like_transpositions(first: list[int], second: list[int]) -> None:
    x = np.arange(120).reshape(2, 3, 4, 5)
    one, two = tuple(first), tuple(second)
    np.testing.assert_array_equal(x.transpose(one).transpose(two), x.transpose(then(one, two)))
    np.testing.assert_array_equal(x.transpose(one).transpose(inverse(one)), x)
    assert x.transpose(one).shape == reordered(x.shape, one)


def test_axes_of_one_move_for_free() -> None:
    assert moves_nothing((1, 7, 1, 1), channels_last(4)) and not moves_nothing((1, 7, 2, 1), channels_last(4))
