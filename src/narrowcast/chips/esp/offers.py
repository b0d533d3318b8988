"""What the folder adds to the rooms that ask; see :mod:`narrowcast.chips.vendors`."""

__all__: list[str] = []
