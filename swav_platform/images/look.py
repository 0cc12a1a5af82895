"""Whether an image shows anything: nearly black, nearly white, of one colour, or most of its range unused."""

from __future__ import annotations

import enum

import numpy as np

_SIDE = 16  # rows and columns that are looked at, at least
_NEAR = 16  # levels: a sixteenth of the range
_SAME = 4  # levels that a colour may differ by, because JPEG changes them


class Look(enum.IntFlag):
    """What is odd about an image; 0 for an ordinary one. Stored as uint8 in a row. At most one of the first three holds."""

    BLACK = 1
    WHITE = 2
    CONSTANT = 4
    NARROW = 8

    @property
    def blank(self) -> bool:
        return bool(self & (Look.BLACK | Look.WHITE | Look.CONSTANT))

    @property
    def word(self) -> str:
        """The lower-case words of metrics and reports."""
        return " ".join(str(each.name).lower() for each in self)


ORDINARY = Look(0)

WORDS = {
    Look.BLACK: "are nearly black",
    Look.WHITE: "are nearly white",
    Look.CONSTANT: "have one colour",
    Look.NARROW: "have 16 bits or more and use less than a sixteenth of that range",
}
"""What is said about several images."""


def look_of(pixels: np.ndarray, deep: bool = False) -> Look:
    """pixels: uint8 [H, W, 3]. deep: the file has more than 8 bits. Looks at a grid of pixels, because that is cheap."""
    height, width, _ = pixels.shape
    rows, columns = max(height // _SIDE, 1), max(width // _SIDE, 1)
    grid = pixels[rows // 2 :: rows, columns // 2 :: columns]
    if _ordinary(grid[len(grid) // 2].tobytes()):
        return ORDINARY
    seen = np.ascontiguousarray(grid.reshape(-1, 3).T)
    lows, highs = seen.min(1), seen.max(1)
    low, high = int(lows.min()), int(highs.max())
    found = Look.NARROW if deep and high - low <= _NEAR else ORDINARY
    if high <= _NEAR:
        return found | Look.BLACK
    if low >= 255 - _NEAR:
        return found | Look.WHITE
    if int((highs - lows).max()) <= _SAME:
        return found | Look.CONSTANT
    return found


def _ordinary(line: bytes) -> bool:
    """Whether RGB pixels of the image alone rule out every condition. This takes microseconds and decides almost all images."""
    spread = max(line) - min(line)  # above _NEAR, the image is neither black nor white nor narrow
    return spread > _NEAR and any(max(line[each::3]) - min(line[each::3]) > _SAME for each in range(3))
