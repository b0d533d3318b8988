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
from narrowcast.tasks import Task

__all__ = ["compare", "differences", "outputs_of", "random_image", "violation"]


def random_image(shape: Sequence[int]) -> NDArray[np.float32]:
    """A reproducible input of a shape: uniform in 0..1."""
    return np.random.default_rng(0).random(tuple(shape), dtype=np.float32)


def differences(
    expected: Mapping[str, NDArray[Any]], prepared: onnx.ModelProto, meaning: Task, tensor: NDArray[np.float32]
) -> dict[str, float]:
    """Largest absolute differences for one input to what the original gives, by quantity."""
    return meaning.differences(expected, Runner(prepared, level="basic").run(tensor))


def violation(found: dict[str, float], meaning: Task) -> str:
    """What exceeds its tolerance, as a clause; empty when nothing does (NaN exceeds)."""
    limits = meaning.tolerances
    return ", ".join(f"{key} differs by {value:.3g}" for key, value in found.items() if not value <= limits[key])


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
    meaning: Task,
    tensor: NDArray[np.float32],
    source: str,
) -> dict[str, float]:
    """:func:`differences`, with an error when one is above tolerance.

    Raises:
        UserError: naming the quantity.
    """
    found = differences(expected, prepared, meaning, tensor)
    worst = violation(found, meaning)
    if worst:
        raise UserError(
            f"the simplified graph of {source} computes something else ({worst})", "please report the model"
        )
    return found
