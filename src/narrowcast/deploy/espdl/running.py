"""Run an ``.espdl`` file through the exact integer engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.chips.schema import Target
from narrowcast.deploy.espdl.file import EspdlFile
from narrowcast.deploy.espdl.layouts import inverse
from narrowcast.deploy.espdl.restore import Restored, restore
from narrowcast.lower.integer import IntegerRunner, constant_integers, full_table, lower_integer
from narrowcast.lower.integer.functions import unary_function

__all__ = ["EspdlRunner", "VectorCheck"]


@dataclass(frozen=True)
class VectorCheck:
    """How one output of a test vector came out: how many of its integers differ from the file's."""

    output: str
    differing: int
    count: int


class EspdlRunner:
    """A file, ready to run on this machine with the chip's integers.

    Args:
        file: from :func:`narrowcast.deploy.espdl.read_espdl`.
        target: the chip: files do not say for which one they are.
        threads: of onnxruntime; 0 for all cores.

    Raises:
        UserError: a file that the engine cannot run.
    """

    def __init__(self, file: EspdlFile, target: Target, threads: int = 0) -> None:
        self.file, self.target = file, target
        self.restored: Restored = restore(file, target)
        self.graph = lower_integer(self.restored.model, self.restored.plan, target, integer_input=True)
        self.threads = threads
        self.runner = IntegerRunner(self.graph, threads)

    def quantize(self, tensor: NDArray[np.float32]) -> NDArray[Any]:
        """A float image as the network's input integers.

        Args:
            tensor: shape (1, C, H, W), preprocessed as the model wants it.
        """
        encoding = self.restored.plan.tensors[self.file.inputs[0].name]
        return constant_integers(tensor, encoding, self.target).astype(encoding.dtype)

    def run(self, integers: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Outputs by name, in the model's layout (NCHW); integers, or float32 where the file's output is.

        Args:
            integers: the input in the model's layout, of the input's type.
        """
        return self.runner.run(integers)

    def real(self, outputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Outputs as real numbers."""
        encodings = self.graph.outputs
        return {
            name: value.astype(np.float32) if (encoding := encodings[name]) is None else encoding.dequantize(value)
            for name, value in outputs.items()
        }

    def check_vectors(self) -> list[VectorCheck]:
        """Compare with the test vector in the file; empty when it has none.

        Raises:
            UserError: a test vector without the network's input.
        """
        name, checks = self.file.inputs[0].name, []
        if not self.file.test_outputs:
            return []
        if name not in self.file.test_inputs:
            raise UserError(f"the test vector of the .espdl file has no input {name}", "export it again")
        orders = self.restored.orders
        integers = self.file.test_inputs[name].array.transpose(inverse(orders[name]))
        outputs = self.run(np.ascontiguousarray(integers))
        for value in self.file.outputs:
            wanted = self.file.test_outputs.get(value.name)
            if wanted is not None:
                got = outputs[value.name].transpose(orders[value.name])
                checks.append(VectorCheck(wanted.name, int(np.count_nonzero(got != wanted.array)), got.size))
        return checks

    def differing_tables(self) -> dict[str, int]:
        """Nodes whose table in the file is not the one that the engine computes, with the number of entries."""
        found = {}
        for node in self.restored.model.graph:
            table = self.restored.tables.get(str(node.name))
            function = unary_function(node)
            if table is None or function is None or table.size != 256:
                continue
            tensors = self.restored.plan.tensors
            source, wanted = tensors[str(node.inputs[0].name)], tensors[str(node.outputs[0].name)]
            count = int(np.count_nonzero(full_table(function, source, wanted, self.target) != table))
            if count:
                found[str(node.name)] = count
        return found
