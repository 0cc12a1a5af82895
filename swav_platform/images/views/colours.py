"""The formula of each colour change, for numbers (compiled for the CPU) and for tensors (on an accelerator).

Colours are in [0, 1]; the formulas are torchvision's for float images. `carrier` provides what has no operator: `number` (a constant),
`clip` (to [0, 1]), `least`, `most` and `where`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

MEAN = (0.485, 0.456, 0.406)
STD = (0.228, 0.224, 0.225)
"""The published code has 0.228 for red; 0.229 is common elsewhere."""

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

REACH = 5.0
"""A Gaussian is cut off after this many sigma, which omits less than 1e-6 of it."""


class Colours(NamedTuple):
    luma: Any
    blend: Any
    turn_hue: Any
    solarise: Any


def formulas(carrier: Any) -> Colours:
    number, clip, least, most, where = carrier.number, carrier.clip, carrier.least, carrier.most, carrier.where
    zero, half, one, two, three, four, six = (number(x) for x in (0, 0.5, 1, 2, 3, 4, 6))
    red_share, green_share, blue_share = number(0.2989), number(0.587), number(0.114)

    def luma(red, green, blue):  # type: ignore[no-untyped-def]
        """Grey of a colour (ITU-R BT.601 with torchvision's digits)."""
        return red * red_share + green * green_share + blue * blue_share

    def blend(x, other, factor):  # type: ignore[no-untyped-def]
        """Brightness, contrast and saturation: away from or towards black, the image's mean grey, the pixel's grey."""
        return clip(x * factor + other * (one - factor))

    def turn_hue(red, green, blue, turn):  # type: ignore[no-untyped-def]
        """Rotates the hue by `turn` (-0.5 to 0.5) of a circle; HSV value and chroma stay.

        RGB -> HSV -> RGB without the saturation: with the hue in sixths of a circle, each colour is
        value - chroma + chroma * w, where w is a trapezium of the hue around that colour.
        """
        value = most(most(red, green), blue)
        chroma = value - least(least(red, green), blue)
        scale = where(chroma > zero, one / chroma, zero)
        hue = (red - green) * scale + four
        hue = where(value == green, (blue - red) * scale + two, hue)
        hue = where(value == red, (green - blue) * scale, hue)
        hue = hue + turn * six
        hue = where(hue < zero, hue + six, hue)
        hue = where(hue >= six, hue - six, hue)
        low = value - chroma
        return (
            low + clip(abs(hue - three) - one) * chroma,
            low + clip(two - abs(hue - two)) * chroma,
            low + clip(two - abs(hue - four)) * chroma,
        )

    def solarise(x):  # type: ignore[no-untyped-def]
        return where(x >= half, one - x, x)

    return Colours(luma, blend, turn_hue, solarise)
