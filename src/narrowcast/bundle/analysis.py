"""Find where the accuracy of a bundle goes, on images that its calibration has not seen."""

from __future__ import annotations

from narrowcast.analyze import Analysis, Subject
from narrowcast.analyze import analyze as analyze_subject
from narrowcast.analyze.subject import telling, unseen
from narrowcast.bundle import Bundle
from narrowcast.bundle.manifest import FLOAT_FILE, PLAN_FILE
from narrowcast.calibrate import Images, ImageSet
from narrowcast.calibrate import images as find_images

__all__ = ["analyze", "subject_of", "telling_images"]


def analyze(
    bundle: Bundle,
    images: Images,
    *,
    limit: int = 8,
    graph: bool = True,
    layers: str = "products",
    parts: bool = True,
    wide: bool = False,
    threads: int = 0,
) -> Analysis:
    """Find where the accuracy of a bundle goes.

    Args:
        bundle: from :func:`narrowcast.quantize` or :func:`narrowcast.open_bundle`.
        images: as :func:`narrowcast.images` takes them; none needs a label, those of the calibration are left out.
        limit: how many of them, those first in which the float model finds something.
        graph, layers, parts, wide, threads: what is measured; see :func:`narrowcast.analyze.findings.analyze`.

    Raises:
        UserError: no images, or all of them were used for calibration.
    """
    chosen, notes = telling_images(bundle, images, limit)
    return analyze_subject(
        subject_of(bundle, chosen), graph=graph, layers=layers, parts=parts, wide=wide, threads=threads, notes=notes
    )


def subject_of(bundle: Bundle, images: ImageSet) -> Subject:
    """A bundle and images as the analysis takes them."""
    manifest = bundle.manifest
    return Subject(
        bundle.prepared.ir,
        bundle.plan,
        bundle.target,
        bundle.factors,
        meaning=manifest.meaning,
        inputs=list(images),
        input_size=(manifest.preprocess.height, manifest.preprocess.width),
        source=None if bundle.prepared is bundle.model else bundle.model.ir,
        bundle=str(bundle.path),
        command=_command(bundle),
    )


def _command(bundle: Bundle) -> tuple[str, ...]:
    """What quantized the bundle; with words to fill in where it was not the command line."""
    manifest = bundle.manifest
    if manifest.command[:2] == ("narrowcast", "quantize"):
        return manifest.command
    return ("narrowcast", "quantize", manifest.model["source"], "--images", "FOLDER", "--target", manifest.target)


def telling_images(bundle: Bundle, images: Images, limit: int) -> tuple[ImageSet, tuple[str, ...]]:
    """Images that calibration has not seen, and what a person should know about them.

    Raises:
        UserError: nothing remains.
    """
    manifest = bundle.manifest
    found = find_images(images, manifest.preprocess)
    left, excluded = unseen(found, manifest.calibration.get("images", ()))
    chosen = telling(left, limit, bundle.graph(FLOAT_FILE), manifest.meaning)
    note = f"{len(chosen)} images of {len(found)}; {excluded} left out because they were used for calibration"
    edited = (f"{PLAN_FILE} was edited by hand since the bundle was written",) if bundle.plan_edited else ()
    return chosen, (*edited, note, *chosen.notes)
