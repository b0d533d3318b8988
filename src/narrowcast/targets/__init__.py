"""One file per chip: what it can run, in which types, with which scales and rounding."""

from narrowcast.targets.files import load_target, target_names
from narrowcast.targets.placement import CheckRow, check_rows, place, subgraphs
from narrowcast.targets.schema import Target
from narrowcast.targets.support import Support, support

__all__ = [
    "CheckRow",
    "Support",
    "Target",
    "check_rows",
    "load_target",
    "place",
    "subgraphs",
    "support",
    "target_names",
]
