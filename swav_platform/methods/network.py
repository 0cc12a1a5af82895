"""Encoder, projection head and prototypes over views of several resolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swav_platform.models.heads import unit


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
