"""The kits: what a vendor's folder adds to a bundle, to its files and to what ``check`` says.

Which kits a chip has is said in its target file; nothing here names one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from narrowcast.base.errors import UserError
from narrowcast.base.progress import phase
from narrowcast.bundle.contents import Extra
from narrowcast.bundle.manifest import Manifest
from narrowcast.bundle.store import Bundle
from narrowcast.calibrate import Images, ImageSet
from narrowcast.calibrate import images as find_images
from narrowcast.chips import RuntimeRow, Target
from narrowcast.chips.vendors import offers
from narrowcast.engine.qdq import Factors
from narrowcast.graph import Model
from narrowcast.plan import Plan
from narrowcast.tasks import Task

__all__ = [
    "Delivery", "Description", "Kit", "Origin", "Ranges", "Request", "Table", "chip_files", "chosen_kit", "deploy",
    "kits", "kits_of", "of_a_vendor", "recorded_images",
]  # fmt: skip

#: Images of a kit that hands over calibration data, at most: what the vendor's own examples use.
MOST_IMAGES = 50
#: Whose ranges and weights a vendor's tool takes: the plan's, or those that it finds itself.
Ranges = Literal["plan", "vendor"]


@dataclass(frozen=True)
class Origin:
    """What a chip's file may say of where it comes from.

    Attributes:
        source: name and hash of the float model, as in a manifest's ``model``.
        meaning: of the outputs, by which a vendor's own decode finds them.
        factors: a person asked for outputs with a scale a channel.
    """

    source: Mapping[str, str]
    meaning: Task
    factors: bool = False

    @classmethod
    def of(cls, manifest: Manifest) -> Origin:
        """That of a bundle."""
        return cls(manifest.model, manifest.meaning, bool(manifest.calibration.get("output_factors", False)))


@dataclass(frozen=True)
class Request:
    """What a kit is asked for.

    Attributes:
        bundle: to hand over.
        out: file or folder to write.
        images: the person's images, if given.
        test_vectors: how many inputs with their results to hand over.
        force: replace an earlier result.
        runtime: version of the chip's runtime.
        ranges: whose the vendor's tool takes.
    """

    bundle: Bundle
    out: Path
    images: ImageSet | None
    test_vectors: int
    force: bool
    runtime: str | None
    ranges: Ranges = "plan"


@dataclass(frozen=True)
class Delivery:
    """What was written.

    Attributes:
        path: file or folder.
        files: names inside the folder, sorted; empty for a single file.
        steps: what to do next, in order: commands or short sentences.
        notes: what a person should know.
        facts: numbers and names by what they are, JSON-ready.
    """

    path: Path
    files: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Rows of text; the first ``left`` columns are words, the others numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


@dataclass(frozen=True)
class Description:
    """What a person wants to know of a vendor's file.

    Attributes:
        lines: about the whole.
        values: inputs and outputs.
        operators: how often each is there.
        nodes: every node.
        data: all of it, JSON-ready.
    """

    lines: tuple[str, ...]
    values: Table
    operators: Table
    nodes: Table
    data: dict[str, Any]


@dataclass(frozen=True)
class Kit:
    """What a chip needs from its vendor's folder. Everything but ``deploy`` may be missing.

    Attributes:
        name: as target files list it under ``kits``.
        title: one line.
        deploy: writes what the board needs.
        suffix: of the file that it writes, or ``""`` for a folder.
        files: makes the chip's files inside a bundle, from where the model comes from and the version of the runtime.
        check: what the version of the runtime would refuse or compute wrongly, beyond what the target file says.
        rehearse: makes the chip's file of a model and throws it away; raises ``UserError`` where that cannot be done.
        describe: what is in a file that ends in ``suffix``, whoever wrote it.
        ranges: whose ranges it can hand over.
        compile: runs the vendor's compiler in what was written: folder, folder of the tools, level of optimization;
            what the compiler says.
    """

    name: str
    title: str
    deploy: Callable[[Request], Delivery]
    suffix: str = ""
    files: Callable[[Origin, str | None], Extra] | None = None
    check: Callable[[ir.Model, Target, str | None], list[RuntimeRow]] | None = None
    rehearse: Callable[[Model, Plan, Target, str | None], None] | None = None
    describe: Callable[[Path], Description] | None = None
    ranges: tuple[Ranges, ...] = ("plan",)
    compile: Callable[[Path, Path | None, str], dict[str, Any]] | None = None


@cache
def kits() -> dict[str, Kit]:
    """Every kit by its name."""
    return {kit.name: kit for kit in offers("KITS")}


def kits_of(target: Target) -> tuple[Kit, ...]:
    """The kits of a chip, the usual one first."""
    return tuple(kits()[name] for name in target.kits if name in kits())


def chip_files(target: Target, origin: Origin, runtime: str | None) -> Extra | None:
    """What makes the chip's own files for a bundle; ``None`` for a chip that takes none.

    Args:
        target: the chip.
        origin: of the model.
        runtime: version of the runtime that will read them; the newest known by default.
    """
    makers = [kit.files(origin, runtime) for kit in kits_of(target) if kit.files is not None]
    if not makers:
        return None

    def make(model: Model, plan: Plan, chip: Target, factors: Factors) -> Mapping[str, bytes]:
        return {name: data for maker in makers for name, data in maker(model, plan, chip, factors).items()}

    return make


def of_a_vendor(names: Iterable[str]) -> tuple[str, ...]:
    """Those of some file names that end as a kit's file does."""
    suffixes = tuple(kit.suffix for kit in kits().values() if kit.suffix)
    return tuple(name for name in names if name.endswith(suffixes))


