"""The networks that methods train: an encoder and heads, over views of several resolutions."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swav_platform.config import Config, Method
from swav_platform.models import heads
from swav_platform.models.heads import unit
from swav_platform.models.initialise import initialised


class MultiCropNetwork(nn.Module):
    """Maps the views of one row to unit embeddings and their cosines to the prototypes (Caron et al. 2020, sections 3.1, 3.2)."""

    def __init__(self, encoder: nn.Module, projection_head: nn.Module, prototypes: nn.Linear) -> None:
        super().__init__()
        self.encoder, self.projection_head, self.prototypes = encoder, projection_head, prototypes

    def forward(self, views: Sequence[Tensor], positions: int) -> tuple[Tensor, Tensor]:
        """views: one [V_g * R, 3, H_g, W_g] per resolution, view after view, of R = `positions` images.

        Returns embeddings [V, R, D] and scores [V, R, K], float32 (float64 for a float64 network).
        """
        features = torch.cat([self.encoder(group) for group in views])  # one pass per resolution
        embeddings = unit(self.projection_head(features)).unflatten(0, (-1, positions))
        with torch.autocast(embeddings.device.type, enabled=False):
            return embeddings, F.linear(embeddings, self.prototypes.weight)


class ProjectionNetwork(nn.Module):
    """A MultiCropNetwork without prototypes."""

    def __init__(self, encoder: nn.Module, projection_head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projection_head = encoder, projection_head

    def forward(self, views: Sequence[Tensor], positions: int) -> tuple[Tensor, Tensor]:
        """As MultiCropNetwork.forward, with scores [V, R, 0]."""
        features = torch.cat([self.encoder(group) for group in views])
        embeddings = unit(self.projection_head(features)).unflatten(0, (-1, positions))
        return embeddings, embeddings.new_zeros(*embeddings.shape[:2], 0)


class MomentumNetwork(nn.Module):
    """An online network with a predictor, and a momentum copy of its encoder and projection head that gets no gradient."""

    def __init__(self, encoder: nn.Module, projection_head: nn.Module, predictor: nn.Module, targets: Sequence[int]) -> None:
        super().__init__()
        self.encoder, self.projection_head, self.predictor = encoder, projection_head, predictor
        self.momentum = copy.deepcopy(nn.Sequential(encoder, projection_head)).requires_grad_(False)
        self.targets = list(targets)

    def forward(self, views: Sequence[Tensor], positions: int) -> tuple[Tensor, Tensor, Tensor]:
        """views: as in MultiCropNetwork. Those numbered `targets`, of the first resolution, go through the momentum network.

        Returns queries [V, R, D], scores [V, R, 0] and targets [A, R, D]. A view that is the only target is not a query.
        """
        first = views[0].unflatten(0, (-1, positions))
        with torch.no_grad():
            targets = unit(self.momentum(first[self.targets].flatten(0, 1))).unflatten(0, (-1, positions))
        if len(self.targets) == 1:
            kept = [v for v in range(len(first)) if v not in self.targets]
            views = [first[kept].flatten(0, 1), *views[1:]] if kept else views[1:]
        features = torch.cat([self.encoder(group) for group in views])
        queries = unit(self.predictor(self.projection_head(features))).unflatten(0, (-1, positions))
        return queries, queries.new_zeros(*queries.shape[:2], 0), targets

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """copy <- momentum * copy + (1 - momentum) * online, for parameters. Running statistics follow from its own passes."""
        online: list[Tensor] = [*self.encoder.parameters(), *self.projection_head.parameters()]
        slow: list[Tensor] = list(self.momentum.parameters())
        torch._foreach_lerp_(slow, online, 1 - momentum)


def build_prototype_network(encoder: nn.Module, config: Config) -> MultiCropNetwork:
    """`encoder` with a projection head and prototypes drawn from `config.seed`. All heads share one layer, head after head."""

    def top() -> nn.ModuleList:
        return nn.ModuleList(
            [_projection_head(_width(encoder), config), heads.prototypes(config.model.projection_dim, sum(config.method.heads))]
        )

    projection_head, prototypes = initialised(top, config.seed, "heads")
    assert isinstance(prototypes, nn.Linear)
    return MultiCropNetwork(encoder, projection_head, prototypes)


def build_projection_network(encoder: nn.Module, config: Config) -> ProjectionNetwork:
    """`encoder` with a projection head drawn from `config.seed`."""
    head = initialised(lambda: _projection_head(_width(encoder), config), config.seed, "heads")
    return ProjectionNetwork(encoder, head)


def build_momentum_network(encoder: nn.Module, config: Config) -> MomentumNetwork:
    """`encoder` with a projection head and a predictor drawn from `config.seed`, and their momentum copy."""
    head = initialised(lambda: _projection_head(_width(encoder), config), config.seed, "heads")
    predictor = initialised(lambda: _projection_head(config.model.projection_dim, config), config.seed, "predictor")
    return MomentumNetwork(encoder, head, predictor, config.method.assign_views)


def frozen_prototypes(step: int, options: Method) -> frozenset[str]:
    """Names of the prototype parameters if `step` does not update them: in the first steps, or always."""
    frozen = step < options.freeze_prototypes or not options.learn_prototypes
    return frozenset({"prototypes.weight"} if frozen else ())


@torch.no_grad()
def unit_prototypes(network: MultiCropNetwork) -> None:
    """Scales every prototype to unit length."""
    weight = network.prototypes.weight
    weight.copy_(F.normalize(weight, dim=1))


def _width(encoder: nn.Module) -> int:
    return int(encoder.feature_dim)  # type: ignore[arg-type]  # every encoder has it, see build_encoder


def _projection_head(width: int, config: Config) -> nn.Sequential:
    model = config.model
    return heads.projection_head(width, model.projection_hidden, model.projection_dim, model.projection_norm)
