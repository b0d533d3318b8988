"""Run an integer graph with onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.graph.run import Runner
from narrowcast.lower.integer.lowering import IntegerGraph

__all__ = ["IntegerRunner"]


class IntegerRunner:
    """An onnxruntime session for an integer graph.

    Args:
        graph: from :func:`narrowcast.lower.integer.lower_integer`.
        threads: of onnxruntime; 0 for all cores.
        level: graph optimization, as :class:`narrowcast.graph.Runner` takes it.
        all_tensors: give out every integer tensor too; takes more memory.
    """

    def __init__(self, graph: IntegerGraph, threads: int = 0, level: str = "all", all_tensors: bool = False) -> None:
        self.graph = graph
        self.all_tensors = all_tensors
        self.runner = Runner(graph.with_all_tensors() if all_tensors else graph.proto, threads, level)

    def run(self, tensor: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The graph's outputs by name, in their own types.

        Args:
            tensor: float32 image as the float model takes it, or integers for a graph with integer input.
        """
        return self.runner.run(tensor, list(self.graph.outputs))

    def integers(self, tensor: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Every integer tensor by value name or edge key, in the type of its encoding.

        Raises:
            ValueError: the session was made without ``all_tensors``.
        """
        if not self.all_tensors:
            raise ValueError("make the runner with all_tensors=True")
        keys: dict[str, list[str]] = {}
        for key, name in self.graph.tensors.items():
            keys.setdefault(name, []).append(key)
        found = self.runner.run(tensor, list(keys))
        result = {}
        for name, same in keys.items():
            values = np.asarray(found.pop(name))  # so that the floats go as soon as they are converted
            result.update({key: values.astype(self.graph.encodings[key].dtype) for key in same})
        return {key: result[key] for key in self.graph.tensors}
