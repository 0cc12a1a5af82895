"""A model package ready to encode: what the service and the Python API share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from swav_platform.errors import UserError
from swav_platform.models.package import Package, load_package, package_digest, preprocess


class Encoded(NamedTuple):
    """Unit-length float32 vectors of a batch ([n, …]) or of one image."""

    features: np.ndarray  # [n, feature_dim]: the encoder's output
    projections: np.ndarray  # [n, projection_dim]: the head's output, compared with prototypes


class Assignment(NamedTuple):
    """The prototypes nearest to each of n images, best first; arrays of shape [n, top]."""

    clusters: np.ndarray  # int64: numbers of the prototypes
    scores: np.ndarray  # float32: cosines
    probabilities: np.ndarray  # float64: softmax of cosine / temperature over all prototypes


@dataclass(frozen=True)
class InferenceModel:
    """Encoder, projection and prototypes of a package, in evaluation mode."""

    package: Package
    digest: str
    prototypes: np.ndarray  # float32 [K, projection_dim], unit length; K = 0 for a method without prototypes
    norms: np.ndarray  # float32 [K]: lengths of the prototypes as stored

    @property
    def encoder(self) -> nn.Module:
        return self.package.encoder

    @property
    def meta(self) -> dict[str, Any]:
        """The content of model.json."""
        return self.package.meta

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

    def to(self, device: str | torch.device) -> None:
        """Moves the weights. Prototypes stay in memory as NumPy arrays."""
        self.package.encoder.to(device)
        self.package.projection.to(device)

    def preprocess(self, image: np.ndarray) -> Tensor:
        """uint8 [H, W, 3] -> float32 [3, input_size, input_size]."""
        return preprocess(image, self.input_size)

    def encode(self, images: Tensor) -> Encoded:
        """float32 [n, 3, input_size, input_size] on any device -> vectors of the n images."""
        device = next(self.package.projection.parameters()).device
        with torch.inference_mode():
            features = self.package.encoder(images.to(device).contiguous(memory_format=torch.channels_last))
            projections = normalize(self.package.projection(features).float(), dim=1).cpu().numpy()
            directions = normalize(features.float(), dim=1).cpu().numpy()
        return Encoded(directions, projections)

    def scores(self, projections: np.ndarray) -> np.ndarray:
        """Cosines to every prototype: [n, projection_dim] -> [n, K]."""
        cosines: np.ndarray = projections @ self.prototypes.T
        return cosines

    def assign(self, projections: np.ndarray, top: int) -> Assignment:
        """The `top` nearest prototypes (all, if there are fewer) of each unit-length projection [n, projection_dim]."""
        scores = self.scores(projections)
        logits = scores.astype(np.float64) / self.temperature
        masses = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = masses / masses.sum(axis=1, keepdims=True)
        shape = (len(scores), min(top, len(self.prototypes)))
        clusters = np.array([highest(row, top)[0] for row in scores], np.int64).reshape(shape)
        return Assignment(
            clusters, np.take_along_axis(scores, clusters, axis=1), np.take_along_axis(probabilities, clusters, axis=1)
        )


def load_for_inference(folder: Path) -> InferenceModel:
    """Loads the model package in `folder` on the CPU, in channels-last layout. Raises UserError if that fails."""
    try:
        package = load_package(folder)
        digest = package_digest(folder)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"Cannot load the model in {folder} ({type(error).__name__}: {error}). The package is damaged or of another "
            f"version. Export it again from its run."
        ) from error
    package.encoder.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    package.projection.eval()
    prototypes = package.prototypes.detach().float()
    return InferenceModel(package, digest, normalize(prototypes, dim=1).numpy(), prototypes.norm(dim=1).numpy())


def highest(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the k highest scores, best first (ties: lowest position first), and those scores."""
    k = min(k, len(scores))
    if k == 0:
        return np.empty(0, np.int64), scores[:0]
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    positions = np.flatnonzero(scores >= threshold)
    positions = positions[np.argsort(-scores[positions], kind="stable")][:k]
    return positions, scores[positions]
