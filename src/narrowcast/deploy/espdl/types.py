"""What an ``.espdl`` file holds, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["AttributeValue", "EspdlFile", "EspdlNode", "EspdlTensor", "EspdlValue"]


@dataclass(frozen=True)
class EspdlTensor:
    """A constant of a file.

    Attributes:
        name: of the value.
        dims: as the file states them; for packed filters these are logical (HWCN, HWNC, WCN, ...), not the order of
            the numbers.
        data: the numbers in the order of the file, flat, without padding.
        exponents: log2 of the scale, none, one, or one per output channel.
        layout: what the file says, e.g. ``"(N/16)HWC16"``; empty or ``"UNK"`` for numbers in the order of the dims.
    """

    name: str
    dims: tuple[int, ...]
    data: NDArray[Any]
    exponents: tuple[int, ...] = ()
    layout: str = ""

    @property
    def array(self) -> NDArray[Any]:
        """The numbers shaped as the dims; meaningful when they are not packed."""
        return self.data.reshape(self.dims)


AttributeValue = float | int | str | tuple[float, ...] | tuple[int, ...] | tuple[str, ...] | EspdlTensor


@dataclass(frozen=True)
class EspdlValue:
    """An activation: element type (``"int8"``, ``"float32"``, ...), shape in the file's layout, exponents."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    exponents: tuple[int, ...] = ()

    @property
    def exponent(self) -> int:
        """log2 of the scale."""
        return self.exponents[0] if self.exponents else 0


@dataclass(frozen=True)
class EspdlNode:
    """An operator; inputs and outputs are names, an absent input is empty."""

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)

    def integer(self, name: str, default: int = 0) -> int:
        """An integer attribute."""
        value = self.attributes.get(name, default)
        if not isinstance(value, int):
            raise TypeError(f"{name} of {self.name} is no integer")
        return value

    def text(self, name: str, default: str = "") -> str:
        """A string attribute."""
        return str(self.attributes.get(name, default))

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of integers, empty when absent."""
        value = self.attributes.get(name, ())
        return tuple(int(number) for number in value) if isinstance(value, tuple) else ()


@dataclass(frozen=True)
class EspdlFile:
    """A whole file.

    Attributes:
        graph_name: of the graph.
        nodes: in execution order.
        inputs: of the network.
        outputs: of the network.
        values: every activation by name, inputs and outputs among them.
        tensors: every constant by name.
        test_inputs: integers for the inputs, by name, in the file's layout.
        test_outputs: the integers that the chip must give for them.
        metadata: text by key.
        producer: name and version of the program that wrote the file.
        opset: ONNX operator set, 0 when the file does not say.
        bytes: size of the file.
    """

    graph_name: str
    nodes: tuple[EspdlNode, ...]
    inputs: tuple[EspdlValue, ...]
    outputs: tuple[EspdlValue, ...]
    values: Mapping[str, EspdlValue]
    tensors: Mapping[str, EspdlTensor]
    test_inputs: Mapping[str, EspdlTensor] = field(default_factory=dict)
    test_outputs: Mapping[str, EspdlTensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    producer: str = ""
    opset: int = 0
    bytes: int = 0

    def array(self, name: str) -> np.ndarray[Any, np.dtype[Any]]:
        """A constant that is not packed, e.g. the shape that a Reshape takes."""
        return self.tensors[name].array
