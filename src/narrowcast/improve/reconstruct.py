"""Give every layer the output that it had in float: rounding and biases, layer by layer, gated.

The walk goes through the network once. At every layer the weights are rounded for the inputs that the layer reads in
the quantized network (:mod:`narrowcast.improve.reconstruct`), and the bias takes up what is left of the mean error. The
mean counts where the activation function behind still passes a change on: the plain mean is dominated by the flat side
of SiLU, and correcting it destroys networks (measured). Each output channel takes a change only where it lowers the
error behind the activation function on images that the change was not made from.

Round weights so that the outputs of a layer stay, not the weights themselves.

After GPTQ (Frantar et al., 2023), which is optimal brain quantization (Frantar and Alistarh, 2022) in a fixed order:
the weights of an output channel are rounded one after the other, and the error of each is made up for by those that
come after it, as the second moments of the layer's inputs tell. The grid is the target's: fixed scales, clipped.

A layer with more inputs to a product than :data:`MOST_COLUMNS` is rounded in pieces, whole input channels each where
one fits: the second moments take the square of that number (9216: 680 MB, and several times that to invert them). What
is lost is that an error in one piece is not made up for in the next; the gate takes nearest where that is better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper

from narrowcast.base.errors import UserError
from narrowcast.base.progress import track
from narrowcast.graph.run import hold_constant
from narrowcast.improve.layers import (
    Layer,
    NodeRunner,
    Walk,
    function_behind,
    is_correctable,
    layer_of,
    positions,
    take,
)
from narrowcast.ops.facts import Kind, facts, weight_axis
from narrowcast.ops.net import constant_at, input_at, is_own, set_constant
from narrowcast.plan.types import Encoding, Plan

Rows = NDArray[np.float64]
#: Share of the mean second moment added to the diagonal: fits less to the few images seen.
DAMPING = 0.01
#: Columns of a weight that are rounded as one problem.
MOST_COLUMNS = 2304
#: Columns rounded before the error is handed on to all later ones in one product.
_BLOCK = 64
Array = NDArray[Any]
#: Positions of an image that are looked at, at most.
SAMPLES = 1024
#: A change must lower the error on the gating images by this share.
LEAST_SHARE = 0.02
#: One image in so many gates and does not fit.
GATE_EVERY = 3


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
    damped = moments[np.ix_(order, order)]
    damped[np.diag_indices(columns)] += damping * diagonal.mean()
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


def pieces(columns: int, kernel: int) -> list[slice]:
    """Columns that are rounded together: all, or whole channels of ``kernel`` columns up to :data:`MOST_COLUMNS`."""
    width = MOST_COLUMNS // kernel * kernel or MOST_COLUMNS
    return [slice(start, min(start + width, columns)) for start in range(0, columns, width)]


@dataclass(frozen=True)
class _Choice:
    weight: NDArray[np.float32]
    bias: Array | None
    changed: int


def reconstruct(
    model: ir.Model,
    plan: Plan,
    inputs: Sequence[NDArray[np.float32]],
    *,
    rounding: bool = True,
    biases: bool = True,
    threads: int = 0,
) -> tuple[ir.Model, int]:
    """Round weights and correct biases for the quantized network.

    Args:
        model: prepared graph; not changed.
        plan: its encodings.
        inputs: model inputs, 3 or more; every third one only judges.
        rounding: choose how weights are rounded.
        biases: correct biases.
        threads: of onnxruntime; 0 for all cores.

    Returns:
        A copy of the graph with other weights (multiples of their scales) and biases, and how many output channels
        are rounded in another way than to the nearest or have another bias.

    Raises:
        UserError: fewer than 3 inputs.
    """
    if len(inputs) < 3:
        raise UserError(f"{len(inputs)} images are too few to correct weights", "give 3 or more")
    copy = model.clone()
    functions = [ir.serde.serialize_function(function) for function in copy.functions.values()]
    opsets = [helper.make_opsetid(domain, version) for domain, version in copy.opset_imports.items()]
    exact, coded = Walk(copy, None, inputs), Walk(copy, plan, inputs)
    changed = 0
    for node in track(list(copy.graph), "correct"):
        runner = NodeRunner(node, functions, opsets, threads)
        weight, bias = (constant_at(node, index) if is_correctable(node) else None for index in (1, 2))
        expected = exact.compute(node, runner, weight, bias)
        encoding = plan.tensors.get(str(node.inputs[1].name)) if weight is not None and node.inputs[1] else None
        if weight is None or encoding is None:
            actual = coded.compute(node, runner, weight, bias)
        else:
            step = _Step(node, coded, runner, expected, encoding, weight, bias)
            shifting = biases and is_own(node, 2)
            choice = step.choose(rounding, shifting)
            if node.inputs[1] is not None and is_own(node, 1):
                set_constant(node.inputs[1], choice.weight)
                hold_constant(node.inputs[1])
                changed += choice.changed
                if shifting and choice.bias is not None and (value := input_at(node, 2)) is not None:
                    set_constant(value, choice.bias)
            actual = coded.compute(node, runner, choice.weight, choice.bias)
        exact.keep(node, expected)
        coded.keep(node, actual)
    return copy, changed


class _Step:
    """One layer: candidates, and the error of each output channel on the images that judge."""

    def __init__(
        self,
        node: ir.Node,
        walk: Walk,
        runner: NodeRunner,
        expected: Sequence[Sequence[Array]],
        encoding: Encoding,
        weight: Array,
        bias: Array | None,
    ) -> None:
        self.node, self.walk, self.runner, self.encoding = node, walk, runner, encoding
        self.weight, self.bias = weight, bias
        self.behind: Callable[[Array], Array] = function_behind(node)
        self.where = [positions(each[0].shape, SAMPLES, seed) for seed, each in enumerate(expected)]
        self.expected = [take(each[0], where) for each, where in zip(expected, self.where, strict=True)]
        self.judges = range(GATE_EVERY - 1, len(expected), GATE_EVERY)
        self.teachers = [index for index in range(len(expected)) if index not in self.judges]

    def choose(self, rounding: bool, biases: bool) -> _Choice:
        """The best of: nearest, nearest with another bias, rounded, rounded with another bias; channel by channel."""
        plain = self.encoding.dequantize(self.encoding.quantize(self.weight))
        candidates = [(plain, False)]
        layer = layer_of(self.node)
        if rounding and layer is not None and self.encoding.dtype == "int8":
            candidates.append((self._rounded(layer), True))
        best: Array | None = None
        weight, shift = plain.copy(), np.zeros(self.expected[0].shape[0])
        is_rounded = np.zeros(len(shift), np.bool_)
        axis = self._channel_axis()
        for candidate, changed in candidates:
            actual = self._outputs(candidate)
            for delta in self._deltas(actual, biases):
                error = self._error(actual, delta)
                better = error < (np.inf if best is None else best * (1 - LEAST_SHARE))
                best = error if best is None else np.where(better, error, best)
                shift[better], is_rounded[better] = delta[better], changed
                np.moveaxis(weight, axis, 0)[better] = np.moveaxis(candidate, axis, 0)[better]
        bias = None if self.bias is None else self.bias + shift
        return _Choice(weight, bias, int(np.count_nonzero(is_rounded | (shift != 0))))

    def _channel_axis(self) -> int:
        return weight_axis(self.node)

    def _deltas(self, actual: list[Array], biases: bool) -> Iterator[Array]:
        yield np.zeros(len(actual[0]))
        if not biases or self.bias is None or (facts(self.node).kind is Kind.TRANSPOSED and self.weight.shape[1] == 1):
            return
        step = self._shift(actual)
        yield 0.5 * step
        yield step

    def _shift(self, actual: list[Array]) -> Array:
        """Shift of each channel with the least squared error behind the function, to first order (Gauss-Newton)."""
        top, bottom = np.zeros(len(actual[0])), np.full(len(actual[0]), 1e-12)
        for index in self.teachers:
            wanted, given = self.expected[index].astype(np.float64), actual[index].astype(np.float64)
            slope = (self.behind(wanted + 1e-3) - self.behind(wanted - 1e-3)) / 2e-3
            top += (slope**2 * (wanted - given)).sum(axis=1)
            bottom += (slope**2).sum(axis=1)
        return np.asarray(top / bottom)

    def _outputs(self, weight: Array) -> list[Array]:
        outputs = self.walk.compute(self.node, self.runner, weight, self.bias)
        return [take(each[0], where) for each, where in zip(outputs, self.where, strict=True)]

    def _error(self, actual: list[Array], delta: Array) -> Array:
        """(C,) squared error behind the function on the judging images."""
        total = np.zeros(len(delta))
        for index in self.judges:
            wanted = self.behind(self.expected[index].astype(np.float64))
            total += np.square(self.behind(actual[index] + delta[:, None]) - wanted).sum(axis=1)
        return total

    def _rounded(self, layer: Layer) -> NDArray[np.float32]:
        weights = layer.weights(self.weight)
        scales = np.broadcast_to(self.encoding.scales, (self.weight.shape[0],)).reshape(layer.groups, -1)
        low, high = self.encoding.qmin, self.encoding.qmax
        if self.encoding.quantize(self.weight).min() > low:
            low = -high  # the target may not want the lowest value, and the nearest weights do not need it
        result = np.empty_like(weights, np.float32)
        for piece in pieces(weights.shape[2], int(np.prod(self.weight.shape[2:]))):
            for group, moments in enumerate(self._moments(layer, piece)):
                part = weights[group, :, piece].astype(np.float64)
                result[group, :, piece] = round_rows(part, moments, scales[group], low, high)
        return result.reshape(self.weight.shape)

    def _moments(self, layer: Layer, piece: slice) -> Rows:
        """(groups, K, K) second moments of the inputs in these columns, on the images that teach."""
        operands = self.walk.operand(self.node, 0)
        columns = piece.stop - piece.start
        total = np.zeros((layer.groups, columns, columns))
        for index in self.teachers:
            rows = layer.rows(operands[index], self.where[index])[:, :, piece]
            total += np.matmul(rows.transpose(0, 2, 1), rows)
        return total
