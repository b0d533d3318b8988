"""What the folder adds to the rooms that ask; see :mod:`narrowcast.chips.vendors`."""

from narrowcast.chips.rdk.calibration import hb_search
from narrowcast.chips.rdk.hb_mapper import DIALECT

__all__ = ["DIALECTS", "SEARCHES"]

DIALECTS = (DIALECT,)
SEARCHES = (("hb-mapper", hb_search),)
