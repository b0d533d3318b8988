"""One file per chip: what it can run, in which types, with which scales and rounding."""

from narrowcast.chips.placement import CheckRow, RuntimeRow, check_rows, place, subgraphs
from narrowcast.chips.schema import Target, load_target, read_target, target_names, write_target
from narrowcast.chips.support import Support, support

__all__ = [
    "CheckRow",
    "RuntimeRow",
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
