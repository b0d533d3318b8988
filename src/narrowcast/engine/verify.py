"""Is the integer graph in onnxruntime the same as the slow reference? Node by node, on real inputs.

And how far is the usual QDQ graph from the exact integers?
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.base.progress import phase
from narrowcast.chips.schema import Target
from narrowcast.engine.integer import IntegerGraph, IntegerRunner
from narrowcast.engine.noise import Noise
from narrowcast.engine.reference import run_reference
from narrowcast.graph.run import Runner
from narrowcast.ops.net import Op, with_outputs
from narrowcast.plan.types import Encoding, Plan
from narrowcast.tasks.errors import as_reals


@dataclass
class VerifyRow:
    """One integer tensor over all images.

    Attributes:
        tensor: value name, or edge key of a requantized input.
        node: the node that makes it, empty for a graph input.
        op_type: of that node; ``"RequantizeLinear"`` for an edge.
        differing: how many values differ.
        total: how many values there are.
        largest: largest difference, in steps.
    """

    tensor: str
    node: str
    op_type: str
    differing: int = 0
    total: int = 0
    largest: int = 0


@phase("verify")
def verify(
    model: ir.Model,
    plan: Plan,
    target: Target,
    graph: IntegerGraph,
    images: Iterable[NDArray[Any]],
    *,
    threads: int = 0,
    level: str = "all",
) -> list[VerifyRow]:
    """Compare every integer tensor of an integer graph with the reference.

    Each node of the reference reads the tensors that onnxruntime computed ("teacher forcing"), so a difference
    shows at the node that makes it and nowhere else. The graph as it is shipped (without extra outputs, and thus
    perhaps optimized otherwise) runs too and its outputs are compared as well, in rows named ``<output> (shipped)``.

    Args:
        model: the prepared graph.
        plan: its encodings.
        target: the chip's rules.
        graph: the integer graph of these.
        images: inputs as the integer graph takes them.
        threads: of onnxruntime; 0 for all cores.
        level: of onnxruntime's optimizations.

    Returns:
        One row a tensor, in graph order.

    Raises:
        UserError: the plan is not that of the integer graph.
    """
    lost = next((name for name in graph.encodings if name not in plan.tensors and name not in plan.edges), None)
    if lost is not None:
        raise UserError(f"the plan says nothing of {lost}, which the integer graph holds", "quantize again")
    makers = _makers(model.graph)
    rows: dict[str, VerifyRow] = {}
    shipped, full = (IntegerRunner(graph, threads, level, all_tensors) for all_tensors in (False, True))
    (input_name,) = graph.inputs
    for image in images:
        found = full.integers(image)
        expected = run_reference(model, plan, target, {input_name: image}, found)
        for name in found:
            node, op_type = makers[name] if name in makers else (name.rsplit("#", 1)[0], "RequantizeLinear")
            _count(rows.setdefault(name, VerifyRow(name, node, op_type)), found[name], expected[name])
        for name, actual in shipped.run(image).items():
            if graph.outputs[name] is not None or actual.dtype.kind in "iub":
                row = rows.setdefault(f"{name} (shipped)", VerifyRow(f"{name} (shipped)", *makers[name]))
                _count(row, actual, expected[name])
    return list(rows.values())


def _makers(graph: ir.Graph) -> dict[str, tuple[str, str]]:
    makers = {str(value.name): ("", Op.QUANTIZE) for value in graph.inputs}
    for node in graph:
        makers.update({str(value.name): (str(node.name), node.op_type) for value in node.outputs})
    return makers


def _count(row: VerifyRow, actual: NDArray[Any], expected: NDArray[Any]) -> None:
    if actual.shape != expected.shape:
        what = f"{row.tensor} is {actual.shape} in the integer graph and {expected.shape} in the prepared one"
        raise UserError(what, "they are of two models: make the bundle again")
    distance = np.abs(actual.astype(np.int64) - expected.astype(np.int64))
    row.differing += int(np.count_nonzero(distance))
    row.total += distance.size
    row.largest = max(row.largest, int(distance.max(initial=0)))


@dataclass
class Distance:
    """One tensor over all images.

    Attributes:
        tensor: graph output, or with ``all_tensors`` a value name or edge key.
        unit: ``"steps"`` of its encoding, or ``"real"`` for a tensor that is float in both graphs.
        differing: how many values differ.
        noise: of the differences, in ``unit``.
    """

    tensor: str
    unit: str
    differing: int = 0
    noise: Noise = field(default_factory=Noise)

    @property
    def share(self) -> float:
        """Differing values, 0..1."""
        return self.differing / self.noise.count if self.noise.count else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; ``sqnr_db`` is ``None`` where nothing differs."""
        sqnr = round(self.noise.sqnr_db, 2) if math.isfinite(self.noise.sqnr_db) else None
        return {
            "name": self.tensor, "differing": round(self.share, 6), "largest": self.noise.max_abs, "unit": self.unit,
            "sqnr_db": sqnr,
        }  # fmt: skip

    def add(self, exact: NDArray[Any], other: NDArray[Any]) -> None:
        """Count one pair of tensors of the same shape."""
        x, y = (np.asarray(values, np.float64).reshape(-1) for values in (exact, other))
        self.differing += int(np.count_nonzero(x != y))
        self.noise.take(x, y)


