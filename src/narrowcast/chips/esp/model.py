"""A model and its plan as a file, and a file as a model and a plan, which the exact integer engine runs.

The model that is read has ONNX's layouts (NCHW, filters OIHW) and holds the file's integers as real numbers
``q * 2^e``, which the plan's encodings turn into the same integers again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper

import narrowcast
from narrowcast.base.errors import UserError
from narrowcast.base.reading import reading
from narrowcast.chips.esp.assembly import Assembly
from narrowcast.chips.esp.families import feeds_channels_last, model_readers, read_node, runtime_facts, write_node
from narrowcast.chips.esp.file import (
    EspdlFile,
    EspdlNode,
    EspdlTensor,
    EspdlValue,
    Order,
    channels_last,
    identity,
    inverse,
)
from narrowcast.chips.esp.products import fused_relu
from narrowcast.chips.esp.restoring import DOMAIN, Restoring
from narrowcast.chips.schema import Target
from narrowcast.engine.integer import IntegerRunner, constant_integers, full_table, lower_integer
from narrowcast.graph.ends import remove_unused
from narrowcast.ops.functions import unary_function
from narrowcast.ops.net import dims
from narrowcast.plan.types import Plan

__all__ = [
    "EspdlRunner", "Restored", "TestVector", "VectorCheck", "build_espdl", "make_test_vectors", "restore",
]  # fmt: skip

_OPSET = 18


@dataclass(frozen=True)
class TestVector:
    """Integers for the inputs, by name, and those that must come out; in the model's layout (NCHW)."""

    __test__ = False  # no test of pytest's

    inputs: Mapping[str, NDArray[Any]]
    outputs: Mapping[str, NDArray[Any]]


def make_test_vectors(
    model: ir.Model, plan: Plan, target: Target, images: Sequence[NDArray[np.float32]], threads: int = 0
) -> list[TestVector]:
    """Compute test vectors with the exact integer engine.

    Args:
        model: prepared graph with one input.
        plan: its encodings.
        target: the chip.
        images: preprocessed inputs, each of the model's input shape.
        threads: of onnxruntime; 0 for all cores.
    """
    graph = lower_integer(model, plan, target)
    runner = IntegerRunner(graph, threads, all_tensors=True)
    name = str(model.graph.inputs[0].name)
    vectors = []
    for image in images:
        integers = runner.integers(image)
        vectors.append(TestVector({name: integers[name]}, {key: integers[key] for key in graph.outputs}))
    return vectors


def build_espdl(
    model: ir.Model,
    plan: Plan,
    target: Target,
    *,
    runtime: str | None = None,
    test_vector: TestVector | None = None,
    metadata: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
) -> EspdlFile:
    """A model as a file; :func:`narrowcast.chips.esp.codec.encode_espdl` gives its bytes.

    Args:
        model: prepared graph; not changed.
        plan: its encodings, made for ``target``.
        target: the chip.
        runtime: version of ESP-DL that will read the file; the newest known by default.
        test_vector: integers that the board can check itself with, from :func:`make_test_vectors`; the runtime's own
            ``model->test()`` takes one.
        metadata: text that goes into the file.
        names: of outputs in the file, where they differ from the model's.

    Raises:
        UserError: an operator that ESP-DL does not have or that this version of it gets wrong, a scale that it cannot
            hold, an unknown runtime.
    """
    version = _runtime(runtime, target)
    if plan.target != target.name:
        raise UserError(f"the plan was made for {plan.target}, not for {target.name}", "make the plan again")
    assembly = Assembly(model.graph, plan, target, partial(feeds_channels_last, readers=model_readers))
    for value in model.graph.inputs:
        _add_input(assembly, value)
    fused = {fused_relu(assembly, node) for node in model.graph}
    for node in model.graph:
        if node not in fused:
            _check_version(node, plan, target, version)
            write_node(assembly, node)
    for value in model.graph.outputs:
        _finish_output(assembly, value)
    _rename_outputs(assembly, {str(value.name): str(value.name) for value in model.graph.outputs} | dict(names or {}))
    inputs, outputs = (
        tuple(assembly.values[assembly.stored[str(value.name)].name] for value in group)
        for group in (model.graph.inputs, model.graph.outputs)
    )
    values = assembly.values
    if any(not name for node in assembly.nodes for name in node.inputs):
        # Espressif's exporter describes the absent input too
        values = {"": EspdlValue("", "float32", (), (0,)), **values}
    return EspdlFile(
        graph_name=model.graph.name or "main_graph",
        nodes=tuple(assembly.nodes),
        inputs=inputs,
        outputs=outputs,
        values=values,
        tensors=assembly.tensors,
        test_inputs=_vector(assembly, test_vector.inputs if test_vector is not None else {}),
        test_outputs=_vector(assembly, test_vector.outputs if test_vector is not None else {}),
        metadata={"target": target.name, "runtime": f"{target.runtime.name} {version}", **(metadata or {})},
        producer=f"narrowcast {narrowcast.__version__}",
        opset=_OPSET,
    )


