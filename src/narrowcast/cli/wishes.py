"""Settings of ``quantize`` that are carried out around it: wide types everywhere, and nodes removed at the ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from narrowcast.base.errors import UserError

if TYPE_CHECKING:
    from narrowcast.bundle import Bundle
    from narrowcast.chips import Target
    from narrowcast.config import QuantizeSettings
    from narrowcast.graph import Model
    from narrowcast.plan import Pins

__all__ = ["apply_removals", "check_chip", "wide_pins"]


def check_chip(settings: QuantizeSettings, chip: Target) -> None:
    """Compare the settings with what the chip can.

    Raises:
        UserError: zero points, or 16 bits, on a chip without them; corrected biases with an effort that corrects none.
    """
    if settings.asymmetric and chip.activation.symmetric:
        raise UserError(
            f"asymmetric: activations of {chip.name} have no zero point, as far as its vendor says", "remove it"
        )
    if settings.bias_correction and settings.effort == "fast":
        raise UserError("bias_correction: the effort 'fast' corrects nothing", "use --effort standard, which does")
    if settings.all_int16 and "int16" not in chip.activation.types:
        raise UserError(f"all_int16: {chip.name} has no 16-bit activations", "remove it")


def wide_pins(settings: QuantizeSettings, model: Model, chip: Target) -> Pins:
    """``all_int16`` as pins of every node that the chip runs with 16 bits without being asked for the node."""
    from narrowcast.chips.placement import place
    from narrowcast.plan import Pins

    if not settings.all_int16:
        return Pins()
    verdicts = place(model.ir.graph, chip, settings.runtime)
    return Pins({name: "int16" for name, verdict in verdicts.items() if "int16" in verdict.types})


def apply_removals(settings: QuantizeSettings, bundle: Bundle) -> Bundle:
    """Take the nodes off the ends that ``remove`` and ``remove_nodes`` name; kinds that are not there are no mistake.

    Raises:
        UserError: ``remove_nodes`` names no node at an end.
    """
    from narrowcast.bundle.modify import modify

    if not settings.remove and not settings.remove_nodes:
        return bundle
    return modify(
        bundle, out=bundle.path, remove=settings.remove, nodes=settings.remove_nodes, force=True, lenient=True
    )
