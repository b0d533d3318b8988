"""onnxruntime's quantize_static. Settings: ``method`` (MinMax or Percentile), ``symmetric`` (activations)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from child import finish, measured, read_job, tensors
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Calibration inputs as the tool wants them."""

    def __init__(self, name: str, paths: list[str]) -> None:
        self.name = name
        self.tensors: Iterator[NDArray[np.float32]] = tensors(paths)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next input, or ``None`` after the last."""
        tensor = next(self.tensors, None)
        return None if tensor is None else {self.name: tensor}


def main() -> None:
    job = read_job()
    out, settings = Path(job["out"]), job["settings"]
    prepared = out / "prepared.onnx"
    cost: dict[str, float] = {}
    options: dict[str, Any] = {"ActivationSymmetric": settings["symmetric"], "WeightSymmetric": True}
    with measured(cost):
        quant_pre_process(job["graph"], str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared), str(out / "model.onnx"), Reader(job["input"], job["inputs"]),
            quant_format=QuantFormat.QDQ, per_channel=True, weight_type=QuantType.QInt8,
            activation_type=QuantType.QInt8 if settings["symmetric"] else QuantType.QUInt8,
            calibrate_method=getattr(CalibrationMethod, settings["method"]), extra_options=options,
        )  # fmt: skip
    finish(job, cost, versions={"onnxruntime": onnxruntime.__version__})


if __name__ == "__main__":
    main()
