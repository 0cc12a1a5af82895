"""Encoder, projection head and prototypes over views of several resolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swav_platform.config import Config, Method
from swav_platform.models import heads
from swav_platform.models.heads import unit
from swav_platform.models.resnet import initialise


class MultiCropNetwork(nn.Module):
    """Views of one row to unit embeddings and their cosines to the prototypes (Caron et al. 2020, sections 3.1 and 3.2)."""

    def __init__(self, encoder: nn.Module, projection_head: nn.Module, prototypes: nn.Linear) -> None:
        super().__init__()
        self.encoder, self.projection_head, self.prototypes = encoder, projection_head, prototypes

    def forward(self, views: Sequence[Tensor], positions: int) -> tuple[Tensor, Tensor]:
        """views: per resolution [V_g * R, 3, H_g, W_g], view by view, of R = `positions` images.

        Returns embeddings [V, R, D] and scores [V, R, K], float32 (float64 for a float64 network).
        """
        features = torch.cat([self.encoder(group) for group in views])  # one pass a resolution
        embeddings = unit(self.projection_head(features)).unflatten(0, (-1, positions))
        with torch.autocast(embeddings.device.type, enabled=False):
            return embeddings, F.linear(embeddings, self.prototypes.weight)


class ProjectionNetwork(nn.Module):
    """The same without prototypes."""

    def __init__(self, encoder: nn.Module, projection_head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projection_head = encoder, projection_head

    def forward(self, views: Sequence[Tensor], positions: int) -> tuple[Tensor, Tensor]:
        """As in MultiCropNetwork; scores are [V, R, 0]."""
        features = torch.cat([self.encoder(group) for group in views])
        embeddings = unit(self.projection_head(features)).unflatten(0, (-1, positions))
        return embeddings, embeddings.new_zeros(*embeddings.shape[:2], 0)


def build_prototype_network(encoder: nn.Module, config: Config) -> MultiCropNetwork:
    """On `encoder`, heads drawn from `config.seed` alone. Prototypes of several heads lie one after the other in one layer."""
    model, width = config.model, int(encoder.feature_dim)  # type: ignore[arg-type]
    with torch.device("meta"):
        top = nn.ModuleList(
            [
                heads.projection_head(width, model.projection_hidden, model.projection_dim),
                heads.prototypes(model.projection_dim, sum(config.method.heads)),
            ]
        )
    top.to_empty(device="cpu")
    initialise(top, config.seed, "heads")
    return MultiCropNetwork(encoder, top[0], top[1])  # type: ignore[arg-type]


def build_projection_network(encoder: nn.Module, config: Config) -> ProjectionNetwork:
    """On `encoder`, the head drawn from `config.seed` alone."""
    return ProjectionNetwork(encoder, drawn_head(int(encoder.feature_dim), config, "heads"))  # type: ignore[arg-type]


def drawn_head(width: int, config: Config, name: str) -> nn.Module:
    """A projection head on `width` features, its weights drawn from `config.seed` and `name`."""
    with torch.device("meta"):
        head = heads.projection_head(width, config.model.projection_hidden, config.model.projection_dim)
    head.to_empty(device="cpu")
    initialise(head, config.seed, name)
    return head


def frozen_prototypes(step: int, options: Method) -> frozenset[str]:
    """Names of the parameters that `step` leaves as they are: the prototypes in the first steps, or always."""
    frozen = step < options.freeze_prototypes or not options.learn_prototypes
    return frozenset({"prototypes.weight"} if frozen else ())


@torch.no_grad()
def unit_prototypes(network: MultiCropNetwork) -> None:
    """Brings every prototype to unit length."""
    weight = network.prototypes.weight
    weight.copy_(F.normalize(weight, dim=1))
