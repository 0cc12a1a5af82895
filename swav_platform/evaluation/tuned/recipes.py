"""Published recipes for training with labels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum 0.9. Rates are for batches of 256 and scale with the batch. trunk_lr 0 leaves the encoder as it is.

    steps: epochs after which rates are multiplied by `gamma`; empty for a cosine to 0. scale: the share of the area that crops take.
    """

    epochs: int
    trunk_lr: float
    head_lr: float
    weight_decay: float = 0.0
    steps: tuple[int, ...] = ()
    gamma: float = 0.1
    batch: int = 256
    scale: tuple[float, float] = (0.08, 1.0)


LINEAR = Recipe(100, 0.0, 0.3, weight_decay=1e-6)
"""SwAV's linear evaluation (Caron et al. 2020): a linear layer on augmented crops."""

SEMI = {0.01: Recipe(20, 0.02, 5.0, steps=(12, 16)), 0.1: Recipe(20, 0.01, 0.2, steps=(12, 16))}
"""SwAV's fine-tuning on 1 % and 10 % of the labels: rates of trunk and head apart."""

FINETUNE = Recipe(30, 0.01, 0.1, weight_decay=1e-4)
"""All labels. No published recipe of SwAV; rates between those of its linear and semi-supervised ones."""