def _runtime(runtime: str | None, target: Target) -> str:
    versions = target.runtime.versions
    if target.runtime.name != "ESP-DL":
        raise UserError(f"{target.name} runs {target.runtime.name}, not ESP-DL", "choose an ESP32 target")
    if runtime is not None and not any(runtime == v or runtime.startswith(f"{v}.") for v in versions):
        raise UserError(f"{runtime!r} is no known version of ESP-DL", f"known are {', '.join(versions)}")
    return runtime or versions[-1]


def _check_version(node: ir.Node, plan: Plan, target: Target, version: str) -> None:
    number = tuple(int(part) for part in version.split("."))
    for fact in runtime_facts(node):
        if fact.severity == "error" and not fact.works(number) and fact.concerns(node, plan, target):
            raise UserError(f"{node.name}: {fact.problem}", fact.remedy)


def _add_input(assembly: Assembly, value: ir.Value) -> None:
    """A network input: channels last when a convolution or the like reads it."""
    encoding = assembly.plan.tensors.get(str(value.name))
    if encoding is None:
        raise UserError(f"the plan has no encoding for the input {value.name}", "make the plan again")
    shape = dims(value)
    if shape[:1] != (1,) and len(shape) > 2:
        raise UserError(f"the input {value.name} has batch {shape[0]}", "export the model with batch 1")
    assembly.result(value, channels_last(len(shape)) if assembly.wants_last(value) else identity(len(shape)), encoding)


def _finish_output(assembly: Assembly, value: ir.Value) -> None:
    """A network output stays channels last when it was born so; other orders are undone."""
    stored = assembly.stored.get(str(value.name))
    if stored is None or stored.name != str(value.name):
        raise UserError(f"the output {value.name} is no integer tensor of its own", "let a node compute it")
    rank = len(stored.shape)
    if stored.order not in (identity(rank), channels_last(rank)):
        # the network's output gets the model's order, and its present tensor another name
        inner = assembly.fresh(f"{stored.name}__inner")
        _rename(assembly, {stored.name: inner})
        moved = replace(stored, name=inner)
        assembly.stored[stored.name] = assembly.ordered(moved, identity(rank), stored.name)


def _rename_outputs(assembly: Assembly, names: Mapping[str, str]) -> None:
    """Give outputs other names; a tensor inside the network that has one of them makes way."""
    taken = (set(assembly.values) | set(assembly.tensors)) & set(names.values()) - set(names)
    _rename(assembly, {name: assembly.fresh(f"{name}__inner") for name in taken} | dict(names))


def _rename(assembly: Assembly, names: Mapping[str, str]) -> None:
    """Give tensors of the file other names, all at once."""

    def renamed(node: EspdlNode) -> EspdlNode:
        inputs, outputs = (tuple(names.get(name, name) for name in group) for group in (node.inputs, node.outputs))
        attributes = dict(node.attributes)
        if "lut" in attributes:
            attributes["lut"] = names.get(node.text("lut"), node.text("lut"))
        return replace(node, inputs=inputs, outputs=outputs, attributes=attributes)

    assembly.nodes = [renamed(node) for node in assembly.nodes]
    values = (replace(value, name=names.get(value.name, value.name)) for value in assembly.values.values())
    tensors = (replace(tensor, name=names.get(tensor.name, tensor.name)) for tensor in assembly.tensors.values())
    assembly.values = {value.name: value for value in values}
    assembly.tensors = {tensor.name: tensor for tensor in tensors}
    assembly.stored = {
        key: replace(stored, name=names.get(stored.name, stored.name)) for key, stored in assembly.stored.items()
    }


