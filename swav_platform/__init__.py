"""Self-supervised pretraining of image encoders on uncurated images.

The Python API loads a trained encoder and applies it to images:

>>> import swav_platform
>>> encoder = swav_platform.load("runs/mine")
>>> vectors = encoder.embed(["photo.jpg", "other.png"])  # float32 [2, encoder.dim], unit length
>>> clusters, scores, probabilities = encoder.clusters(["photo.jpg"], top=3)  # arrays [1, 3]

Public names: `load`, `Encoder`, `client` (the HTTP client), `Method` (the protocol of a pretraining method) and
`__version__`. They are imported on first use, so that `import swav_platform` stays fast and does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Encoder", "Method", "__version__", "client", "load"]

if TYPE_CHECKING:
    from swav_platform import client
    from swav_platform.encoder import Encoder, load
    from swav_platform.methods.method import Method
else:
    _HOMES = {"load": "encoder", "Encoder": "encoder", "Method": "methods.method"}

    def __getattr__(name: str) -> object:
        import importlib

        if name == "client":
            return importlib.import_module("swav_platform.client")
        if name in _HOMES:
            value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
