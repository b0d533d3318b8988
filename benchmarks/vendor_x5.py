"""The kit rdk-x5 through the vendor's compiler and runtime: does the board compute what the bundle says?

    python benchmarks/vendor_x5.py [--data ../shared/data] [--env DIR] [--cases yolo11n-pose mobilenet_v2] [--images 2]

Installs the vendor's tool from the package index into an environment of its own (Python 3.10, about a minute; kept in
the user's cache folder, or --env DIR). For each case: quantize, deploy, ``hb_mapper makertbin`` at O0. Then compares,
and counts what differs: weights, biases and scales of the plan with those of the tool's files; every integer tensor of
the bundle with HB_ONNXRuntime's on the tool's quantized model, from the integers that its preprocess node gives; and
those with the bundle's own. Nothing of the tool is read but the files that it writes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import narrowcast as nc
from narrowcast.bundle import Bundle
from narrowcast.bundle.kits import deploy
from narrowcast.bundle.store import quantize_input
from narrowcast.engine.integer.files import IntegerRunner
from narrowcast.engine.integer.fixed import accumulator_step, activation_step, half_step, tool_scale
from narrowcast.ops.facts import Kind, facts
from narrowcast.ops.net import constant_at
from narrowcast.plan import Encoding, Pins
from narrowcast.plan.drafting import operand_encoding, written_value

Array = NDArray[Any]
#: Installed without what they ask for: one wants torch, and numpy as old as 1.23.0.
TOOL = ("rdkx5-yolo-mapper==1.0.0", "dgdk==1.0.0", "dg_nn_toolkit==1.0.0")
NEEDED = (
    "numpy==1.23.5", "onnx==1.15.0", "onnxruntime==1.16.2", "opencv-python==4.6.0.66", "protobuf==3.20.3",
    "scipy==1.13.1", "scikit-image==0.24.0", "absl-py", "click", "easydict", "graphviz", "jinja2", "matplotlib",
    "msgpack-numpy", "multiprocess", "paramiko", "pathos", "pillow", "psutil", "pycocotools", "pydot", "pyyaml",
    "schema", "six", "tabulate", "tqdm",
)  # fmt: skip
#: The tool imports torch and never uses it for this: any attribute is a class that accepts anything.
TORCH = """
import importlib.abc, importlib.machinery, sys, types
__version__ = "2.0.0"
class _Meta(type):
    def __getattr__(cls, name):
        if name.startswith("__"): raise AttributeError(name)
        made = _made(name); setattr(cls, name, made); return made
    def __getitem__(cls, item): return cls
    def __or__(cls, other): return cls
    def __ror__(cls, other): return cls
def _made(name):
    def __init__(self, *a, **k): pass
    def __call__(self, *a, **k): return a[0] if len(a) == 1 and not k else self
    return _Meta(name, (), {"__init__": __init__, "__call__": __call__})
class _Module(types.ModuleType):
    __path__ = []
    def __getattr__(self, name):
        if name.startswith("__"): raise AttributeError(name)
        made = _made(name); setattr(self, name, made); return made
class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.startswith("torch.") else None
    def create_module(self, spec): return _Module(spec.name)
    def exec_module(self, module): pass
sys.meta_path.insert(0, _Finder())
def __getattr__(name):
    if name.startswith("__"): raise AttributeError(name)
    made = _made(name); globals()[name] = made; return made
"""
#: Runs in the tool's environment: every tensor of a quantized model, for some inputs.
RUN = """
import sys
import numpy as np, onnx
from horizon_tc_ui import HB_ONNXRuntime
model, given, folder = sys.argv[1:4]
proto = onnx.load(model)
known = {output.name for output in proto.graph.output}
proto.graph.output.extend(value for value in proto.graph.value_info if value.name not in known)
onnx.save(proto, f"{folder}/all.onnx")
session = HB_ONNXRuntime(model_file=f"{folder}/all.onnx")
names = list(session.output_names)
for index, values in enumerate(np.load(given)["inputs"]):
    found = session.run(names, {session.input_names[0]: values})
    np.savez(f"{folder}/found{index}.npz", **{str(place): values for place, values in enumerate(found)})
