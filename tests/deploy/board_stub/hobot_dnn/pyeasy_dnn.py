"""Plays back outputs in the types and with the properties of the board's tensors.

The "compiled model" is an .npz file: ``value_N`` in order, ``scale_N`` (empty for float), and ``names``. What the
model is fed is kept beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass
class Properties:
    tensor_type: str
    dtype: str
    layout: str
    shape: tuple[int, ...]
    scale_data: np.ndarray


@dataclass
class Tensor:
    name: str
    buffer: np.ndarray
    properties: Properties


class Model:
    def __init__(self, path: str) -> None:
        self.path = Path(path)
        with np.load(path) as file:
            names = [str(name) for name in file["names"]]
            self.outputs = [
                Tensor(name, file[f"value_{index}"], _properties(file[f"value_{index}"], file[f"scale_{index}"]))
                for index, name in enumerate(names)
            ]

    def forward(self, data: np.ndarray) -> tuple[Tensor, ...]:
        np.save(self.path.with_suffix(".input.npy"), data)
        return tuple(self.outputs)


def _properties(values: np.ndarray, scale: np.ndarray) -> Properties:
    kind = "float32" if values.dtype == np.float32 else f"SCALE_{values.dtype}"
    return Properties(kind, str(values.dtype), "NHWC", values.shape, scale)


def load(path: str) -> list[Model]:
    return [Model(path)]
