"""Does the prepared graph compute what the original computes? Measured, not assumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.base.reading import reading
from narrowcast.graph.run import Runner
from narrowcast.vision.heads import HeadSpec, decode_dense

__all__ = ["TOLERANCES", "compare", "differences", "outputs_of", "random_image", "violation"]

#: Largest difference allowed by quantity: pixels of the model input, probability, and for other outputs a share of
#: their largest value. float32 sums in another order differ by about 1e-6 of it.
TOLERANCES = {"box px": 0.05, "keypoint px": 0.05, "score": 1e-4, "keypoint score": 1e-4, "mask": 1e-3, "output": 1e-3}


def random_image(shape: Sequence[int]) -> NDArray[np.float32]:
    """A reproducible input of a shape: uniform in 0..1."""
    return np.random.default_rng(0).random(tuple(shape), dtype=np.float32)


def differences(
    expected: Mapping[str, NDArray[Any]], prepared: onnx.ModelProto, head: HeadSpec | None, tensor: NDArray[np.float32]
) -> dict[str, float]:
    """Largest absolute differences for one input to what the original gives, by quantity (:data:`TOLERANCES`)."""
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


def outputs_of(original: onnx.ModelProto, tensor: NDArray[np.float32], source: str) -> dict[str, NDArray[Any]]:
    """What the user's graph gives for one input, by output.

    Raises:
        UserError: onnxruntime cannot run it, or what it gives are no finite numbers.
    """
    with reading(source, "export it again, or try it in onnxruntime first", "cannot be run by onnxruntime"):
        found = Runner(original, level="basic").run(tensor)
    for name, values in found.items():
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf" or not values.size:
            raise UserError(f"{source}: the output {name} holds no numbers", "export the model without it")
        if not np.isfinite(values).all():
            raise UserError(f"{source} gives NaN or infinite values in {name}", "train or export it again")
    return found


def compare(
    expected: Mapping[str, NDArray[Any]],
    prepared: onnx.ModelProto,
    head: HeadSpec | None,
    tensor: NDArray[np.float32],
    source: str,
) -> dict[str, float]:
    """:func:`differences`, with an error when one is above tolerance.

    Raises:
        UserError: naming the quantity.
    """
    found = differences(expected, prepared, head, tensor)
    worst = violation(found)
    if worst:
        raise UserError(
            f"the simplified graph of {source} computes something else ({worst})", "please report the model"
        )
    return found
