"""What is spoilt, and the command that reads it then."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx

from fuzzing import mutations, seeds

__all__ = ["CASES", "Case"]

#: Writes the spoilt file into a folder and gives the arguments of the command that reads it.
Case = Callable[[random.Random, Path, Path], list[str]]


def onnx_model(rng: random.Random, seed: Path, work: Path) -> list[str]:
    """A model with fields changed, or bytes."""
    name = rng.choice(("m", "m", "m", "pose", "cls"))
    data = (seed / f"{name}.onnx").read_bytes()
    if rng.random() < 0.15:
        data = mutations.spoil_bytes(rng, data)
    else:
        proto = onnx.load_from_string(data)
        names = ["x", "y", "c0", "a0", "w0", "", "Conv", "If", "Loop", "SequenceConstruct", "ai.custom", "Softmax"]
        for _ in range(rng.choice((1, 1, 2, 3))):
            mutations.spoil_message(rng, proto.graph if rng.random() < 0.8 else proto, names)
        data = proto.SerializeToString()
    (work / "m.onnx").write_bytes(data)
    command = rng.randrange(12)
    if command == 0:
        return ["inspect", "m.onnx"]
    if command == 1:
        return ["prepare", "m.onnx", "--out", "p.onnx"]
    if command == 2:
        options = ["--out", "made", "-t", rng.choice(("esp32p4", "onnx", "bayes-e")), "--effort", "fast"]
        return ["quantize", "m.onnx", "--images", str(seed / "img"), "--method", "minmax", "--threads", "1", *options]
    return ["check", "m.onnx", "-t", rng.choice(("esp32p4", "bayes-e", "onnx", "bernoulli2", "esp32s3"))]


def external_data(rng: random.Random, seed: Path, work: Path) -> list[str]:
    """A model whose weights lie in another file."""
    shutil.copytree(seed / "external", work, dirs_exist_ok=True)
    if rng.random() < 0.4:
        (work / "m.data").write_bytes(mutations.spoil_bytes(rng, (work / "m.data").read_bytes()))
    else:
        proto = onnx.load(str(work / "m.onnx"), load_external_data=False)
        entry = rng.choice(rng.choice(proto.graph.initializer).external_data)
        entry.value = rng.choice(("../m.data", "/etc/passwd", "-1", str(2**62), "x", "", ".", "m.onnx", "a\0b"))
        (work / "m.onnx").write_bytes(proto.SerializeToString())
    return ["check", "m.onnx"]


def bundle(rng: random.Random, seed: Path, work: Path) -> list[str]:
    """A bundle with one file changed, mostly with a manifest that knows of the change."""
    name = rng.choice(("m", "m", "pose", "cls"))
    folder = work / "b"
    shutil.copytree(seed / name, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    file = rng.choice(["manifest.json"] * 8 + ["plan.json"] * 5 + sorted(manifest["files"]))
    path = folder / file
    if file.endswith(".onnx"):
        path.write_bytes(_graph(rng, path.read_bytes()))
    elif file.endswith(".json"):
        path.write_bytes(mutations.spoil_json(rng, json.loads(path.read_text())))
    else:
        path.write_bytes(mutations.spoil_bytes(rng, path.read_bytes()))
    if file != "manifest.json" and rng.random() < 0.8:
        manifest["files"][file] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return _bundle_command(rng, seed, name)


def _graph(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.3:
        return mutations.spoil_bytes(rng, data)
    proto = onnx.load_from_string(data)
    for entry in proto.metadata_props:
        if entry.value.startswith("{\"") and rng.random() < 0.3:
            entry.value = mutations.spoil_json(rng, json.loads(entry.value)).decode("utf-8", "replace")
            return bytes(proto.SerializeToString())
    mutations.spoil_message(rng, proto.graph, ["x", "y", "c0", ""])
    return bytes(proto.SerializeToString())


def _bundle_command(rng: random.Random, seed: Path, name: str) -> list[str]:
    image, pictures = str(seed / "img" / "0.png"), str(seed / "img")
    truth = {"pose": ["--annotations", str(seed / "coco.json")], "cls": ["--labels", str(seed / "labels.txt")]}
    commands = [
        ["inspect", "b"], ["inspect", "b", "--nodes"], ["inspect", "b", "--json"],
        ["verify", "b", "--images", pictures, "--limit", "1"], ["run", "b", "--input", image],
        ["run", "b", "--input", image, "--dump-dir", "dump"], ["predict", "b", image, "--out", "seen.png"],
        ["bench", "b", "--frames", "1", "--image", image],
        ["modify", "b", "--remove-dequantize", "all", "--out", "made"],
        ["modify", "b", "--remove", "Quantize", "--out", "made"], ["deploy", "b", "--out", "made.espdl"],
        ["evaluate", "b", "--images", pictures, *truth.get(name, truth["cls"]), "--limit", "1", "--workers", "1"],
        ["quantize", str(seed / f"{name}.onnx"), "--images", pictures, "--plan", "b/plan.json", "--method", "minmax",
         "--effort", "fast", "-t", "onnx" if name == "cls" else "esp32p4", "--out", "made", "--threads", "1"],
    ]  # fmt: skip
    if rng.random() < 0.02:
        options = ["--graphwise", "--limit", "1", "--threads", "1"]
        return ["analyze", "b", "--images", pictures, "--out", "r.html", *options]
    return rng.choice(commands)


def espdl(rng: random.Random, seed: Path, work: Path) -> list[str]:
    """A model file of ESP-DL."""
    data = (seed / "m.espdl").read_bytes()
    for _ in range(rng.choice((1, 1, 3))):
        data = mutations.spoil_bytes(rng, data)
    (work / "m.espdl").write_bytes(data)
    return ["inspect", "m.espdl", *rng.choice(([], ["--nodes"], ["--json"]))]


def target(rng: random.Random, seed: Path, work: Path) -> list[str]:
    """A target file, extending one of ours or whole."""
    from narrowcast.chips import load_target, write_target

    tree = seeds.TARGET if rng.random() < 0.4 else json.loads(write_target(load_target("esp32p4")))
    (work / "t.yaml").write_bytes(mutations.spoil_yaml(rng, tree))
    return ["check", str(seed / "m.onnx"), "-t", f"{work.absolute()}/t.yaml"]  # read targets are kept by their path


def settings(rng: random.Random, seed: Path, work: Path) -> list[str]:
    """Our own YAML, and hb_mapper's."""
    tree = seeds.SETTINGS if rng.random() < 0.5 else seeds.HB_MAPPER
    shutil.copy(seed / "m.onnx", work)
    shutil.copytree(seed / "img", work / "img")
    (work / "c.yaml").write_bytes(mutations.spoil_yaml(rng, tree))
    return rng.choice((["config", "convert", "c.yaml"],) * 5 + (["quantize", "--config", "c.yaml"],))