def qdq_distance(
    graph: IntegerGraph,
    qdq: onnx.ModelProto | str | Path,
    images: Iterable[NDArray[np.float32]],
    *,
    all_tensors: bool = False,
    threads: int = 0,
) -> list[Distance]:
    """Compare the QDQ graph, run as a bundle runs it, with the integers.

    The QDQ graph rounds in float32 and half to even whatever the chip does, sums in float32, and quantizes no bias
    to less than 32 bits, so its integers differ by a step here and there, and more behind such a step.

    Args:
        graph: from :func:`narrowcast.engine.integer.lower_integer`, with float input.
        qdq: from :func:`narrowcast.engine.lower_qdq` of the same plan, or its file.
        images: float inputs of both graphs, consumed once.
        all_tensors: compare every quantized tensor, not only the outputs.
        threads: of onnxruntime; 0 for all cores.

    Returns:
        One distance a tensor, in graph order. An accumulator is compared in its own (much smaller) steps.
    """
    proto = qdq if isinstance(qdq, onnx.ModelProto) else onnx.load(str(qdq))
    codes = {key: code for key, code in graph.encodings.items() if all_tensors and code.dtype != "int32"}
    quantized = {key: f"{key}_quantized" for key in codes}
    rows = {key: Distance(key, "steps") for key in codes}
    rows.update({name: Distance(name, "real" if code is None else "steps") for name, code in graph.outputs.items()})
    # one session after the other: each holds all weights
    right = Runner(with_outputs(proto, list(quantized.values())), threads, "basic")
    results = [(image, right.run(image, [*graph.outputs, *quantized.values()])) for image in images]
    del right
    left = IntegerRunner(graph, threads, "basic", all_tensors=all_tensors)
    for image, found in results:
        exact: dict[str, NDArray[Any]] = {}
        if all_tensors:
            exact.update(left.integers(image))
        exact.update(left.run(image))
        for key, row in rows.items():
            other = found[quantized[key]] if key in quantized else _steps(found[key], graph.outputs[key])
            row.add(*(as_reals(exact[key], other) if row.unit == "real" else (exact[key], other)))
    return list(rows.values())


def _steps(values: NDArray[Any], encoding: Encoding | None) -> NDArray[Any]:
    """A float output of the QDQ graph in steps of its encoding, to the nearest step."""
    if encoding is None:
        return values
    whole = np.rint(values.astype(np.float64) / encoding.broadcast(values.ndim)) + encoding.zero_point
    return np.asarray(np.clip(whole, encoding.qmin, encoding.qmax))
