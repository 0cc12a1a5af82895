"""The training step of SwAV's published code, written plainly, as the reference of train_step.py.

It uses standard batch normalisation, no compilation, LARS tensor by tensor, and one loss after another. With several ranks, a
step has eight collectives: Sinkhorn's four for each of two views.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from swav_platform.config import Config
from swav_platform.models.encoders import build_encoder
from swav_platform.models.normalisation import RowBatchNorm


class PlainNetwork(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        model = config.model
        self.encoder = _with_standard_norm(build_encoder(model))
        width = int(self.encoder.feature_dim)  # type: ignore[arg-type]
        hidden = model.projection_hidden
        self.head = nn.Sequential(
            nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, model.projection_dim)
        )
        self.prototypes = nn.Linear(model.projection_dim, config.method.heads[0], bias=False)

    def forward(self, views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps [V_g * B, 3, H, W] of each resolution to embeddings [V * B, D] and scores [V * B, K], view after view."""
        features = torch.cat([self.encoder(group) for group in views])
        embeddings = F.normalize(self.head(features), dim=1)
        return embeddings, self.prototypes(embeddings)


def _with_standard_norm(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, RowBatchNorm):
            setattr(module, name, nn.BatchNorm2d(child.channels))
        else:
            _with_standard_norm(child)
    return module


class PlainLoop:
    def __init__(self, config: Config, device: torch.device, memory_format: torch.memory_format) -> None:
        self.config = config
        self.network = PlainNetwork(config).to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
        options = config.train.optimiser
        self.sgd = torch.optim.SGD(self.network.parameters(), lr=options.lr, momentum=options.momentum)

    def step(self, views: Sequence[Tensor]) -> float:
        method, batch = self.config.method, self.config.train.batch
        self.network.train()
        with torch.no_grad():
            self.network.prototypes.weight.copy_(F.normalize(self.network.prototypes.weight, dim=1))
        low = self.config.train.precision == "bf16"
        with torch.autocast(views[0].device.type, torch.bfloat16, enabled=low):
            _, scores = self.network(views)
        count = scores.shape[0] // batch
        loss = scores.new_zeros((), dtype=torch.float32)
        for i in method.assign_views:
            with torch.no_grad():
                codes = _sinkhorn(scores[batch * i : batch * (i + 1)].detach().float(), method.epsilon, method.iterations)
            for v in range(count):
                if v != i:
                    log_p = F.log_softmax(scores[batch * v : batch * (v + 1)].float() / method.temperature, dim=1)
                    loss = loss - (codes * log_p).sum(1).mean() / (count - 1)
        loss = loss / len(method.assign_views)
        self.sgd.zero_grad()
        loss.backward()
        self._adapt()
        self.sgd.step()
        return float(loss.item())

    @torch.no_grad()
    def _adapt(self) -> None:
        options = self.config.train.optimiser
        for p in self.network.parameters():
            if p.grad is None:
                continue
            p_norm, g_norm = torch.norm(p), torch.norm(p.grad)
            if p_norm != 0 and g_norm != 0:
                rate = options.trust * p_norm / (g_norm + p_norm * options.weight_decay + 1e-8)
                p.grad.add_(p, alpha=options.weight_decay).mul_(rate)


def _sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    q = torch.exp(scores / epsilon).t()
    prototypes, samples = q.shape
    q /= _everywhere(q.sum())
    for _ in range(iterations):
        q /= _everywhere(q.sum(1, keepdim=True))
        q /= prototypes
        q /= q.sum(0, keepdim=True)
        q /= samples
    return (q * samples).t()


def _everywhere(x: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(x)
    return x
