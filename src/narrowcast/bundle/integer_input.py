"""Graphs that take the quantized image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from narrowcast.bundle.manifest import FLOAT_FILE, Manifest
from narrowcast.graph.run import Runner
from narrowcast.plan.types import Encoding

__all__ = ["IntegerInputRunner", "chip_input", "open_runner", "quantize_input"]


def quantize_input(tensor: NDArray[Any], encoding: Encoding, rounding: str) -> NDArray[Any]:
    """The image as the chip's first QuantizeLinear would give it.

    Args:
        tensor: float32 model input; integers are returned as they are.
        encoding: of the input.
        rounding: ``"half-even"`` or ``"half-up"``, the target's.
    """
    if tensor.dtype.kind != "f":
        return tensor
    scale = np.float32(encoding.scales)
    power = math.frexp(float(scale))[0] == 0.5
    steps = tensor * (np.float32(1) / scale) if power else tensor / scale
    whole = np.rint(steps) if rounding == "half-even" else np.floor(steps + np.float32(0.5))
    clipped: NDArray[Any] = np.clip(whole + encoding.zero_point, encoding.qmin, encoding.qmax).astype(encoding.dtype)
    return clipped


class IntegerInputRunner(Runner):
    """A session for a graph with integer input that takes the float image, as all other graphs do.

    Args:
        model, threads, level: as :class:`narrowcast.graph.Runner`.
        encoding: of the input.
        rounding: the target's.
    """

    def __init__(
        self,
        model: onnx.ModelProto | str | Path,
        threads: int = 0,
        level: str = "all",
        *,
        encoding: Encoding,
        rounding: str,
    ) -> None:
        super().__init__(model, threads, level)
        self.encoding, self.rounding = encoding, rounding

    def run(self, tensor: NDArray[Any], names: Sequence[str] | None = None) -> dict[str, NDArray[np.generic]]:
        """Quantize the image unless it is integers already, run it, and return the outputs by name."""
        return super().run(quantize_input(tensor, self.encoding, self.rounding), names)


def open_runner(path: Path, threads: int, level: str, manifest: Manifest) -> Runner:
    """A session for one of a bundle's graphs; whichever type its input has, it takes the float image."""
    coding, rounding = manifest.input_encoding, manifest.modified.get("input_rounding")
    if coding is None or rounding is None or path.name == FLOAT_FILE:  # the one graph whose input stays float
        return Runner(path, threads, level)
    return IntegerInputRunner(path, threads, level, encoding=Encoding(**coding), rounding=rounding)


def chip_input(tensor: NDArray[Any], manifest: Manifest) -> NDArray[Any]:
    """A float model input as a bundle's quantized graphs take it: integers if ``modify`` removed the quantize node."""
    coding, rounding = manifest.input_encoding, manifest.modified.get("input_rounding")
    return tensor if coding is None or rounding is None else quantize_input(tensor, Encoding(**coding), rounding)