open(f"{folder}/names", "w").write("\\n".join(names))
"""
POSE_WIDE = ("/model.0/*", "/model.10/m/m.0/attn/qkv/*", "/model.13/*", "/model.23/cv2*", "/model.23/cv4*")
#: Model, camera and patterns of nodes at 16 bits of each case.
CASES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "yolo11n-pose": ("yolo11n-pose", "rgb", ()),
    "yolo11n-seg": ("yolo11n-seg", "rgb", ()),
    "yolov8n": ("yolov8n", "rgb", ()),
    "mobilenet_v2": ("mobilenet_v2_1.0_224", "rgb", ()),
    "yolo11n-pose int16": ("yolo11n-pose", "rgb", POSE_WIDE),
}


def environment(folder: Path | None) -> Path:
    """The tool's environment, made where it is missing."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "narrowcast" / "vendor-x5"
    place = folder or cache
    if (place / "bin" / "hb_mapper").exists():
        return place
    if folder is not None:
        sys.exit(f"{folder} holds no bin/hb_mapper")
    python = next((path for path in map(shutil.which, ("python3.10", "python3", "python")) if _is_310(path)), None)
    if python is None:
        sys.exit("the vendor's tool needs Python 3.10, and there is none (python3.10)")
    print(f"installing the vendor's tool into {place} ...", flush=True)
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([python, "-m", "venv", str(place)], check=True)
    for packages in ((*NEEDED,), ("--no-deps", *TOOL)):
        subprocess.run([str(place / "bin" / "pip"), "install", "-q", *packages], check=True)
    torch = place / "lib" / "python3.10" / "site-packages" / "torch"
    torch.mkdir()
    (torch / "__init__.py").write_text(TORCH)
    return place


def _is_310(python: str | None) -> bool:
    if python is None:
        return False
    told = subprocess.run([python, "--version"], capture_output=True, text=True, check=False)
    return told.returncode == 0 and told.stdout.startswith("Python 3.10.")


@dataclass
class Compiled:
    """What the tool wrote.

    Attributes:
        quantized: its integer graph.
        calibrated: its float graph with the ranges that it uses.
        path: of the integer graph.
        log: what it said.
    """

    quantized: onnx.ModelProto
    calibrated: onnx.ModelProto
    path: Path
    log: str


def compiled(package: Path, tool: Path) -> Compiled:
    """Compile a kit at O0, which changes no integer."""
    settings = yaml.safe_load((package / "hb_mapper.yaml").read_text())
    settings["compiler_parameters"]["optimize_level"] = "O0"
    settings["model_parameters"] |= {"working_dir": "out", "output_model_file_prefix": "model"}
    (package / "o0.yaml").write_text(yaml.safe_dump(settings))
    paths = {**os.environ, "PATH": f"{tool / 'bin'}:{os.environ['PATH']}"}
    command = ["hb_mapper", "makertbin", "--config", "o0.yaml", "--model-type", "onnx"]
    done = subprocess.run(command, cwd=package, env=paths, capture_output=True, text=True, check=False)
    out, log = package / "out", done.stdout + done.stderr
    if not (out / "model.bin").exists():  # its exit code does not tell
        sys.exit("\n".join([line for line in log.splitlines() if "ERROR" in line] or log.splitlines()[-20:]))
    path = out / "model_quantized_model.onnx"
    return Compiled(onnx.load(str(path)), onnx.load(str(out / "model_calibrated_model.onnx")), path, log)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


@dataclass
class Count:
    """How many numbers were compared, how many differ, and where, in the order of the graph."""

    of: int = 0
    different: int = 0
    where: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, ours: Array, theirs: Array, note: str = "") -> None:
        wrong = ours != theirs
        self.of, self.different = self.of + wrong.size, self.different + int(wrong.sum())
        if wrong.any():
            most = np.abs(ours.astype(np.float64) - theirs)[wrong].max()
            self.where.setdefault(name, f"{int(wrong.sum())} of {wrong.size}, by at most {most:g}{note}")

    def __str__(self) -> str:
        return f"{self.different} of {self.of}"


