"""Reading flatbuffer tables by slot, with bounds checked."""

from __future__ import annotations

from typing import Any

import numpy as np
from flatbuffers import number_types
from flatbuffers.table import Table
from numpy.typing import NDArray

__all__ = ["Reading", "root"]


class Reading:
    """One table of a buffer. An absent field gives the default.

    Args:
        buffer: the whole flatbuffer.
        position: of the table.
    """

    def __init__(self, buffer: bytes, position: int) -> None:
        if not 4 <= position <= len(buffer) - 4:
            raise ValueError("an offset leaves the file")
        self.table = Table(buffer, position)

    @property
    def fields(self) -> int:
        """How many slots the table's writer knew."""
        vtable = self.table.Pos - self.table.Get(number_types.SOffsetTFlags, self.table.Pos)
        return int(self.table.Get(number_types.VOffsetTFlags, vtable)) // 2 - 2

    def has(self, slot: int) -> bool:
        """Whether the field is there."""
        return self._offset(slot) != 0

    def _offset(self, slot: int) -> int:
        return int(self.table.Offset(4 + 2 * slot))

    def integer(self, slot: int, flags: Any = number_types.Int32Flags, default: int = 0) -> int:
        """An integer of the given width."""
        return int(self._number(slot, flags, default))

    def real(self, slot: int, default: float = 0.0) -> float:
        """A float32."""
        return float(self._number(slot, number_types.Float32Flags, default))

    def _number(self, slot: int, flags: Any, default: float) -> float:
        offset = self._offset(slot)
        return self.table.Get(flags, offset + self.table.Pos) if offset else default

    def text(self, slot: int, default: str = "") -> str:
        """A string."""
        offset = self._offset(slot)
        return self.table.String(offset + self.table.Pos).decode() if offset else default

    def child(self, slot: int) -> Reading | None:
        """A table."""
        offset = self._offset(slot)
        return Reading(self.table.Bytes, self.table.Indirect(offset + self.table.Pos)) if offset else None

    def children(self, slot: int) -> list[Reading]:
        """A vector of tables."""
        start, count = self._vector(slot, 4)
        return [Reading(self.table.Bytes, self.table.Indirect(start + 4 * index)) for index in range(count)]

    def texts(self, slot: int) -> tuple[str, ...]:
        """A vector of strings."""
        start, count = self._vector(slot, 4)
        return tuple(self.table.String(start + 4 * index).decode() for index in range(count))

    def array(self, slot: int, dtype: str, width: int = 1) -> NDArray[Any] | None:
        """A vector of numbers, or of structs of ``width`` numbers; ``None`` when absent."""
        if not self.has(slot):
            return None
        start, count = self._vector(slot, np.dtype(dtype).itemsize * width)
        return np.frombuffer(self.table.Bytes, dtype, count * width, start)

    def _vector(self, slot: int, item_bytes: int) -> tuple[int, int]:
        offset = self._offset(slot)
        if not offset:
            return 0, 0
        start, count = int(self.table.Vector(offset)), int(self.table.VectorLen(offset))
        if not 0 <= start <= len(self.table.Bytes) - count * item_bytes:
            raise ValueError("a vector leaves the file")
        return start, count


def root(buffer: bytes) -> Reading:
    """The root table of a flatbuffer."""
    return Reading(buffer, int.from_bytes(buffer[:4], "little"))
