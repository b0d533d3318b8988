"""Nets that give whole numbers: class maps stay what they are, and are compared by equality."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from builders import constant, model, save, weights
from narrowcast.analyze import analyze
from narrowcast.base.errors import UserError
from narrowcast.bundle import open_bundle, quantize
from narrowcast.bundle.analysis import subject_of
from narrowcast.bundle.kits import deploy
from narrowcast.calibrate import images
from narrowcast.engine.verify import verify
from narrowcast.graph import load
from narrowcast.plan import Pins

node = helper.make_node
ARGMAX = node("ArgMax", ["logits"], ["classes"], name="argmax", axis=1, keepdims=1)


def segmenting(*behind: onnx.NodeProto, name: str = "classes", kind: int = TensorProto.INT64) -> onnx.ModelProto:
    """Two convolutions, and what makes whole numbers of their logits."""
    rng = np.random.default_rng(0)
    nodes = [
        node("Conv", ["x", "w0"], ["a"], name="conv0", pads=[1] * 4), node("Relu", ["a"], ["b"], name="relu"),
        node("Conv", ["b", "w1"], ["logits"], name="conv1"), *behind,
    ]  # fmt: skip
    constants = [
        weights(rng, "w0", 8, 3, 3, 3), weights(rng, "w1", 4, 8, 1, 1), weights(rng, "w2", 2, 1, 3, 3),
        constant("one", np.asarray(1)), constant("zero", np.float32(0)), constant("axis", np.asarray([1])),
    ]  # fmt: skip
    proto = model(nodes, constants, outputs=(), opset=13)
    inferred = onnx.shape_inference.infer_shapes(proto)
    shape = next(v for v in inferred.graph.value_info if v.name == name).type.tensor_type.shape
    proto.graph.output.append(helper.make_tensor_value_info(name, kind, [dim.dim_value for dim in shape.dim]))
    return proto


CAST = node("Cast", ["classes"], ["r"], name="cast", to=TensorProto.FLOAT)
NETS = {
    "end": segmenting(ARGMAX),
    "dropped axis": segmenting(node("ArgMax", ["logits"], ["classes"], name="argmax", axis=1, keepdims=0)),
    "moved": segmenting(
        node("ArgMax", ["logits"], ["m"], name="argmax", axis=1, keepdims=0),
        node("Unsqueeze", ["m", "axis"], ["classes"], name="unsqueeze"),
    ),
    "bytes": segmenting(
        ARGMAX, node("Cast", ["classes"], ["u"], name="cast", to=TensorProto.UINT8), name="u", kind=TensorProto.UINT8
    ),
    "truth": segmenting(node("Greater", ["logits", "zero"], ["t"], name="more"), name="t", kind=TensorProto.BOOL),
    "middle": segmenting(ARGMAX, CAST, node("Conv", ["r", "w2"], ["y"], name="last"), name="y", kind=TensorProto.FLOAT),
    "mask": segmenting(
        ARGMAX, node("Equal", ["classes", "one"], ["e"], name="equal"),
        node("Where", ["e", "b", "zero"], ["y"], name="where"), name="y", kind=TensorProto.FLOAT,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("net", "target", "kind"),
    [
        ("end", "bayes-e", None), ("end", "onnx", None), ("end", "bayes-e", "float32"), ("end", "bernoulli2", None),
        ("dropped axis", "onnx-symmetric", None), ("moved", "bayes-e", None), ("bytes", "bernoulli2", None),
        ("truth", "bayes-e", "int16"), ("middle", "bayes-e", None), ("mask", "onnx", None),
    ],
)  # fmt: skip
def test_class_maps(tmp_path: Path, net: str, target: str, kind: str | None) -> None:
    loaded = load(save(NETS[net], tmp_path / "net.onnx"), keep_head=True)
    path = tmp_path / "images.npy"
    np.save(path, np.random.default_rng(1).random((8, 3, 16, 16)).astype(np.float32))
    found = images(path, loaded.preprocess)
    pins = Pins({"more" if net == "truth" else "argmax": kind}) if kind is not None else None
    effort = "standard" if net in ("middle", "mask") else "fast"
    quantize(loaded, found, target, out=tmp_path / "bundle", pins=pins, effort=effort)
    bundle = open_bundle(tmp_path / "bundle")
    (output,) = bundle.manifest.outputs
    expected = {"bytes": "uint8", "truth": "bool", "middle": None, "mask": "float32"}.get(net, "int64")
    image = next(iter(found))
    values = bundle.run(image)[output.name]
    rows = verify(bundle.prepared.ir, bundle.plan, bundle.target, bundle.integer_graph, [image])
    assert not any(row.differing for row in rows)
    if expected not in (None, "float32"):
        assert values.dtype.name == output.chip_dtype == expected and output.scale is None
        right = float(np.mean(values == bundle.floating.run(image)[output.name]))
        assert right > 0.9 and rows[-1].tensor.endswith("(shipped)")
        assert 0.9 < bundle.manifest.comparison[0]["equal"] <= 1
    analysis = analyze(subject_of(bundle, found.subset([0])), layers="all")
    assert analysis.layers
    if "rdk-x5" in bundle.target.kits:
        deploy(bundle, "rdk-x5", tmp_path / "kit", images=found)
        assert onnx.load(tmp_path / "kit" / "model.onnx").graph.output[0].type.tensor_type.elem_type == (
            NETS[net].graph.output[0].type.tensor_type.elem_type
        )


def test_a_chip_without_argmax_says_so(tmp_path: Path) -> None:
    loaded = load(save(NETS["end"], tmp_path / "net.onnx"), keep_head=True)
    with pytest.raises(UserError, match="ArgMax is not in the op table"):
        quantize(loaded, [np.zeros((1, 3, 16, 16), np.float32)], "esp32p4", out=tmp_path / "bundle")
