"""The float model as the vendor's tool should see it: outputs channels last in the vendor's order, every node named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from narrowcast.bundle import Bundle
from narrowcast.deploy.rdk.opset import OPSET, to_opset_11
from narrowcast.errors import UserError
from narrowcast.graph.run import Runner
from narrowcast.graph.units import inline_units
from narrowcast.vision.heads import HeadSpec

__all__ = ["Exported", "ExportedOutput", "export", "float_graph", "vendor_order", "verify"]

#: Largest difference of an output, as a share of its largest magnitude, that counts as the same computation.
TOLERANCE = 1e-4
_TO_CHANNELS_LAST = (0, 2, 3, 1)


@dataclass(frozen=True)
class ExportedOutput:
    """An output of the exported model.

    Attributes:
        name: as in the bundle.
        shape: (1, H, W, C) for maps, (1, C, 1, 1) for the scores of a classifier.
        layout: ``"NHWC"`` for maps, else ``""``.
        before: the tensor before the Transpose of a map. The vendor's tool folds the Transpose and names the dequantize
            node after that tensor (published logs).
    """

    name: str
    shape: tuple[int, ...]
    layout: str
    before: str

    @property
    def dequantize(self) -> str:
        """The node with which the vendor's tool turns this output into float."""
        return f"{self.before}_HzDequantize"


@dataclass(frozen=True)
class Exported:
    """A model for hb_mapper.

    Attributes:
        proto: opset 11, IR 7.
        outputs: in order.
    """

    proto: onnx.ModelProto
    outputs: tuple[ExportedOutput, ...]


def vendor_order(names: Sequence[str], head: HeadSpec | None) -> list[str]:
    """Output names in the order of the vendor's model zoo and robot software: class, box, extra a stride, proto."""
    if head is None:
        return list(names)
    stems = ["cls", "box", *([head.extra] if head.extra else [])]
    ordered = [f"{stem}_s{stride}" for stride in head.strides for stem in stems]
    return ordered + [name for name in names if name not in ordered]


def float_graph(bundle: Bundle) -> onnx.ModelProto:
    """The user's float graph, prepared, in standard operators.

    Not the one with corrected weights: these belong to our ranges, and the vendor's tool finds its own.
    """
    return inline_units(bundle.model.to_proto())


def export(bundle: Bundle) -> Exported:
    """Convert a bundle's float graph.

    Raises:
        UserError: an operator that opset 11 cannot express, or numbers that are not float32.
    """
    proto = float_graph(bundle)
    names = [value.name for value in proto.graph.output]
    _name_nodes(proto)
    converted = to_opset_11(proto)
    ordered = vendor_order(names, bundle.manifest.head)
    scores = bundle.manifest.task == "classify" and not bundle.manifest.integer_outputs
    outputs = _set_outputs(converted, ordered, scores)
    onnx.checker.check_model(converted, full_check=True)
    return Exported(converted, outputs)


def _name_nodes(proto: onnx.ModelProto) -> None:
    """Give nodes without a name (the insides of an activation unit) one after the named node that they lead to."""
    reader = {name: node for node in reversed(proto.graph.node) for name in node.input}
    taken = {node.name for node in proto.graph.node}
    for node in proto.graph.node:
        if node.name:
            continue
        end = node
        while not end.name and end.output[0] in reader:
            end = reader[end.output[0]]
        stem = f"{end.name or end.output[0]}_{node.op_type}"
        name = next(name for name in (stem, *(f"{stem}_{i}" for i in range(1, len(taken) + 2))) if name not in taken)
        taken.add(name)
        node.name = name


def _set_outputs(proto: onnx.ModelProto, ordered: Sequence[str], scores: bool) -> tuple[ExportedOutput, ...]:
    """Put the outputs in order, in place: maps channels last; with ``scores``, class scores with four axes (TROS)."""
    graph = proto.graph
    shapes = {v.name: tuple(dim.dim_value for dim in v.type.tensor_type.shape.dim) for v in graph.output}
    outputs = []
    for name in ordered:
        shape = shapes[name]
        if len(shape) == 4 and shape[2:] != (1, 1):
            moved = tuple(shape[axis] for axis in _TO_CHANNELS_LAST)
            before = _rename(graph, name)
            node = helper.make_node("Transpose", [before], [name], f"{name}_to_NHWC", perm=_TO_CHANNELS_LAST)
            outputs.append(ExportedOutput(name, moved, "NHWC", before))
            graph.node.append(node)
        elif scores and len(shape) == 2:
            moved = (*shape, 1, 1)
            before = _rename(graph, name)
            graph.initializer.append(numpy_helper.from_array(np.asarray(moved, np.int64), f"{name}_shape"))
            graph.node.append(helper.make_node("Reshape", [before, f"{name}_shape"], [name], f"{name}_to_4d"))
            outputs.append(ExportedOutput(name, moved, "", before))
        else:
            outputs.append(ExportedOutput(name, shape, "", name))
    del graph.output[:]
    graph.output.extend(helper.make_tensor_value_info(o.name, onnx.TensorProto.FLOAT, o.shape) for o in outputs)
    return tuple(outputs)


def _rename(graph: onnx.GraphProto, name: str) -> str:
    """Give a tensor another name, so that an output can take its own."""
    before = f"{name}_raw"
    for node in graph.node:
        node.output[:] = [before if output == name else output for output in node.output]
        node.input[:] = [before if entry == name else entry for entry in node.input]
    return before


def verify(bundle: Bundle, exported: Exported, inputs: Sequence[NDArray[np.float32]], threads: int = 0) -> float:
    """Run the bundle's float graph and the exported one.

    Args:
        bundle: where it came from.
        exported: from :func:`export`.
        inputs: model inputs; one of random pixels is added.
        threads: of onnxruntime.

    Returns:
        The largest difference of an output, as a share of that output's largest magnitude.

    Raises:
        UserError: it is above 1e-4.
    """
    left = Runner(float_graph(bundle), threads)
    right = Runner(exported.proto, threads)
    random = np.random.default_rng(0).random(left.input_shape).astype(np.float32)
    worst, where = 0.0, ""
    for tensor in (*inputs, random):
        expected, actual = left.run(tensor), right.run(tensor)
        for output in exported.outputs:
            wanted = np.asarray(expected[output.name], np.float32)
            wanted = wanted.transpose(_TO_CHANNELS_LAST) if output.layout else wanted.reshape(output.shape)
            given = np.asarray(actual[output.name], np.float32)
            difference = float(np.abs(wanted - given).max(initial=0.0)) / float(np.abs(wanted).max(initial=1e-6))
            if not difference <= worst:
                worst, where = difference, output.name
    if not worst <= TOLERANCE:
        raise UserError(
            f"the model at opset {OPSET} computes something else ({where} differs by {worst:.2g} of its range)",
            "please report this model",
        )
    return worst
