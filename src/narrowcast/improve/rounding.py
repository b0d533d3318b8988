"""Round weights so that the outputs of a layer stay, not the weights themselves.

After GPTQ (Frantar et al., 2023), which is optimal brain quantization (Frantar and Alistarh, 2022) in a fixed order:
the weights of an output channel are rounded one after the other, and the error of each is made up for by those that
come after it, as the second moments of the layer's inputs tell. The grid is the target's: fixed scales, clipped.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["round_rows"]

Rows = NDArray[np.float64]
#: Share of the mean second moment added to the diagonal: fits less to the few images seen.
DAMPING = 0.01
#: Columns rounded before the error is handed on to all later ones in one product.
_BLOCK = 64


def round_rows(weights: Rows, moments: Rows, scales: Rows, qmin: int, qmax: int, damping: float = DAMPING) -> Rows:
    """Weights on the grid with about the least error of ``weights @ x``.

    Args:
        weights: (rows, K) real weights, one row an output channel.
        moments: (K, K) sum of x x^T over samples of the input.
        scales: (rows,) step of each row.
        qmin, qmax: integer limits.
        damping: see :data:`DAMPING`.

    Returns:
        (rows, K) multiples of the scales.
    """
    columns = weights.shape[1]
    diagonal = np.diag(moments)
    if not diagonal.any():
        return nearest(weights, scales, qmin, qmax)
    order = np.argsort(-diagonal, kind="stable")  # what matters most is rounded while most can still make up for it
    damped = moments[np.ix_(order, order)] + np.eye(columns) * damping * diagonal.mean()
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T  # inverse = upper^T upper
    open_weights = weights[:, order].copy()
    result = np.empty_like(open_weights)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = np.empty((len(weights), stop - start))
        for column in range(start, stop):
            value = open_weights[:, column]
            result[:, column] = rounded = nearest(value, scales, qmin, qmax)
            errors[:, column - start] = error = (value - rounded) / upper[column, column]
            open_weights[:, column + 1 : stop] -= np.outer(error, upper[column, column + 1 : stop])
        open_weights[:, stop:] -= errors @ upper[start:stop, stop:]
    restored = np.empty_like(result)
    restored[:, order] = result
    return restored


def nearest(values: Rows, scales: Rows, qmin: int, qmax: int) -> Rows:
    """Multiples of the scales (one a row) nearest to ``values``, (rows,) or (rows, K)."""
    steps = scales if values.ndim == 1 else scales[:, None]
    return np.asarray(np.clip(np.rint(values / steps), qmin, qmax) * steps, np.float64)
