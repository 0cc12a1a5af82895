"""SeLa-v2: images are told apart by labels of equal mass over last epoch's features (Asano et al. 2020, arXiv 1911.05371, with
the network, views and loss of Caron et al. 2020, section 4.1). Its code was never published: what follows from the two papers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from swav_platform.config import Config, ViewGroup
from swav_platform.methods import health
from swav_platform.methods.comm import Comm
from swav_platform.methods.memory import Memory, assignment_loss
from swav_platform.methods.method import PositionOrderedState, RowOutputs, StepOutputs, Targets
from swav_platform.methods.network import MultiCropNetwork, build_prototype_network, frozen_prototypes, unit_prototypes
from swav_platform.methods.sinkhorn import power_law

_CHUNK = 8192  # samples whose scores are held at a time
_CHECKED_EVERY = 10  # iterations


class Sela:
    """Head h labels the features of assignment view h mod A, sharing its prototypes out over all images of the epoch.

    In the first epoch there are no labels: features are collected and no weight moves.
    """

    network: MultiCropNetwork
    views: Mapping[str, ViewGroup]

    def __init__(self, config: Config) -> None:
        self.config, self.options, self.views, self.heads = config, config.method, config.views, config.method.heads
        self.memory = Memory(config)

    def modules(self, encoder: nn.Module) -> nn.Module:
        return self.attach(build_prototype_network(encoder, self.config))

    def attach(self, network: MultiCropNetwork) -> MultiCropNetwork:
        """Works on `network` from now on; its prototypes are brought to unit length."""
        self.network = network
        unit_prototypes(network)
        return network

    def frozen(self, step: int) -> frozenset[str]:
        if self.memory.labels is None:
            return frozenset(name for name, _ in self.network.named_parameters())
        return frozen_prototypes(step, self.options)

    @torch.no_grad()
    def start_epoch(self, epoch: int, comm: Comm) -> None:
        """Labels what was collected since the last time by the prototypes as they are now."""
        if not self.memory.span:
            return
        features_amd, weight_m = self.memory.contents(comm)
        labels = []
        for head, prototypes in enumerate(self.network.prototypes.weight.split(self.heads)):
            features = features_amd[head % len(features_amd)]

            def log_p(features: Tensor = features, prototypes: Tensor = prototypes) -> Iterable[Tensor]:
                return (part.double() @ prototypes.double().T / self.options.epsilon for part in features.split(_CHUNK))

            prior = self.options.prior_exponent if self.options.prior == "power_law" else 0.0
            log_v = balance(
                log_p,
                weight=weight_m.double(),
                prior=power_law([len(prototypes)], prior).to(features.device),
                iterations=self.options.bank_iterations,
                tolerance=self.options.bank_tolerance,
                comm=comm,
            )
            labels.append(torch.cat([(part + log_v).argmax(1) for part in log_p()]))
        self.memory.assign(torch.stack(labels), comm)

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
    """Scales a plan over the samples of all ranks until prototypes and samples have the masses wanted (Asano et al. 2020, eq. 7-8).

    log_p: called once an iteration, gives this rank's [m, K] in parts, float64. weight: [m], how much each sample counts.
    prior: [K], masses of the prototypes, of which only the ratios matter. Ends after `iterations`, or when the samples' masses
    change by no more than `tolerance` in all (looked at every tenth time, as in the published solver; 0: never).

    Returns log v, float64 [K]: the plan times the number of samples is softmax(log_p + log v). Two collectives an iteration.
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
        if tolerance and iteration % _CHECKED_EVERY == 1 and _moved(log_u, new_u, weight, comm) <= tolerance:
            break
        top = comm.max(own.clone())
        log_u, log_v = new_u, log_prior - top - comm.sum((own - top).exp()).log()  # each prototype to its own
    return log_v


def _moved(before: Tensor, after: Tensor, weight: Tensor, comm: Comm) -> float:
    return comm.sum((weight * ((before - after).exp() - 1).abs()).sum()[None]).item()
