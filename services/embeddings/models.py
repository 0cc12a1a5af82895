"""The model that is served: a package's encoder, projection and prototypes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from swav_platform.errors import UserError
from swav_platform.models.package import Package, load_package, package_digest, preprocess


@dataclass(frozen=True)
class Encoded:
    """Vectors of one image, float32, unit length."""

    features: np.ndarray  # [feature_dim]: the encoder's output
    projection: np.ndarray  # [projection_dim]: the head's output, comparable with prototypes


@dataclass(frozen=True)
class ServedModel:
    package: Package
    meta: dict[str, Any]
    digest: str
    prototypes: np.ndarray  # float32 [K, projection_dim], unit length
    norms: np.ndarray  # float32 [K]: length of the prototypes as the package has them

    @property
    def name(self) -> str:
        return str(self.meta["name"])

    @property
    def input_size(self) -> int:
        return int(self.meta["input_size"])

    @property
    def feature_dim(self) -> int:
        return int(self.meta["feature_dim"])

    @property
    def projection_dim(self) -> int:
        return int(self.prototypes.shape[1])

    @property
    def temperature(self) -> float:
        return float(self.meta["temperature"])

    def preprocess(self, image: np.ndarray) -> Tensor:
        """uint8 [H, W, 3] -> float32 [3, input_size, input_size]."""
        return preprocess(image, self.input_size)

    def encode(self, images: Tensor) -> list[Encoded]:
        """float32 [n, 3, input_size, input_size] -> vectors of the n images."""
        with torch.inference_mode():
            features = self.package.encoder(images.contiguous(memory_format=torch.channels_last))
            projections = normalize(self.package.projection(features).float(), dim=1).numpy()
            directions = normalize(features.float(), dim=1).numpy()
        return [Encoded(f, p) for f, p in zip(directions, projections, strict=True)]

    def scores(self, projections: np.ndarray) -> np.ndarray:
        """Cosines to every prototype: [n, projection_dim] -> [n, K]."""
        return projections @ self.prototypes.T


def load_model(folder: Path) -> ServedModel:
    """Raises UserError when the folder holds no model package that can be read."""
    try:
        package = load_package(folder)
        digest = package_digest(folder)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"The model in {folder} can't be loaded ({type(error).__name__}: {error}). The package is damaged or of another "
            f"version: export it again from its run."
        ) from error
    package.encoder.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    package.projection.eval()
    prototypes = package.prototypes.detach().float()
    return ServedModel(package, dict(package.meta), digest, normalize(prototypes, dim=1).numpy(), prototypes.norm(dim=1).numpy())