def chosen_kit(bundle: Bundle, kit: str | None) -> str:
    """Check a kit's name against what the bundle's chip offers.

    Args:
        bundle: to hand over.
        kit: name, or ``None`` for the chip's usual one.

    Raises:
        UserError: an unknown kit, or one that the chip does not offer.
    """
    target = bundle.target
    offered = [each.name for each in kits_of(target)]
    if not offered:
        raise UserError(f"there is no kit for {target.name}", "the bundle's ONNX files run as they are")
    if kit is None:
        return offered[0]
    if kit not in kits():
        raise UserError(f"there is no kit named {kit!r}", f"{target.name} offers {', '.join(offered)}")
    if kit not in offered:
        raise UserError(
            f"the kit {kit} is not for {target.name}", f"use {', '.join(offered)}, or quantize for another chip"
        )
    return kit


def recorded_images(manifest: Manifest) -> ImageSet:
    """The images that the bundle was calibrated on, where its command names them and they are still there.

    Raises:
        UserError: they are not.
    """
    command = list(manifest.command)
    known = set(manifest.calibration["images"])
    for index, entry in enumerate(command):
        value = command[index + 1] if entry == "--images" and index + 1 < len(command) else ""
        value = entry.removeprefix("--images=") if entry.startswith("--images=") else value
        if not value or not Path(value).exists():
            continue
        found = find_images(value, manifest.preprocess)
        same = [number for number, digest in enumerate(found.hashes()) if digest in known]
        if same:
            return found.subset(same[:MOST_IMAGES])
    raise UserError("the images of the bundle's calibration are not at hand", "add --images FOLDER")


@phase("deploy")
def deploy(
    bundle: Bundle,
    kit: str | None = None,
    out: str | Path | None = None,
    *,
    images: Images | None = None,
    limit: int | None = None,
    test_vectors: int = 0,
    force: bool = False,
    runtime: str | None = None,
    ranges: Ranges = "plan",
) -> Delivery:
    """Make what a board needs.

    Args:
        bundle: from :func:`narrowcast.quantize` or :func:`narrowcast.open_bundle`.
        kit: one that the bundle's chip offers; the chip's usual one by default.
        out: file or folder to write; by default named after the bundle, in the current folder.
        images: calibration images for the vendor's tool, or those of the test vectors; by default those that the
            bundle was calibrated on.
        limit: use at most this many of them.
        test_vectors: how many inputs with their results to hand over, where the kit can.
        force: replace an earlier result.
        runtime: version of the chip's runtime; the newest known by default.
        ranges: whose ranges and weights the vendor's tool takes: ``"plan"``, or ``"vendor"``, which it finds itself.

    Returns:
        What was written, and what to do next.

    Raises:
        UserError: an unknown kit or one that the chip does not offer, a wrong plan, a result that exists, what the kit
            refuses.
    """
    name = chosen_kit(bundle, kit)
    bundle.check_plan()
    maker = kits()[name]
    if ranges not in maker.ranges:
        raise UserError(f"the kit {name} knows no ranges {ranges!r}", f"it has those of {' and '.join(maker.ranges)}")
    path = Path(out) if out is not None else Path(f"{bundle.path.resolve().name}-{name}{maker.suffix}")
    found = None
    if images is not None:
        most = limit or test_vectors or MOST_IMAGES
        found = find_images(images, bundle.manifest.preprocess).spread(most).usable()
    made = maker.deploy(Request(bundle, path, found, test_vectors, force, runtime, ranges))
    return made if found is None else replace(made, notes=(*made.notes, *found.notes))


def compiler_of(kit: str) -> Callable[[Path, Path | None, str], dict[str, Any]]:
    """What runs the vendor's compiler on what a kit wrote.

    Raises:
        UserError: a kit that is not compiled.
    """
    compiler = kits()[kit].compile
    if compiler is None:
        raise UserError(f"the kit {kit} has nothing to compile", "leave --compile out")
    return compiler


def compiled(made: Delivery, kit: str, toolchain: Path | None = None, level: str = "O3") -> Delivery:
    """Run the vendor's compiler, as its user installed it, in what :func:`deploy` made.

    Args:
        made: of that kit.
        kit: its name.
        toolchain: environment that holds the vendor's tools; on the path by default.
        level: of optimization, ``"O0"`` to ``"O3"``.

    Raises:
        UserError: a kit that is not compiled, no compiler, or one that makes no model.
    """
    said = compiler_of(kit)(made.path, toolchain, level)
    return replace(made, steps=made.steps[1:], facts={**made.facts, **said})
