"""How large an image may be: a small file can claim to be a picture that no memory holds."""

from __future__ import annotations

import os

__all__ = ["MOST_PIXELS", "claimed_pixels"]

_SETTING = "OPENCV_IO_MAX_IMAGE_PIXELS"
# OpenCV reads its limit once, when it is loaded; a person's setting of it counts
_said = os.environ.setdefault(_SETTING, "200000000")
#: Pixels of an image at most; the largest sensors of telephones have as many.
MOST_PIXELS = int(_said) if _said.isdigit() else 200_000_000


def claimed_pixels(data: bytes) -> int:
    """Pixels that a PNG file says it has, 0 for other files: OpenCV may have been loaded before the limit was set.

    Args:
        data: the file, or its first 24 bytes.
    """
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
        return 0
    return int.from_bytes(data[16:20], "big") * int.from_bytes(data[20:24], "big")
