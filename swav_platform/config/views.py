"""Settings of views: sizes, crops and colour changes."""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import field_validator, model_validator

from swav_platform.config.setting import REQUIRED, Section, setting


class Photometric(Section):
    """Colour changes of a view. Defaults: Caron et al. 2020, appendix A (those of SimCLR at strength 1)."""

    jitter: float = setting(0.8, "probability of colour jitter", ge=0, le=1)
    brightness: float = setting(0.8, "strength of the brightness jitter", ge=0)
    contrast: float = setting(0.8, "strength of the contrast jitter", ge=0)
    saturation: float = setting(0.8, "strength of the saturation jitter", ge=0)
    hue: float = setting(0.2, "strength of the hue jitter", unit="turns", ge=0, le=0.5)
    grey: float = setting(0.2, "probability of greyscale", ge=0, le=1)
    blur: float = setting(0.5, "probability of Gaussian blur", ge=0, le=1)
    blur_sigma: tuple[float, float] = setting((0.1, 2.0), "range of the blur's standard deviation", unit="pixels")
    solarise: float = setting(0.0, "probability of solarisation", ge=0, le=1)

    @model_validator(mode="after")
    def _ranges(self) -> Photometric:
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(f"blur_sigma must be 0 < low <= high, got {self.blur_sigma}")
        return self


_WEAKER = {"brightness": 0.4, "contrast": 0.4}
_NONE = {"jitter": 0.0, "grey": 0.0, "blur": 0.0}
PHOTOMETRIC: dict[str, dict[str, float]] = {
    "none": _NONE,
    "swav": {},
    "simclr": {},  # the same at strength 1 (Chen et al. 2020, appendix A)
    "dino-global-1": _WEAKER | {"saturation": 0.2, "hue": 0.1, "blur": 1.0},
    "dino-global-2": _WEAKER | {"saturation": 0.2, "hue": 0.1, "blur": 0.1, "solarise": 0.2},
    "dino-local": _WEAKER | {"saturation": 0.2, "hue": 0.1},
    "mean-shift-weak": _NONE,
    "mean-shift-strong": _WEAKER | {"saturation": 0.4, "hue": 0.1},
}
"""Published presets (Caron et al. 2020, 2021; Koohpayegani et al. 2021). Each lists its differences from the defaults."""


class ViewGroup(Section):
    """Views of one resolution."""

    size: int = setting(REQUIRED, "height and width of a view", unit="pixels", ge=8, le=1024)
    count: int = setting(REQUIRED, "views of this group per image", ge=1, le=32)
    scale: tuple[float, float] = setting(REQUIRED, "range of the crop's share of the image's area")
    ratio: tuple[float, float] = setting((3 / 4, 4 / 3), "range of the crop's width divided by its height")
    flip: float = setting(0.5, "probability of a horizontal flip", ge=0, le=1)
    interpolation: Literal["bilinear", "bicubic"] = setting("bilinear", "filter that resizes the crop")
    photometric: Photometric = setting(Photometric(), "colour changes: settings, or the name of a published preset")

    @field_validator("photometric", mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in PHOTOMETRIC:
            nearest = difflib.get_close_matches(value, PHOTOMETRIC, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"unknown photometric preset {value!r}; did you mean {nearest!r}? Presets are {', '.join(PHOTOMETRIC)}"
            )
        return PHOTOMETRIC[value]

    @model_validator(mode="after")
    def _ranges(self) -> ViewGroup:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be 0 < low <= high <= 1, got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be 0 < low <= high, got {self.ratio}")
        return self