def _vector(assembly: Assembly, arrays: Mapping[str, NDArray[Any]]) -> dict[str, EspdlTensor]:
    """Test values in the file's layout, under the names of the file."""
    tensors = {}
    for key, array in arrays.items():
        stored = assembly.stored[key]
        value = assembly.values[stored.name]
        if array.shape != stored.shape or array.dtype.name != value.dtype:
            raise UserError(f"the test vector for {key} is {array.dtype} {array.shape}", "compute it again")
        data = np.ascontiguousarray(array.transpose(stored.order)).ravel()
        tensors[value.name] = EspdlTensor(value.name, value.dims, data, value.exponents)
    return tensors


@dataclass(frozen=True)
class Restored:
    """A file as a model.

    Attributes:
        model: operators of opset 18 (and ``narrowcast::Silu``), ONNX's layouts, inputs and outputs with the file's
            names.
        plan: encodings of every tensor; made for the target that was asked for.
        orders: network input or output to the order of its axes in the file.
        tables: node name to the table that the file carries for it, -128 (or -32768) first.
    """

    model: ir.Model
    plan: Plan
    orders: dict[str, Order]
    tables: dict[str, NDArray[Any]] = field(default_factory=dict)


def restore(file: EspdlFile, target: Target) -> Restored:
    """Turn a file into a model and a plan.

    Args:
        file: from :func:`narrowcast.chips.esp.codec.read_espdl`.
        target: the chip; files do not name theirs, and the chips round differently.

    Raises:
        UserError: an operator or a layout that is not known, or a file that contradicts itself.
    """
    restoring = Restoring(file, target)

    def readers(name: str) -> Iterable[tuple[str, str]]:
        return ((node.op_type, node.outputs[0]) for node in restoring.readers.get(name, []))

    inputs = []
    for value in file.inputs:
        rank = len(value.dims)
        order = channels_last(rank) if feeds_channels_last(value.name, readers) else identity(rank)
        inputs.append(restoring.record(value, order))
    for node in file.nodes:
        where = f"node {node.name} ({node.op_type}) of the .espdl file"
        with reading(where, "export the model again", "is not understood"):
            read_node(restoring, node)
    missing = [value.name for value in file.outputs if value.name not in restoring.known]
    if missing:
        raise UserError(f"the .espdl file never computes its output {missing[0]}", "export the model again")
    outputs = [restoring.describe(restoring.known[value.name], value.dtype) for value in file.outputs]
    graph = helper.make_graph(
        restoring.nodes, file.graph_name or "espdl", inputs, outputs, list(restoring.constants.values()),
        value_info=list(restoring.values.values()),
    )  # fmt: skip
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(DOMAIN, 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, functions=[_silu()], ir_version=10))
    remove_unused(model)
    plan = Plan(target.name, restoring.encodings, {}, restoring.placements)
    names = [value.name for value in (*file.inputs, *file.outputs)]
    return Restored(model, plan, {name: restoring.known[name].order for name in names}, restoring.tables)


def _silu() -> onnx.FunctionProto:
    """``x * sigmoid(x)`` under the name that the engine knows."""
    nodes = [helper.make_node("Sigmoid", ["x"], ["gate"]), helper.make_node("Mul", ["x", "gate"], ["y"])]
    return helper.make_function(DOMAIN, "Silu", ["x"], ["y"], nodes, [helper.make_opsetid("", _OPSET)])


@dataclass(frozen=True)
class VectorCheck:
    """How one output of a test vector came out: how many of its integers differ from the file's."""

    output: str
    differing: int
    count: int


class EspdlRunner:
    """A file, ready to run on this machine with the chip's integers.

    Args:
        file: from :func:`narrowcast.chips.esp.codec.read_espdl`.
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
