"""A slow, independent reference for the integers of the chip, in plain numpy.

Written from the rules, not from the lowering: it shares nothing with :mod:`narrowcast.engine.integer` but the plan's
and the target's types. Accumulators are int64 (sums of products go through float64 BLAS, which is exact below 2^53
and asserted), shifts are shifts, tables are looked up entry by entry.
"""

from narrowcast.engine.reference.walk import run_reference

__all__ = ["run_reference"]