def annotations(rng: random.Random, seed: Path, work: Path) -> list[str]:
    """COCO annotations."""
    (work / "c.json").write_bytes(mutations.spoil_json(rng, seeds.coco_document()))
    options = ["--limit", "1", "--workers", "1", *rng.choice(([], ["--skip-missing"]))]
    return ["evaluate", str(seed / "pose"), "--images", str(seed / "img"), "--annotations", "c.json", *options]


def labels(rng: random.Random, seed: Path, work: Path) -> list[str]:
    """Labels of a classifier."""
    lines = ["0.png 0", "1.png 1", "2.png,2"]
    odd = ("0.png ²", "0.png " + "9" * 5000, "x" * 5000 + " 1", "../0.png 1", "0.png -1", "a\0b 1", "0.png\t7", "0 1.")
    lines[rng.randrange(3)] = rng.choice(odd)
    data = "\n".join(lines).encode()
    (work / "l.txt").write_bytes(data if rng.random() < 0.5 else mutations.spoil_bytes(rng, data))
    options = ["--limit", "1", "--workers", "1"]
    return ["evaluate", str(seed / "cls"), "--images", str(seed / "img"), "--labels", "l.txt", *options]


def array(rng: random.Random, seed: Path, work: Path) -> list[str]:
    """Model inputs as .npy files, alone or in a folder, and files without header."""
    import numpy as np

    data = (seed / "x.npy").read_bytes()
    if rng.random() < 0.4:
        kind = rng.choice(("<f8", "<i8", "|b1", "<c16", "|S3", "<U2", "|O", ">f4", "<M8[s]", "<f2"))
        shape = rng.choice(((2, 3, 16, 16), (3, 16, 16), (1,), (), (0, 3, 16, 16), (1, 3, 16, 17), (1, 1, 3, 16, 16)))
        np.save(work / "x.npy", np.zeros(shape, kind), allow_pickle=True)
        data = (work / "x.npy").read_bytes()
    else:
        header = (b"'shape': (9999999999, 3, 16, 16)", b"'shape': (-1, 3, 16, 16)", b"'shape': ((((", b"'shape': (2,)")
        data = data.replace(b"'shape': (2, 3, 16, 16)", rng.choice(header)) if rng.random() < 0.5 else data
        data = mutations.spoil_bytes(rng, data)
    if rng.random() < 0.3:
        (work / "raw").mkdir()
        (work / "raw" / "0.bin").write_bytes(mutations.spoil_bytes(rng, (seed / "raw" / "0.bin").read_bytes()))
        (work / "c.yaml").write_text(json.dumps({**seeds.SETTINGS, "model": str(seed / "m.onnx"), "images": "raw",
                                                 "calibration_data": "float32"}))  # fmt: skip
        return ["quantize", "--config", "c.yaml"]
    (work / "x.npy").write_bytes(data)
    return rng.choice((["run", str(seed / "m"), "--input", "x.npy"],
                       ["verify", str(seed / "m"), "--images", ".", "--limit", "1"]))  # fmt: skip


