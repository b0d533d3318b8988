"""Closed-form rounding: on the grid, no worse than the nearest, close to the best there is."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowcast.improve.reconstruct import MOST_COLUMNS, nearest, pieces, round_rows


def problem(seed: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, second moments of correlated inputs, scales."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(200, columns)) @ rng.normal(size=(columns, columns))
    return rng.normal(size=(rows, columns)), mixed.T @ mixed, np.full(rows, 0.25)


def error(weights: np.ndarray, other: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Squared error of each row's outputs."""
    difference = weights - other
    return np.einsum("rk,kl,rl->r", difference, moments, difference)


def brute_force(row: np.ndarray, moments: np.ndarray, scale: float) -> float:
    """Least error of one row over rounding every weight down or up."""
    floor = np.floor(row / scale)
    choices = itertools.product((0, 1), repeat=len(row))
    return min(float(error(row[None], ((floor + c) * scale)[None], moments)[0]) for c in map(np.array, choices))


def test_between_the_nearest_and_the_best() -> None:
    gained = []
    for seed in range(12):
        weights, moments, scales = problem(seed, 3, 6)
        rounded = error(weights, round_rows(weights, moments, scales, -128, 127), moments)
        plain = error(weights, nearest(weights, scales, -128, 127), moments)
        best = np.array([brute_force(row, moments, 0.25) for row in weights])
        gained.append((plain.sum() - rounded.sum()) / (plain.sum() - best.sum()))
        # more steps than down and up are allowed to the rounding, so it may beat this brute force
        assert rounded.sum() < plain.sum()
    assert np.median(gained) > 0.6


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 80), st.sampled_from([(-128, 127), (-3, 3)]))
def test_on_the_grid(seed: int, rows: int, columns: int, limits: tuple[int, int]) -> None:
    weights, moments, scales = problem(seed, rows, columns)
    scales = scales * 2.0 ** np.arange(rows)
    steps = round_rows(weights, moments, scales, *limits) / scales[:, None]
    assert np.array_equal(steps, np.rint(steps)) and steps.min() >= limits[0] and steps.max() <= limits[1]


def test_uncorrelated_inputs_give_the_nearest() -> None:
    weights, _, scales = problem(0, 4, 20)
    rounded = round_rows(weights, np.diag(np.arange(1.0, 21.0)), scales, -128, 127)
    np.testing.assert_allclose(rounded, nearest(weights, scales, -128, 127))


def test_dead_inputs_give_the_nearest() -> None:
    weights, moments, scales = problem(0, 4, 20)
    np.testing.assert_array_equal(
        round_rows(weights, moments * 0, scales, -128, 127), nearest(weights, scales, -128, 127)
    )


@settings(deadline=None)
@given(st.integers(1, 400), st.sampled_from([1, 9, 25, 49, 2500]))
def test_pieces_hold_every_column_once_and_whole_channels(channels: int, kernel: int) -> None:
    columns = np.arange(channels * kernel)
    parts = [columns[piece] for piece in pieces(len(columns), kernel)]
    assert np.array_equal(np.concatenate(parts), columns) and max(map(len, parts)) <= MOST_COLUMNS
    assert kernel > MOST_COLUMNS or all(len(part) % kernel == 0 for part in parts)
    assert len(columns) > MOST_COLUMNS or len(parts) == 1


def test_rounding_in_pieces_gains_most_of_what_whole_rounding_gains() -> None:
    weights, moments, scales = problem(3, 8, 36)
    parts = [(weights[:, part], moments[part, part]) for part in (slice(0, 18), slice(18, 36))]
    pieced = np.hstack([round_rows(*part, scales, -128, 127) for part in parts])
    plain, whole, split = (
        error(weights, other, moments).sum()
        for other in (nearest(weights, scales, -128, 127), round_rows(weights, moments, scales, -128, 127), pieced)
    )
    assert whole < split < plain
    assert plain - split > 0.5 * (plain - whole)
