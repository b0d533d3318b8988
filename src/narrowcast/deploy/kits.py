"""The kits: what ``deploy`` can make of a bundle. Which of them a chip offers is said in its target file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from narrowcast.base.errors import UserError
from narrowcast.base.progress import phase
from narrowcast.bundle import Bundle, Manifest
from narrowcast.calibrate import Images, ImageSet
from narrowcast.calibrate import images as find_images
from narrowcast.chips.esp.kit import deploy_espdl, parser_notes
from narrowcast.chips.rdk.package import deploy_rdk
from narrowcast.chips.rdk.tros import deploy_tros
from narrowcast.deploy.delivery import Delivery

__all__ = ["KITS", "Kit", "chosen_kit", "deploy", "recorded_images"]

#: Images of a kit that hands over calibration data, at most: what the vendor's own examples use.
MOST_IMAGES = 50


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
    """

    bundle: Bundle
    out: Path
    images: ImageSet | None
    test_vectors: int
    force: bool
    runtime: str | None


@dataclass(frozen=True)
class Kit:
    """One kind of result.

    Attributes:
        make: writes it.
        suffix: of the file, or ``""`` for a folder.
        title: one line.
        takes_images: whether images have an influence on it.
    """

    make: Callable[[Request], Delivery]
    suffix: str
    title: str
    takes_images: bool = True


def _espdl(request: Request) -> Delivery:
    if request.test_vectors and request.images is None:
        raise UserError("test vectors need images", "add --images FOLDER")
    inputs = list(islice(request.images or (), request.test_vectors))
    if len(inputs) < request.test_vectors:
        raise UserError(f"{request.test_vectors} test vectors, {len(inputs)} images", "give more --images")
    paths = deploy_espdl(request.bundle, request.out, images=inputs, runtime=request.runtime, force=request.force)
    path, manifest = paths[0], request.bundle.manifest
    notes = (
        *parser_notes(manifest.meaning, {out.name: out.chip_dtype for out in manifest.outputs}),
        *_parts_notes(manifest),
    )
    if request.bundle.factors:
        notes = (
            *notes,
            "outputs carry a factor a channel (metadata output_factors): only a decode that divides by it fits",
        )
    facts = {"bytes": path.stat().st_size, "test vectors": len(inputs)}
    return Delivery(path, tuple(str(each) for each in paths[1:]), (f"narrowcast inspect {path}",), notes, facts)


def _parts_notes(manifest: Manifest) -> tuple[str, ...]:
    """That a file holds the parts of outputs, for a reader that does not join them."""
    join = manifest.join
    if not join:
        return ()
    kinds = ", ".join(dict.fromkeys(step["op"] for step in join["steps"]))
    return (
        f"the file gives {', '.join(join['parts'])}, the parts of {', '.join(join['joined'])}: your program joins "
        f"them in float, by {kinds} (manifest.json of the bundle lists the steps under join)",
    )


def _rdk(request: Request) -> Delivery:
    _no_vectors(request)
    images = request.images if request.images is not None else recorded_images(request.bundle.manifest)
    return deploy_rdk(request.bundle, request.out, images, force=request.force)


def _tros(request: Request) -> Delivery:
    _no_vectors(request)
    return deploy_tros(request.bundle, request.out, force=request.force)


def _no_vectors(request: Request) -> None:
    if request.test_vectors:
        raise UserError("this kit carries no test vectors", "leave --test-vectors out")


#: Every kit by its name in target files.
KITS: dict[str, Kit] = {
    "espdl": Kit(_espdl, ".espdl", "model file for Espressif's ESP-DL"),
    "rdk-x5": Kit(_rdk, "", "package for the vendor's compiler and the board"),
    "tros": Kit(_tros, "", "settings for the vendor's robot software", takes_images=False),
}


def chosen_kit(bundle: Bundle, kit: str | None) -> str:
    """Check a kit's name against what the bundle's chip offers.

    Args:
        bundle: to hand over.
        kit: name, or ``None`` for the chip's usual one.

    Raises:
        UserError: an unknown kit, or one that the chip does not offer.
    """
    target = bundle.target
    offered = [name for name in target.kits if name in KITS]
    if not offered:
        raise UserError(f"there is no kit for {target.name}", "the bundle's ONNX files run as they are")
    if kit is None:
        return offered[0]
    if kit not in KITS:
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
) -> Delivery:
    """Make what a board needs.

    Args:
        bundle: from :func:`narrowcast.quantize` or :func:`narrowcast.open_bundle`.
        kit: one of :data:`KITS` that the bundle's chip offers; the chip's usual one by default.
        out: file or folder to write; by default named after the bundle, in the current folder.
        images: calibration images for the vendor's tool, or those of the test vectors; by default those that the
            bundle was calibrated on.
        limit: use at most this many of them.
        test_vectors: how many inputs with their results to hand over, where the kit can.
        force: replace an earlier result.
        runtime: version of the chip's runtime; the newest known by default.

    Returns:
        What was written, and what to do next.

    Raises:
        UserError: an unknown kit or one that the chip does not offer, a wrong plan, a result that exists, what the kit
            refuses.
    """
    name = chosen_kit(bundle, kit)
    bundle.check_plan()
    maker = KITS[name]
    path = Path(out) if out is not None else Path(f"{bundle.path.resolve().name}-{name}{maker.suffix}")
    found = None
    if images is not None:
        most = limit or test_vectors or MOST_IMAGES
        found = find_images(images, bundle.manifest.preprocess).spread(most).usable()
    made = maker.make(Request(bundle, path, found, test_vectors, force, runtime))
    return made if found is None else replace(made, notes=(*made.notes, *found.notes))