def parameters(bundle: Bundle, tool: Compiled) -> dict[str, Count]:
    """Weights and biases of the plan against those of the tool's convolutions, scales against its ranges."""
    plan, rounding = bundle.plan, bundle.target.quantize_rounding
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in tool.quantized.graph.initializer}
    convolutions = {n.name: n for n in tool.quantized.graph.node if n.op_type.startswith("HzSQuantizedConv")}
    weights, biases = Count(), Count()
    for node in bundle.prepared.ir.graph:
        if not facts(node).is_weighted or constant_at(node, 1) is None or node.name not in convolutions:
            continue
        theirs = convolutions[str(node.name)]
        x, weight = (operand_encoding(node, index, plan.tensors, plan.edges) for index in (0, 1))
        integers = weight.quantize(np.asarray(constant_at(node, 1)), rounding).astype(np.int64)
        if facts(node).kind is Kind.LINEAR:
            integers = (integers if node.attributes.get_int("transB", 0) else integers.T)[..., None, None]
        weights.add(str(node.name), integers.transpose(0, 2, 3, 1), constants[theirs.input[1]])
        stored = constants.get(theirs.input[2]) if len(theirs.input) > 2 else None
        if stored is not None:
            result = written_value(node, plan.tensors, bundle.target, plan.nodes)
            output = plan.tensors[str(result.name)] if result is not None else None
            biases.add(str(node.name), _bias(node, x, weight, output), stored.astype(np.int64))
    return {"weights": weights, "biases": biases, "scales": _scales(bundle, tool)}


def _bias(node: Any, x: Encoding, weight: Encoding, output: Encoding | None) -> Array:
    """The integers of a bias with the half of rounding, as the engine adds them, (C,).

    Below a factor of 2^-23 the tool raises the scale of the weights, which are 0 there in all of these cases.
    """
    step = activation_step(output) if output is not None else 1.0
    product = accumulator_step(x, weight)
    least = np.float32(2.0**-23) * np.float32(step) / np.float32(activation_step(x))
    product = np.where(product / step < 2.0**-23, np.float64(np.float32(activation_step(x)) * least), product)
    value = constant_at(node, 2)
    integers = np.rint(np.asarray(value, np.float64) / product) if value is not None else np.zeros(product.shape)
    return (integers + (half_step(product / step) if output is not None else 0)).astype(np.int64)


def _scales(bundle: Bundle, tool: Compiled) -> Count:
    found = {node.output[0]: attributes(node) for node in tool.calibrated.graph.node if node.op_type == "HzCalibration"}
    count = Count()
    for name, code in bundle.plan.tensors.items():
        told = next((found[each] for each in (f"{name}_marked", f"{name}_raw_marked", name) if each in found), None)
        if code.dtype == "int32":
            continue
        if told is None:
            count.where[name] = "the tool has none"
            continue
        given = np.atleast_1d(tool_scale(code))
        theirs = np.asarray(told["scales"], np.float32)
        count.add(name, given, theirs[: len(given)])
        if told["qtype"].decode() != code.dtype:
            count.where[name] = f"{told['qtype'].decode()}, the plan has {code.dtype}"
    return count


