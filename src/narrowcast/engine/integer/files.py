"""An integer graph as an ordinary ONNX file: what its integers mean is JSON in the file's metadata. And running it.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.base.reading import parse_json, reading
from narrowcast.engine.integer.context import Proof
from narrowcast.engine.integer.lowering import IntegerGraph
from narrowcast.graph.run import Runner
from narrowcast.ops.net import Builder, Op, copied
from narrowcast.plan.types import Encoding

#: Key of the file's metadata under which everything but the graph stands.
METADATA_KEY = "narrowcast.integer"
_VERSION = 1


def integer_bytes(graph: IntegerGraph) -> bytes:
    """The ONNX file of an integer graph; the same graph gives the same bytes.

    Args:
        graph: from :func:`narrowcast.engine.integer.lower_integer`.

    Returns:
        A file that any ONNX runtime runs, and that :func:`open_integer` reads.
    """
    description = {
        "version": _VERSION,
        "inputs": {name: _to_json(encoding) for name, encoding in graph.inputs.items()},
        "outputs": {name: _to_json(encoding) for name, encoding in graph.outputs.items()},
        "tensors": {key: [name, _to_json(graph.encodings[key])] for key, name in graph.tensors.items()},
        "proofs": [asdict(proof) for proof in graph.proofs],
        "notes": list(graph.notes),
    }
    proto = copied(graph.proto)
    onnx.helper.set_model_props(proto, {METADATA_KEY: json.dumps(description, separators=(",", ":"))})
    return bytes(proto.SerializeToString(deterministic=True))


def open_integer(path: str | Path) -> IntegerGraph:
    """Read the file that :func:`integer_bytes` made.

    Raises:
        UserError: no such file, no ONNX file, or one of another origin or version.
    """
    with reading(path, "give the integer.onnx of a bundle", "is no ONNX file or is cut off"):
        proto = onnx.load_from_string(Path(path).read_bytes())
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    if METADATA_KEY not in entries:
        raise UserError(f"{path} is no integer graph of narrowcast", "give the integer.onnx of a bundle")
    document = parse_json(entries[METADATA_KEY], path, "quantize again")
    with reading(path, "quantize again", "describes its integers wrongly"):
        return _restored(proto, document)


def _restored(proto: onnx.ModelProto, document: dict[str, Any]) -> IntegerGraph:
    if document["version"] != _VERSION:
        raise ValueError(f"version {document['version']}, known is {_VERSION}")
    made = {name for node in proto.graph.node for name in node.output} | {value.name for value in proto.graph.input}
    lost = [name for name, _ in document["tensors"].values() if name not in made]
    ends = ({value.name for value in proto.graph.input}, {value.name for value in proto.graph.output})
    if lost or ends != (set(document["inputs"]), set(document["outputs"])):
        raise ValueError(f"{lost[0] if lost else 'an input or output'} is not in the graph")
    del proto.metadata_props[:]
    return IntegerGraph(
        proto=proto,
        inputs={name: _from_json(entry) for name, entry in document["inputs"].items()},
        outputs={name: _from_json(entry) for name, entry in document["outputs"].items()},
        tensors={key: str(name) for key, (name, _) in document["tensors"].items()},
        encodings={key: _encoding(entry) for key, (_, entry) in document["tensors"].items()},
        proofs=tuple(Proof(**entry) for entry in document["proofs"]),
        notes=tuple(document["notes"]),
    )


def _to_json(encoding: Encoding | None) -> dict[str, Any] | None:
    return None if encoding is None else asdict(encoding)


def _from_json(entry: dict[str, Any] | None) -> Encoding | None:
    return None if entry is None else _encoding(entry)


def _encoding(entry: dict[str, Any]) -> Encoding:
    scale = entry["scale"]
    return Encoding(
        entry["dtype"], tuple(scale) if isinstance(scale, list) else scale, entry["zero_point"], entry["axis"]
    )


def dequantized(graph: IntegerGraph) -> onnx.ModelProto:
    """The graph with outputs in real numbers, float32, for comparing them with a float graph's."""
    proto = copied(graph.proto)
    names = [value.name for value in (*proto.graph.input, *proto.graph.initializer)]
    builder = Builder(0, [*names, *(name for node in proto.graph.node for name in node.output)])
    for output in proto.graph.output:
        encoding = graph.outputs[output.name]
        if encoding is None:
            continue
        integers = builder.fresh(f"{output.name}_as_integers")
        for node in proto.graph.node:
            node.output[:] = [integers if name == output.name else name for name in node.output]
            node.input[:] = [integers if name == output.name else name for name in node.input]
        rank = len(output.type.tensor_type.shape.dim)
        zero, scale = f"{integers}_zero_point", f"{integers}_scale"
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(encoding.zero_point, np.float64), zero))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(encoding.broadcast(rank).astype(np.float64), scale))
        proto.graph.node.extend(
            [
                onnx.helper.make_node(Op.CAST, [integers], [f"{integers}_double"], to=onnx.TensorProto.DOUBLE),
                onnx.helper.make_node(Op.SUB, [f"{integers}_double", zero], [f"{integers}_centred"]),
                onnx.helper.make_node(Op.MUL, [f"{integers}_centred", scale], [f"{integers}_real"]),
                onnx.helper.make_node(Op.CAST, [f"{integers}_real"], [output.name], to=onnx.TensorProto.FLOAT),
            ]
        )
        output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return proto


class IntegerRunner:
    """An onnxruntime session for an integer graph.

    Args:
        graph: from :func:`narrowcast.engine.integer.lower_integer`.
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
