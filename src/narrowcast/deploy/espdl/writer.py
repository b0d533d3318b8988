"""A model and its plan as an ``.espdl`` file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import narrowcast
from narrowcast.base.errors import UserError
from narrowcast.chips.schema import Target
from narrowcast.deploy.espdl.assembly import Assembly
from narrowcast.deploy.espdl.codec import encode_espdl
from narrowcast.deploy.espdl.file import EspdlFile, EspdlNode, EspdlTensor, EspdlValue
from narrowcast.deploy.espdl.layouts import channels_last, identity
from narrowcast.deploy.espdl.operators import add_node
from narrowcast.deploy.espdl.products import fused_relu
from narrowcast.lower.integer import IntegerRunner, lower_integer
from narrowcast.plan.types import Plan

__all__ = ["TestVector", "build_espdl", "make_test_vectors", "write_espdl"]

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


def write_espdl(
    model: ir.Model,
    plan: Plan,
    target: Target,
    *,
    runtime: str | None = None,
    test_vector: TestVector | None = None,
    metadata: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
) -> bytes:
    """The bytes of an ``.espdl`` file; the same arguments give the same bytes.

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
        UserError: an operator that ESP-DL does not have, a scale that it cannot hold, an unknown runtime.
    """
    file = build_espdl(
        model, plan, target, runtime=runtime, test_vector=test_vector, metadata=metadata, names=names
    )  # fmt: skip
    return encode_espdl(file)


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
    """The file as data; see :func:`write_espdl`."""
    version = _runtime(runtime, target)
    if plan.target != target.name:
        raise UserError(f"the plan was made for {plan.target}, not for {target.name}", "make the plan again")
    assembly = Assembly(model.graph, plan, target)
    for value in model.graph.inputs:
        assembly.add_input(value)
    fused: set[ir.Node] = set()
    for node in model.graph:
        if node in fused:
            continue
        relu = fused_relu(assembly, node)
        if relu is not None:
            fused.add(relu)
        add_node(assembly, node)
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
