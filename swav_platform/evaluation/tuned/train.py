"""Trains a linear layer, and the encoder if the recipe has a rate for it, on labelled images."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swav_platform.errors import UserError
from swav_platform.evaluation.frozen.linear import accuracies
from swav_platform.evaluation.frozen.taps import OUTPUT, extractor
from swav_platform.evaluation.subject import Side, Subject
from swav_platform.evaluation.tuned.images import Images, crops
from swav_platform.evaluation.tuned.recipes import Recipe
from swav_platform.models.normalisation import collect, commit


def train_and_test(
    subject: Subject,
    sides: tuple[Side, Side],
    labels: tuple[dict[int, int], dict[int, int]],
    recipe: Recipe,
    seed: int,
    progress: Callable[[int], None] = lambda images: None,
) -> dict[str, float]:
    """Top-1 and top-5 in percent on the test side. labels: class by sample number, of the images to train on and to test on.

    Order, crops and the layer's initial weights are drawn from `seed`. The package's own encoder stays as it is.
    """
    encoder = copy.deepcopy(subject.package.encoder).to(subject.device)
    classes = max(*labels[0].values(), *labels[1].values()) + 1
    head = nn.Linear(int(subject.package.meta["feature_dim"]), classes)
    with torch.no_grad():
        head.weight.normal_(0, 0.01, generator=torch.Generator().manual_seed(seed))
        head.bias.zero_()
    head.to(subject.device)
    _train(subject, sides[0], labels[0], (encoder, head), recipe, seed, progress)
    return _test(subject, sides[1], labels[1], (encoder, head))


def _train(
    subject: Subject,
    side: Side,
    labels: dict[int, int],
    network: tuple[nn.Module, nn.Linear],
    recipe: Recipe,
    seed: int,
    progress: Callable[[int], None],
) -> None:
    encoder, head = network
    numbers, source = np.array(sorted(labels)), Images(side.index, subject.images)
    batch = min(recipe.batch, len(numbers))
    if batch < 2:
        raise UserError("Training needs at least two labelled images. Take a larger share of the labels.")
    optimiser, schedule = _optimiser(encoder, head, recipe, batch)
    tuned = recipe.trunk_lr > 0
    encoder.requires_grad_(tuned).train(tuned)
    for epoch in range(recipe.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(numbers)
        whole = len(order) - len(order) % batch  # a batch norm needs more than the few images of an incomplete batch
        for found, images in source.take(order[:whole].tolist(), batch):
            pixels = crops(images, subject.input_size, recipe.scale, [(seed, epoch, number) for number in found])
            wanted = torch.tensor([labels[number] for number in found], device=subject.device)
            loss = F.cross_entropy(head(_encoded(encoder, pixels.to(subject.device), tuned)), wanted)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if tuned:
                commit(encoder, collect(encoder))
            if not torch.isfinite(loss):
                raise UserError(f"The loss of epoch {epoch + 1} is not finite. Use smaller rates (--head-lr, --trunk-lr).")
            progress(len(found))
        schedule.step()


def _encoded(encoder: nn.Module, pixels: Tensor, tuned: bool) -> Tensor:
    with torch.set_grad_enabled(tuned):
        features: Tensor = encoder(pixels.contiguous(memory_format=torch.channels_last))
    return features


def _optimiser(
    encoder: nn.Module, head: nn.Linear, recipe: Recipe, batch: int
) -> tuple[torch.optim.SGD, torch.optim.lr_scheduler.LRScheduler]:
    scale = batch / 256
    groups = [{"params": list(head.parameters()), "lr": recipe.head_lr * scale}]
    if recipe.trunk_lr > 0:
        groups.append({"params": list(encoder.parameters()), "lr": recipe.trunk_lr * scale})
    optimiser = torch.optim.SGD(groups, lr=recipe.head_lr * scale, momentum=0.9, weight_decay=recipe.weight_decay)
    if recipe.steps:
        return optimiser, torch.optim.lr_scheduler.MultiStepLR(optimiser, list(recipe.steps), recipe.gamma)
    return optimiser, torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.epochs)


def _test(subject: Subject, side: Side, labels: dict[int, int], network: tuple[nn.Module, nn.Linear]) -> dict[str, float]:
    encoder, head = network
    extract, source = extractor(encoder, subject.input_size, subject.device), Images(side.index, subject.images)
    scores, wanted = [], []
    for found, images in source.take(sorted(labels), 256):
        features = torch.from_numpy(extract(images, False)[OUTPUT]).to(subject.device)
        with torch.inference_mode():
            scores.append(head(features).float().cpu().numpy())
        wanted += [labels[number] for number in found]
    return accuracies(np.concatenate(scores), np.array(wanted))
