"""What the folder adds to the rooms that ask; see :mod:`narrowcast.chips.vendors`."""

from __future__ import annotations

from narrowcast.base.errors import UserError
from narrowcast.bundle.kits import Delivery, Kit, Ranges, Request, recorded_images
from narrowcast.chips import Target
from narrowcast.chips.rdk.calibration import hb_search
from narrowcast.chips.rdk.compiling import compile_package
from narrowcast.chips.rdk.delivery import has_markers, without_markers
from narrowcast.chips.rdk.hb_mapper import DIALECT
from narrowcast.chips.rdk.opset import to_opset_11
from narrowcast.chips.rdk.package import deploy_rdk
from narrowcast.chips.rdk.quantized import is_quantized, to_standard
from narrowcast.chips.rdk.tros import deploy_tros
from narrowcast.graph import Model
from narrowcast.ops.units import inline_units
from narrowcast.plan import Plan

__all__ = ["DIALECTS", "KITS", "READERS", "SEARCHES"]


def _rdk(request: Request) -> Delivery:
    _no_vectors(request)
    images = request.images if request.images is not None else recorded_images(request.bundle.manifest)
    return deploy_rdk(request.bundle, request.out, images, force=request.force, ranges=request.ranges)


def _tros(request: Request) -> Delivery:
    _no_vectors(request)
    return deploy_tros(request.bundle, request.out, force=request.force, ranges=request.ranges)


def _no_vectors(request: Request) -> None:
    if request.test_vectors:
        raise UserError("this kit carries no test vectors", "leave --test-vectors out")


def _rehearse(model: Model, plan: Plan, target: Target, runtime: str | None) -> None:
    to_opset_11(inline_units(model.to_proto()))


_RANGES: tuple[Ranges, ...] = ("plan", "vendor")
DIALECTS = (DIALECT,)
KITS = (
    Kit(
        "rdk-x5",
        "package for the vendor's compiler and the board",
        _rdk,
        rehearse=_rehearse,
        ranges=_RANGES,
        compile=compile_package,
    ),
    Kit("tros", "settings for the vendor's robot software", _tros, ranges=_RANGES),
)
READERS = (
    (is_quantized, to_standard),
    # the kit's model, and hb_mapper's calibrated one: the float graph inside
    (has_markers, lambda proto, source: without_markers(proto)),
)
SEARCHES = (("hb-mapper", hb_search),)
