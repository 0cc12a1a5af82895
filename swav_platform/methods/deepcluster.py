"""DeepCluster-v2: images predict a clustering of the last epoch's features (Caron et al. 2020, section 4.1 and appendix).

The original method is Caron et al. 2018, arXiv 1807.05520.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swav_platform.config import Config, ViewGroup
from swav_platform.methods import health
from swav_platform.methods.comm import Comm, in_position_order
from swav_platform.methods.memory import Memory, assignment_loss
from swav_platform.methods.method import Method, PositionOrderedState, RowOutputs, StepOutputs, Targets
from swav_platform.methods.network import MultiCropNetwork, build_prototype_network, unit_prototypes
from swav_platform.models.initialise import seed_of

_CHUNK = 8192  # features compared with all centroids at a time


class DeepCluster(Method):
    """Head h clusters the features of assignment view h mod A. Its centroids are its prototypes and are never trained.

    The first epoch has no assignments: as in the published code, it only collects features and updates no weights.
    """

    network: MultiCropNetwork
    views: Mapping[str, ViewGroup]

    def __init__(self, config: Config) -> None:
        self.config, self.options, self.views, self.heads = config, config.method, config.views, config.method.heads
        self.memory = Memory(config)

    def modules(self, encoder: nn.Module) -> nn.Module:
        return self.attach(build_prototype_network(encoder, self.config))

    def attach(self, network: MultiCropNetwork) -> MultiCropNetwork:
        """Sets the network to train and scales its prototypes to unit length."""
        self.network = network
        unit_prototypes(network)
        return network

    def frozen(self, step: int) -> frozenset[str]:
        everything = self.memory.labels is None
        return frozenset(name for name, _ in self.network.named_parameters() if everything or name == "prototypes.weight")

    @torch.no_grad()
    def start_epoch(self, epoch: int, comm: Comm) -> None:
        """Clusters the features collected since the last call. Centroids become the heads' weights."""
        if not self.memory.span:
            return
        features_amd, weight_m = self.memory.contents(comm)
        centroids, labels = [], []
        for head, k in enumerate(self.heads):
            features = features_amd[head % len(features_amd)]
            first = self._first_centroids(features, weight_m, k, f"{self.config.seed} {epoch} {head}", comm)
            c, assigned = kmeans(features, first, weight=weight_m, iterations=self.options.kmeans_iterations, comm=comm)
            centroids.append(c)
            labels.append(assigned)
        self.network.prototypes.weight.copy_(torch.cat(centroids))
        self.memory.assign(torch.stack(labels), comm)

    def _first_centroids(self, features: Tensor, weight: Tensor, k: int, key: str, comm: Comm) -> Tensor:
        """[k, D]: features of k readable images, drawn by `key` from the positions of all ranks. Some repeat if there are fewer.

        Positions count from the start of the memory's span; each rank adds the features of the drawn positions that it holds.
        """
        numbers, span, size = sorted(self.memory.rows), self.memory.span, self.memory.shape[1]
        readable = in_position_order(dict(zip(numbers, weight.split(size), strict=True)), span, comm).flatten() > 0
        order = torch.randperm(len(readable), generator=torch.Generator().manual_seed(seed_of(key))).to(readable.device)
        order = order[readable[order]]
        drawn = order[torch.arange(k, device=order.device) % len(order)]
        rows = torch.tensor(numbers, device=drawn.device) - span.start
        held = (rows[:, None] * size + torch.arange(size, device=drawn.device)).flatten()  # [m], positions of `features`
        place = torch.full_like(readable, -1, dtype=torch.int64)  # position -> index in `features`, -1 for other ranks' ones
        place[held] = torch.arange(len(held), device=held.device)
        own = place[drawn]
        return comm.sum(torch.where(own[:, None] >= 0, features[own.clamp_min(0)], 0.0))

    def targets(self, outputs: StepOutputs, comm: Comm) -> Targets:
        return self.memory.look_up(outputs, len(self.heads), comm)

    def loss(self, outputs: RowOutputs, targets: Targets) -> Tensor:
        return assignment_loss(outputs, targets[outputs.row], self.heads, self.options.temperature)

    def after_step(self, outputs: StepOutputs, comm: Comm) -> None:
        self.memory.add(outputs)

    def health_sums(self, outputs: StepOutputs, targets: Targets) -> Tensor:
        return health.prototype_sums(outputs, self.options.assign_views, self.heads)

    def health(self, sums: Tensor, loss: float) -> dict[str, float]:
        return health.of_prototypes(sums, loss, self.heads)

    def state(self) -> PositionOrderedState:
        return self.memory.state()

    def load_state(self, state: PositionOrderedState, comm: Comm) -> None:
        self.memory.load(state, comm, self.network.prototypes.weight.device)


def kmeans(features: Tensor, centroids: Tensor, *, weight: Tensor, iterations: int, comm: Comm) -> tuple[Tensor, Tensor]:
    """Spherical k-means over the features of all ranks (Dhillon and Modha 2001, section 3).

    features: [m, D], this rank's, unit length. centroids: [K, D], the initial ones. weight: [m], how much each feature counts.
    An empty cluster keeps its centroid. Each iteration costs one comm.sum.
    Returns centroids [K, D] of unit length, and for each feature the number of its nearest centroid, int64 [m].
    """
    k, dim = centroids.shape
    for _ in range(iterations):
        labels = _nearest(features, centroids)
        # float64 makes the sum independent of how features are distributed over ranks.
        sums = features.new_zeros(k, dim + 1, dtype=torch.float64)
        sums.index_add_(0, labels, torch.cat([features * weight[:, None], weight[:, None]], dim=1).double())
        total, count = comm.sum(sums).split([dim, 1], dim=1)
        mean = (total / count.clamp_min(1e-30)).to(features.dtype)
        centroids = F.normalize(torch.where(count > 0, mean, centroids), dim=1)
    return centroids, _nearest(features, centroids)


def _nearest(features: Tensor, centroids: Tensor) -> Tensor:
    """int64 [m]: the number of the centroid [K, D] nearest to each of the features [m, D]."""
    return torch.cat([(part @ centroids.T).argmax(1) for part in features.split(_CHUNK)])