def run_tool(tool: Compiled, place: Path, inputs: Sequence[Array], folder: Path) -> list[dict[str, Array]]:
    """Every tensor of the tool's integer graph in its own runtime, by name."""
    (folder / "run.py").write_text(RUN)
    np.savez(folder / "inputs.npz", inputs=np.stack(inputs))
    command = [str(place / "bin" / "python"), "run.py", str(tool.path), "inputs.npz", "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    names, found = (folder / "names").read_text().split("\n"), []
    for index in range(len(inputs)):
        with np.load(folder / f"found{index}.npz") as arrays:
            found.append({name: arrays[str(place)] for place, name in enumerate(names)})
    return found


def in_wanted_encoding(tool: Compiled, found: Mapping[str, Array]) -> dict[str, Array]:
    """The tool's tensors; one that it brings into another encoding right behind its node is what comes out there."""
    result = dict(found)
    for node in tool.quantized.graph.node:
        stem = node.input[0].removesuffix("_quantized")
        behind = node.name == f"{stem}_Requantize" or "_broadcast_HzDeQuantize_output_" in node.name
        if node.op_type == "HzRequantize" and behind:
            result[node.input[0]] = found[node.output[0]]
    return result


def counterpart(theirs: Mapping[str, Array], name: str, shape: tuple[int, ...]) -> Array | None:
    """The tool's integers of a tensor, in the order of our axes; ``None`` where it has none of that shape."""
    stems = (name, f"{name}_raw", f"{name}_map", f"{name}_raw_map")
    values = next((theirs[f"{stem}_quantized"] for stem in stems if f"{stem}_quantized" in theirs), None)
    if values is None or values.size != np.prod(shape):
        return None
    if values.ndim == 4 and len(shape) == 2:
        return values.reshape(shape)
    turned = values.transpose(0, 3, 1, 2) if values.ndim == 4 else values
    return turned if turned.shape == shape else values if values.shape == shape else None


def tensors(bundle: Bundle, theirs: Sequence[Mapping[str, Array]], starts: Sequence[Array]) -> tuple[Count, int]:
    """Every integer tensor from the tool's own preprocessed integers, and how many tensors are in both."""
    runner = IntegerRunner(bundle.network.integers(integer_input=True), all_tensors=True)
    count, both = Count(), set()
    for found, start in zip(theirs, starts, strict=True):
        for name, ours in runner.integers(start).items():
            values = counterpart(found, name, ours.shape)
            if values is None or "#" in name or name == bundle.manifest.input_name:
                continue
            both.add(name)
            makers = {output.name: node.op_type for node in bundle.prepared.ir.graph for output in node.outputs}
            count.add(name, ours.astype(np.int64), values.astype(np.int64), f" ({makers.get(name, 'input')})")
    return count, len(both)


def report(case: str, options: argparse.Namespace, place: Path, folder: Path) -> None:
    name, camera, wide = CASES[case]
    model = nc.load(options.data / "models" / f"{name}.onnx")
    model = replace(model, preprocess=replace(model.preprocess, camera=camera))
    classify = model.task == "classify"
    source = options.data / ("imagenet/images" if classify else "coco/calib_images")
    nodes = [str(node.name) for node in model.ir.graph]
    matched = {node: "int16" for node in nodes if any(fnmatchcase(node, pattern) for pattern in wide)}
    begun = time.perf_counter()
    images = nc.images(source, model.preprocess, limit=options.calibration)
    bundle = nc.quantize(model, images, "bayes-e", out=folder / "bundle", effort=options.effort, method="mse",
                         pins=Pins(matched) if matched else None)  # fmt: skip
    quantized = time.perf_counter()
    made = deploy(bundle, "rdk-x5", folder / "package", images=images)
    tool = compiled(folder / "package", place)
    print(f"\n{case}: quantized in {quantized - begun:.0f} s, compiled in {time.perf_counter() - quantized:.0f} s")
    for note in made.notes:
        print(f"  {note}")
    for what, count in parameters(bundle, tool).items():
        _say(f"{what} that differ", count, options.rows)
    pixels = replace(model.preprocess, mean=(0.0,), scale=(1.0,))
    shown = nc.images(source, model.preprocess).sources[-options.images :]
    raw, real = (list(nc.images(list(shown), spec)) for spec in (pixels, model.preprocess))
    found = run_tool(tool, place, [(tensor - 128).astype(np.int8) for tensor in raw], folder)
    first = next(node for node in tool.quantized.graph.node if node.op_type == "HzSQuantizedPreprocess").output[0]
    starts = [np.ascontiguousarray(values[first].transpose(0, 3, 1, 2)) for values in found]
    entry, code = Count(), bundle.plan.tensors[bundle.manifest.input_name]
    for tensor, start in zip(real, starts, strict=True):
        entry.add("input", quantize_input(tensor, code, bundle.target.quantize_rounding).astype(int), start.astype(int))
    _say("integers of the preprocess node that differ", entry, options.rows)
    count, both = tensors(bundle, [in_wanted_encoding(tool, arrays) for arrays in found], starts)
    _say(f"integers of {both} tensors on {len(starts)} images that differ", count, options.rows)


def _say(what: str, count: Count, rows: int) -> None:
    print(f"  {what}: {count}", flush=True)
    for name, told in list(count.where.items())[:rows]:
        print(f"    {name}: {told}")
    if len(count.where) > rows:
        print(f"    ... and {len(count.where) - rows} more")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--data", type=Path, default=root.parent / "shared" / "data")
    parser.add_argument("--env", type=Path, help="environment in which the vendor's tool is installed")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--calibration", type=int, default=16, help="images to calibrate on")
    parser.add_argument("--images", type=int, default=2, help="images to compare on")
    parser.add_argument("--rows", type=int, default=8, help="places that differ, at most")
    options = parser.parse_args()
    if not options.data.exists():
        sys.exit(f"{options.data} is missing: this benchmark needs real models and images, see --data")
    place = environment(options.env)
    for case in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            report(case, options, place.resolve(), Path(folder))


if __name__ == "__main__":
    main()
