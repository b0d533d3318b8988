"""What a target file may say, and how one is found and read.

Frozen, validated and versioned: an old version is never edited. A chip is data: ``chips/<name>.yaml``. Algorithms read
these rules and never ask for a chip's name."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from narrowcast.base.errors import UserError, closest
from narrowcast.base.reading import is_plain_name, parse_json, parse_yaml, read_text, reading, typed

NodeType = Literal["int8", "int16", "float32"]
Rounding = Literal["half-even", "half-up", "half-away"]


class _Rules(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Runtime(_Rules):
    """The software that runs the file on the chip."""

    name: str
    versions: tuple[str, ...] = Field(min_length=1, description="known versions, oldest first")
    opsets: tuple[int, ...] = Field(default=(), description="ONNX opsets that the vendor's compiler takes; () any")
    most_outputs: int | None = Field(default=None, description="outputs of a model at most")


class Activation(_Rules):
    """How activations are represented; always per tensor."""

    types: tuple[Literal["int8", "int16"], ...] = ("int8", "int16")
    symmetric: bool = Field(description="zero point 0")
    scale: Literal["free", "power-of-two"]
    restricted_range: bool = Field(description="-127..127 instead of -128..127")


class Weight(_Rules):
    """How weights are represented; always symmetric."""

    per_channel: dict[str, int] = Field(
        default_factory=dict, description="op type to the axis of its output channels; other ops are per tensor"
    )
    scale: Literal["free", "power-of-two"]
    restricted_range: bool = False
    int16_nodes: Literal["int8", "int16"] = Field(description="type of the weights of a node pinned to int16")

    def type_for(self, node_type: str) -> str:
        """Type of the weights of a node of that type."""
        return self.int16_nodes if node_type == "int16" else "int8"


class Bias(_Rules):
    """Biases are added to the accumulator; scale = input scale * weight scale."""

    bits: int = Field(ge=8, le=64, description="usable bits; larger values saturate")
    int16_bits: int | None = Field(default=None, ge=8, le=64, description="the same for 16-bit nodes, where it differs")
    storage: Literal["int32", "int64"] = "int32"

    def bits_for(self, node_type: str) -> int:
        """Usable bits of the bias of a node of that type."""
        return self.int16_bits if node_type == "int16" and self.int16_bits is not None else self.bits

    def largest_for(self, node_type: str) -> int:
        """Largest magnitude that a plan gives a bias; wide registers keep half of their range for the products."""
        bits = self.bits_for(node_type)
        return int(2 ** (bits - 2) if bits >= 32 else 2 ** (bits - 1) - 1)


class Accumulator(_Rules):
    """The register that sums products."""

    bits: int = Field(ge=16, le=64)
    int16_bits: int | None = Field(default=None, ge=16, le=64, description="of 16-bit nodes, where it differs")

    def bits_for(self, node_type: str) -> int:
        """Width for a node of that type."""
        return self.int16_bits if node_type == "int16" and self.int16_bits is not None else self.bits


_Shift = Annotated[int, Field(ge=-64, le=64)]


class Requantize(_Rules):
    """From accumulator to output."""

    method: Literal["shift", "multiplier", "fixed-point"] = Field(
        description="a power of two; one float32 factor; a multiplier of 15 bits between two shifts"
    )
    rounding: Rounding
    shifts: tuple[_Shift, _Shift] | None = Field(
        default=None, description="smallest and largest log2 of output scale / (input scale * weight scale)"
    )

    @property
    def is_fixed_point(self) -> bool:
        """Whether a multiplier stands between two shifts (:mod:`narrowcast.engine.integer.fixed`)."""
        return self.method == "fixed-point"

    @property
    def shift_range(self) -> tuple[int, int]:
        """The shifts; without a word on them those that every chip of the method has."""
        return self.shifts or ((0, 31) if self.method == "shift" else (-31, 31))


class Table16(_Rules):
    """16-bit unary functions as a table with nearest-neighbour lookup."""

    entries: int = Field(gt=1, le=1 << 17)
    step: int = Field(gt=0)
    rounding: Rounding
    exact: tuple[str, ...] = Field(default=(), description="functions that have a 16-bit kernel of their own")


class Softmax(_Rules):
    """Softmax rules."""

    output: Literal["float32", "quantized"] = Field(description="what the kernel writes before quantization")


class Outputs(_Rules):
    """How graph outputs leave."""

    type: Literal["activation", "accumulator", "float32"] = Field(
        description="activation: in the activation type; accumulator: int32 with a scale per channel where the last op "
        "sums products; float32: not quantized after the last op"
    )
    smallest_scale: float = Field(default=0.0, description="of an accumulator that leaves; finer ones are made coarser")
    factors: bool = Field(
        default=True, description="what reads the outputs of a chip can take a scale a channel; else only on request"
    )


class InputFormat(_Rules):
    """A format in which images may arrive."""

    name: Literal["rgb", "bgr", "gray", "nv12", "yuv444", "featuremap"]
    ranges: tuple[Literal["full", "studio"], ...] = ("full",)


class Limits(_Rules):
    """Bounds of a rule; everything not given is unlimited. Sizes are (smallest, largest)."""

    rank: tuple[int, int] | None = None
    kernel: tuple[int, int] | None = Field(default=None, description="each kernel side")
    kernel_area: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    dilation: tuple[int, int] | None = None
    pad: tuple[int, int] | None = None
    channels: tuple[int, int] | None = Field(default=None, description="channels of input and output")
    group_channels: tuple[int, int] | None = Field(default=None, description="channels of one group")
    weight_size: int | None = Field(default=None, description="input channels of a group * kernel height * width")
    groups: Literal["one", "one-or-channels"] | None = None
    modes: tuple[str, ...] | None = Field(default=None, description="values of the attribute 'mode'")
    axes: tuple[int, ...] | None = Field(default=None, description="values of the attribute 'axis', from the front")
    matrix_size: int | None = Field(default=None, description="largest M and K of a MatMul")
    dims: tuple[int, int] | None = Field(default=None, description="each axis of input and output")
    constant_operand: Literal["required", "scalar", "forbidden"] | None = Field(
        default=None, description="constant operands; scalar: one number"
    )
    power_of_two_factor: bool | None = Field(default=None, description="Resize enlarges by powers of two")
    divisible_split: bool | None = Field(default=None, description="the length is a multiple of every part of a Split")
    power_of_two_dilation: bool | None = None
    strides: tuple[int, ...] | None = Field(default=None, description="allowed strides")
    sides: tuple[int, int] | None = Field(default=None, description="height and width of the input, each")
    plane: tuple[int, int] | None = Field(default=None, description="height * width of the input")
    elements: int | None = Field(default=None, description="largest channels * height * width, batch 1")
    aligned_elements: int | None = Field(
        default=None,
        description="as 'elements', for the smaller of two paddings: width to 8 and channels to 4, or channels to 32",
    )
    reduced: Literal["one", "plane", "one-or-plane"] | None = Field(
        default=None, description="axes of a reduction: one, height and width, or either; the axis is kept"
    )
    padded_plane: bool | None = Field(default=None, description="Pad pads height and width only")
    single_matrix: bool | None = Field(default=None, description="the second operand of a MatMul is one matrix")
    block: tuple[int, int] | None = Field(default=None, description="blocksize of DepthToSpace and SpaceToDepth")
    row: int | None = Field(
        default=None, description="least numbers in a row of an elementwise operator, once its equal axes are merged"
    )
    whole_windows: bool | None = Field(default=None, description="every window of an average counts its whole kernel")
    floor_grid: bool | None = Field(
        default=None, description="nearest Resize reads floor(i / scale), linear a half-pixel or align-corners grid"
    )


class OpRule(_Rules):
    """Where an operator runs. The first rule whose operator and limits fit wins."""

    ops: tuple[str, ...]
    unit: str
    types: tuple[NodeType, ...]
    limits: Limits = Limits()
    since: str | None = Field(default=None, description="runtime version from which on this holds")
    note: str = Field(default="", description="reason shown to the person")
    remedy: str = ""
    inferred: bool = Field(default=False, description="deduced, not documented by the vendor")
    on_request: bool = Field(default=False, description="holds only for nodes that a person pins to one of the types")
    tail: str = Field(
        default="", description="operator that the tool adds on the last unit where nothing of the first unit follows"
    )


class Fallback(_Rules):
    """Where an operator runs that no rule takes."""

    unit: str
    types: tuple[NodeType, ...] = ("float32",)


class Target(_Rules):
    """One chip (or runtime) and its rules."""

    schema_version: Literal[1]
    name: str
    title: str
    chip: str = ""
    runtime: Runtime
    units: tuple[str, ...] = Field(
        min_length=1, description="fastest first; the last one runs float nodes if there are any"
    )
    float_nodes: bool = Field(description="a node may be left in float on the last unit")
    calibration: str = Field(description="what the method 'auto' means here; measured, see docs/calibration.md")
    activation: Activation
    weight: Weight
    bias: Bias
    accumulator: Accumulator
    quantize_rounding: Rounding
    requantize: Requantize
    table_rounding: Rounding | None = Field(default=None, description="of tables; None: as requantize rounds")
    uniform_types: bool = Field(description="all operands of a node have the node's type")
    fusions: tuple[tuple[str, ...], ...] = ()
    tables: tuple[str, ...] = Field(default=(), description="unary operators computed by table")
    table16: Table16 | None = None
    int16_products: Literal["exact", "float32"] = Field(
        default="float32", description="what a product of two 16-bit activations passes through before it is rounded"
    )
    passive: tuple[str, ...] = Field(description="operators that move bytes: the output has the input's encoding")
    shared: dict[str, Literal["output", "free"]] = Field(
        default_factory=dict, description="whether all inputs must be read in the output's encoding"
    )
    adopt: bool = Field(description="a producer read by nobody else may write in that encoding directly")
    constant_operands: tuple[str, ...] = Field(description="operators whose constant operands are quantized")
    softmax: Softmax
    outputs: Outputs
    inputs: tuple[InputFormat, ...]
    kits: tuple[str, ...] = Field(default=(), description="what 'deploy' can make, the usual one first")
    ops: tuple[OpRule, ...]
    unsupported: tuple[str, ...] = Field(default=(), description="operators that no unit runs")
    fallback: Fallback | None = Field(description="null: an operator without a rule is an error")


_FOLDER = Path(__file__).parent


def target_names() -> tuple[str, ...]:
    """Names of the targets that come with the package, sorted."""
    return tuple(sorted(file.stem for file in _FOLDER.glob("*.yaml")))


@cache
def load_target(name: str) -> Target:
    """Read a target.

    Args:
        name: of a target that comes with the package, or the path of a ``.yaml`` file.

    Raises:
        UserError: unknown name, or a file that breaks the schema.
    """
    if name in target_names():
        return _validated(_FOLDER / f"{name}.yaml")
    if name.endswith((".yaml", ".yml")):
        return _validated(Path(name))
    near = closest(name, target_names(), 0.4)
    hint = f"did you mean {near}? " if near else ""
    raise UserError(f"there is no target named {name!r}", f"{hint}known are {', '.join(target_names())}")


def read_target(file: Path) -> Target:
    """Read a file that :func:`write_target` made.

    Raises:
        UserError: a file that cannot be read or breaks the schema.
    """
    where, remedy = f"target file {file}", "quantize again, or see docs/targets.md for the schema"
    return typed(Target, parse_json(read_text(file, remedy), where, remedy), where, remedy)


def write_target(target: Target) -> str:
    """The target as JSON (YAML would take 0.1 s to read back), whole: nothing is left to a file that it extends."""
    return target.model_dump_json(indent=1, exclude_defaults=True) + "\n"


def _validated(file: Path) -> Target:
    return typed(Target, _read(file, ()), file, "see docs/targets.md for the schema")


def _read(file: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """A file's entries on top of those of the file it extends."""
    data, _ = parse_yaml(read_text(file, "check the path"), f"target file {file}")
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str) or not is_plain_name(base):
        raise UserError(f"{file} extends {base!r}, which is no name", f"known are {', '.join(target_names())}")
    parent = file.parent / f"{base}.yaml"
    if not parent.exists():
        parent = _FOLDER / f"{base}.yaml"
    if not parent.exists() or parent in seen:
        raise UserError(f"{file} extends {base!r}, which is not there", f"known are {', '.join(target_names())}")
    below = _read(parent, (*seen, file))
    with reading(f"target file {file}", "see docs/targets.md for the schema"):
        return _merge(below, data)


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Tables are merged, everything else (an empty table too) is replaced.

    ``first_ops`` come before the base's own ``ops``, so that they win.
    """
    merged = dict(base)
    for key, value in top.items():
        if key == "first_ops":
            merged["ops"] = [*value, *base.get("ops", [])]
        elif value and isinstance(value, dict) and isinstance(base.get(key), dict):
            merged[key] = _merge(base[key], value)
        else:
            merged[key] = value
    return merged
