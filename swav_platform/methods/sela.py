"""SeLa-v2: images predict labels of equal mass over the last epoch's features (Asano et al. 2020, arXiv 1911.05371).

Network, views and loss are those of SwAV (Caron et al. 2020, arXiv 2006.09882, section 4.1). SeLa-v2's code was not published;
this implementation follows the two papers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from swav_platform.config import Config, ViewGroup
from swav_platform.methods import health
from swav_platform.methods.comm import Comm
from swav_platform.methods.memory import Memory, assignment_loss
from swav_platform.methods.method import Method, PositionOrderedState, RowOutputs, StepOutputs, Targets
from swav_platform.methods.network import MultiCropNetwork, build_prototype_network, frozen_prototypes, unit_prototypes
from swav_platform.methods.sinkhorn import power_law

_CHUNK = 8192  # samples whose scores are held at a time
_CHECKED_EVERY = 10  # iterations


class Sela(Method):
    """Head h labels the features of assignment view h mod A, with its prototypes balanced over all images of the epoch.

    The first epoch has no labels: it only collects features and updates no weights.
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
        if self.memory.labels is None:
            return frozenset(name for name, _ in self.network.named_parameters())
        return frozen_prototypes(step, self.options)

    @torch.no_grad()
    def start_epoch(self, epoch: int, comm: Comm) -> None:
        """Labels the features collected since the last call, with the current prototypes."""
        if not self.memory.span:
            return
        features_amd, weight_m = self.memory.contents(comm)
        prototypes = self.network.prototypes.weight.split(self.heads)
        labels = [self._labels(features_amd[h % len(features_amd)], p, weight_m, comm) for h, p in enumerate(prototypes)]
        self.memory.assign(torch.stack(labels), comm)

    def _labels(self, features: Tensor, prototypes: Tensor, weight: Tensor, comm: Comm) -> Tensor:
        """int64 [m]: the balanced label of each of this rank's features [m, D], by one head's prototypes [K, D]."""

        def log_p() -> Iterable[Tensor]:
            return (part.double() @ prototypes.double().T / self.options.epsilon for part in features.split(_CHUNK))

        exponent = self.options.prior_exponent if self.options.prior == "power_law" else 0.0
        log_v = balance(
            log_p,
            weight=weight.double(),
            prior=power_law([len(prototypes)], exponent).to(features.device),
            iterations=self.options.bank_iterations,
            tolerance=self.options.bank_tolerance,
            comm=comm,
        )
        return torch.cat([(part + log_v).argmax(1) for part in log_p()])

    def targets(self, outputs: StepOutputs, comm: Comm) -> Targets:
        return self.memory.look_up(outputs, len(self.heads), comm)

    def loss(self, outputs: RowOutputs, targets: Targets) -> Tensor:
        return assignment_loss(outputs, targets[outputs.row], self.heads, self.options.temperature)

    def after_step(self, outputs: StepOutputs, comm: Comm) -> None:
        self.memory.add(outputs)
        unit_prototypes(self.network)

    def health_sums(self, outputs: StepOutputs, targets: Targets) -> Tensor:
        return health.prototype_sums(outputs, self.options.assign_views, self.heads)

    def health(self, sums: Tensor, loss: float) -> dict[str, float]:
        return health.of_prototypes(sums, loss, self.heads)

    def state(self) -> PositionOrderedState:
        return self.memory.state()

    def load_state(self, state: PositionOrderedState, comm: Comm) -> None:
        self.memory.load(state, comm, self.network.prototypes.weight.device)


def balance(
    log_p: Callable[[], Iterable[Tensor]],
    *,
    weight: Tensor,
    prior: Tensor,
    iterations: int,
    tolerance: float,
    comm: Comm,
) -> Tensor:
    """Scales a plan over the samples of all ranks to given masses of prototypes and samples (Asano et al. 2020, eq. 7-8).

    log_p: called once per iteration; yields this rank's [m, K] in parts, float64.
    weight: [m], float64, how much each sample counts.
    prior: [K], float64, masses of the prototypes. Only their ratios matter.
    Stops after `iterations`, or when the samples' masses change by at most `tolerance` in total. As in the published solver,
    that is checked every tenth iteration; tolerance 0 disables it.

    Returns log v, float64 [K]: the plan times the number of samples is softmax(log_p + log v). Each iteration costs two
    collectives.
    """
    log_n = comm.sum(weight.sum()[None]).log()
    log_u, log_v, log_w = -log_n.expand(len(weight)), torch.zeros_like(prior), weight.log()
    log_prior = (prior / prior.sum()).log()
    for iteration in range(iterations):
        own, new_u, start = torch.full_like(log_v, -torch.inf), log_u.clone(), 0
        for part in log_p():
            here = slice(start, start := start + len(part))
            if iteration:
                new_u[here] = -log_n - (part + log_v).logsumexp(1)  # each sample to mass 1/n
            own = torch.logaddexp(own, (part + (new_u + log_w)[here, None]).logsumexp(0))
        if tolerance and iteration % _CHECKED_EVERY == 1 and _change(log_u, new_u, weight, comm) <= tolerance:
            break
        top = comm.max(own.clone())
        log_u, log_v = new_u, log_prior - top - comm.sum((own - top).exp()).log()  # each prototype to its prior
    return log_v


def _change(before: Tensor, after: Tensor, weight: Tensor, comm: Comm) -> float:
    """Total relative change of the samples' masses between two log u [m]."""
    return comm.sum((weight * ((before - after).exp() - 1).abs()).sum()[None]).item()
