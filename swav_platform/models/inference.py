"""A model package ready to encode: what the service and the Python API share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from swav_platform.errors import UsageError, UserError
from swav_platform.models.exports.stored import stored
from swav_platform.models.package import Package, load_package, package_digest, preprocess
from swav_platform.models.runtimes.choose import open_runtime
from swav_platform.models.runtimes.runtime import PARITY, Runtime, digest_parts, digest_with


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
    runtime: Runtime  # of the encoder; the projection runs in torch
    digest: str  # of the package, with a suffix for another precision than float32
    parities: Mapping[str, float]  # precision -> smallest cosine to float32 that its export has shown
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
        """Moves the weights. Prototypes stay in memory as NumPy arrays. Raises UsageError for another runtime than torch."""
        if self.runtime.name != "torch":
            raise UsageError(f"The runtime {self.runtime.name} can't move to {device}. Name the device when you load the model.")
        self.package.encoder.to(device)
        self.package.projection.to(device)

    def preprocess(self, image: np.ndarray) -> Tensor:
        """uint8 [H, W, 3] -> float32 [3, input_size, input_size]."""
        return preprocess(image, self.input_size)

    def encode(self, images: Tensor) -> Encoded:
        """float32 [n, 3, input_size, input_size] on any device -> vectors of the n images."""
        features = torch.from_numpy(self.runtime(images))
        device = next(self.package.projection.parameters(), features).device  # imported weights may have no head
        with torch.inference_mode():
            projections = normalize(self.package.projection(features.to(device)), dim=1).cpu().numpy()
        return Encoded(normalize(features, dim=1).numpy(), projections)

    def made_comparable(self, maker: str) -> bool:
        """Whether vectors of the model with the digest `maker` can be compared with this one's.

        They can if the digests are equal, or if only the precision differs and its parity with float32 was shown.
        """
        if maker == self.digest:
            return True
        (base, precision), (own, served) = digest_parts(maker), digest_parts(self.digest)
        return base == own and all(each == "fp32" or self.parities.get(each, 0.0) >= PARITY[each] for each in (precision, served))

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


def load_for_inference(
    folder: Path, runtime: str = "torch", *, device: str = "cpu", threads: int | None = None, allow_int8: bool = False
) -> InferenceModel:
    """Loads the model package in `folder`; the encoder runs in `runtime`, which has shown that it computes the package's features.

    runtime, device, threads, allow_int8: as in `open_runtime`. Raises UserError if anything fails.
    """
    try:
        package = load_package(folder)
        base = package_digest(folder)
        opened = open_runtime(folder, package, runtime, device=device, threads=threads, allow_int8=allow_int8)
        int8 = stored(folder, "int8", base)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"Cannot load the model in {folder} ({type(error).__name__}: {error}). The package is damaged or of another "
            f"version. Export it again from its run."
        ) from error
    parities = {"bf16": PARITY["bf16"], **({"int8": int8.cosine} if int8 else {})}  # bf16 opens only where parity holds
    prototypes = package.prototypes.detach().float()
    return InferenceModel(
        package,
        opened,
        digest_with(base, opened.precision, opened.variant),
        parities,
        normalize(prototypes, dim=1).numpy(),
        prototypes.norm(dim=1).numpy(),
    )


def highest(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the k highest scores, best first (ties: lowest position first), and those scores."""
    k = min(k, len(scores))
    if k == 0:
        return np.empty(0, np.int64), scores[:0]
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    positions = np.flatnonzero(scores >= threshold)
    positions = positions[np.argsort(-scores[positions], kind="stable")][:k]
    return positions, scores[positions]