def image(rng: random.Random, seed: Path, work: Path) -> list[str]:
    """A picture, alone, in a folder or in a list."""
    name = rng.choice(("0.jpg", "img/0.png"))
    file = work / f"i{name[-4:]}"
    file.write_bytes(mutations.spoil_bytes(rng, (seed / name).read_bytes()))
    (work / "list.txt").write_bytes(mutations.spoil_bytes(rng, f"{file.name}\n{seed}/img/1.png\n".encode()))
    source = rng.choice((file.name, "list.txt"))
    return rng.choice((["predict", str(seed / "pose"), file.name, "--out", "seen.png"],
                       ["verify", str(seed / "m"), "--images", source, "--limit", "1"]))  # fmt: skip


def evaluation(rng: random.Random, seed: Path, work: Path) -> list[str]:
    """What ``evaluate --json`` printed, for the report."""
    tree = json.loads((seed / "evaluation.json").read_text())
    (work / "e.json").write_bytes(mutations.spoil_json(rng, tree))
    options = ["--graphwise", "--limit", "1", "--threads", "1", "--out", "r.html", "--evaluation", "e.json"]
    return ["analyze", str(seed / "m"), "--images", str(seed / "img"), *options]


def journal(rng: random.Random, seed: Path, work: Path) -> list[str]:
    """Results of an interrupted evaluation: made by a run, kept, spoilt, read by the next."""
    from narrowcast.base.progress import Journal

    path = work / "j.jsonl"
    try:
        with Journal(path, {"work": 1}) as kept:
            for index in range(3):
                kept.put(index, {"classes": [index]})
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        path.write_bytes(mutations.spoil_bytes(rng, path.read_bytes()))
    with Journal(path, {"work": 1}) as again:
        assert all(again.known[index] == {"classes": [index]} for index in again.known), "a damaged result was taken"
    return []


#: Weight of each case among the inputs.
CASES: dict[Case, int] = {
    onnx_model: 28, external_data: 4, bundle: 26, espdl: 6, target: 8, settings: 9, annotations: 6, labels: 3, array: 4,
    image: 3, evaluation: 1, journal: 2,
}  # fmt: skip
