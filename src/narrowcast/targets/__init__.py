"""One file per chip: what it can run, in which types, with which scales and rounding."""

from narrowcast.targets.files import load_target, read_target, target_names, write_target
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
    "read_target",
    "subgraphs",
    "support",
    "target_names",
    "write_target",
]
