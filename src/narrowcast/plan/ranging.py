"""From statistics and a target's rules to the encoding of tensors that share one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from narrowcast.calibrate.ranges import RangeSpec, choose_range
from narrowcast.calibrate.statistics import TensorStatistics
from narrowcast.plan.types import DTYPES, Encoding
from narrowcast.targets.schema import Target

__all__ = ["choose_encoding"]


def choose_encoding(
    statistics: Sequence[TensorStatistics],
    target: Target,
    dtype: str,
    method: str,
    percentile: float = 99.99,
    through: str | None = None,
) -> Encoding:
    """Choose the range.

    A histogram bin is wider than an int16 step, so 16 bits take the whole range. Except where a 16-bit function is a
    table with steps (2049 entries on ESP-DL): all that reads the tensor sees those 11 bits, so the range is chosen for
    them. The whole range of the convolutions before SiLU, which reach far into its flat side, would leave no more
    than 8 of them.

    Args:
        statistics: of each tensor.
        target: the chip's rules.
        dtype: ``"int8"`` or ``"int16"``.
        method: calibration method, one of :data:`narrowcast.calibrate.METHODS`.
        percentile: for the method of that name, in percent.
        through: name of the one function that reads the tensors, if there is one.
    """
    rules = target.activation
    power_of_two = rules.scale == "power-of-two"
    qmin, qmax = DTYPES[dtype]
    if rules.restricted_range and rules.symmetric:
        qmin = -qmax
    spec = RangeSpec(qmin, qmax, rules.symmetric, power_of_two, method if dtype == "int8" else "minmax", percentile)
    table = target.table16
    name = through.split()[0] if through else ""
    stepped = table is not None and name in target.tables and name not in table.exact
    if dtype == "int16" and table is not None and stepped and power_of_two:
        half = table.entries // 2
        scale, _ = choose_range(statistics, replace(spec, qmin=-half, qmax=half - 1, method="lp"), through)
        return Encoding(dtype, scale / table.step)
    return Encoding(dtype, *choose_range(statistics, spec, through))
