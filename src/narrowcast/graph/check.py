"""Does the prepared graph compute what the original computes? Measured, not assumed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.errors import UserError
from narrowcast.graph.run import Runner
from narrowcast.vision.heads import HeadSpec, decode_dense

__all__ = ["TOLERANCES", "compare", "differences", "random_image", "violation"]

#: Largest difference allowed by quantity: pixels of the model input, probability, and for other outputs a share of
#: their largest value. float32 sums in another order differ by about 1e-6 of it.
TOLERANCES = {"box px": 0.05, "keypoint px": 0.05, "score": 1e-4, "keypoint score": 1e-4, "mask": 1e-3, "output": 1e-3}


def random_image(model: ir.Model) -> NDArray[np.float32]:
    """A reproducible input: uniform in 0..1, shape of the model's input."""
    shape = tuple(int(dim) for dim in model.graph.inputs[0].shape or ())
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def differences(
    original: onnx.ModelProto, prepared: onnx.ModelProto, head: HeadSpec | None, tensor: NDArray[np.float32]
) -> dict[str, float]:
    """Largest absolute differences for one input, by quantity (keys of :data:`TOLERANCES`)."""
    expected = Runner(original, level="basic").run(tensor)
    actual = Runner(prepared, level="basic").run(tensor)
    if head is None:
        pairs = zip(expected.values(), actual.values(), strict=True)
        return {"output": max(_relative(x, y) for x, y in pairs)}
    decoded = next(value for value in expected.values() if value.ndim == 3)[0]
    rows = decode_dense(actual, head)
    result = {
        "box px": _largest(rows[:4], decoded[:4]),
        "score": _largest(rows[4 : 4 + head.num_classes], decoded[4 : 4 + head.num_classes]),
    }
    extra, wanted = rows[4 + head.num_classes :], decoded[4 + head.num_classes :]
    if head.keypoint_shape is not None:
        dims = head.keypoint_shape[1]
        for axis in range(dims):
            key = "keypoint score" if axis == 2 else "keypoint px"
            result[key] = max(result.get(key, 0.0), _largest(extra[axis::dims], wanted[axis::dims]))
    elif head.num_masks:
        protos = next(value for value in expected.values() if value.ndim == 4)
        result["mask"] = max(_relative(wanted, extra), _relative(protos, actual["proto"]))
    return result


def _largest(first: NDArray[Any], second: NDArray[Any]) -> float:
    return float(np.abs(first.astype(np.float64) - second.astype(np.float64)).max(initial=0.0))


def _relative(expected: NDArray[Any], actual: NDArray[Any]) -> float:
    if expected.shape != actual.shape:
        return float("inf")
    return _largest(expected, actual) / max(1e-6, _largest(expected, np.zeros(())))


def violation(found: dict[str, float]) -> str:
    """What exceeds its tolerance, as a clause; empty when nothing does (NaN exceeds)."""
    bad = [f"{key} differs by {value:.3g}" for key, value in found.items() if not value <= TOLERANCES[key]]
    return ", ".join(bad)


def compare(
    original: onnx.ModelProto,
    prepared: onnx.ModelProto,
    head: HeadSpec | None,
    tensor: NDArray[np.float32],
    source: str,
) -> dict[str, float]:
    """:func:`differences`, with an error when one is above tolerance.

    Raises:
        UserError: naming the quantity.
    """
    found = differences(original, prepared, head, tensor)
    worst = violation(found)
    if worst:
        raise UserError(
            f"the simplified graph of {source} computes something else ({worst})", "please report the model"
        )
    return found
