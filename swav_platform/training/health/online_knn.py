"""kNN accuracy while a run trains: the features of logged steps are classified by those of earlier ones."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
import xxhash
from torch import Tensor

if TYPE_CHECKING:
    from swav_platform.rows.layout import Row

TAGS = 4  # columns
_HALF = 2**24  # integers below it are exact in float32
_NEIGHBOURS, _TEMPERATURE = 20, 0.1  # Wu et al. 2018, section 3.4
_BANK = 4096  # features
_WINDOW = 1024  # classified images that the accuracy is the mean of
_FEWEST = 512  # features without which nothing is classified


def tags(row: Row) -> Tensor:
    """float32 [R, TAGS]: the label and the number of each sample, in two halves each. The label is the folder of its key, 0 without."""
    folders = [key.rpartition("/")[0] for key in row.key]
    labels = [xxhash.xxh3_64_intdigest(folder.encode()) % (_HALF**2 - 1) + 1 if folder else 0 for folder in folders]
    numbers = [
        (label // _HALF, label % _HALF, *divmod(int(sample), _HALF)) for label, sample in zip(labels, row.sample, strict=True)
    ]
    return torch.tensor(numbers, dtype=torch.float32)


class OnlineKnn:
    """Features of the last logged steps and their labels. Classifies in a thread, so an accuracy is reported one logged step late."""

    def __init__(self) -> None:
        self._bank: tuple[Tensor, Tensor, Tensor] | None = None  # features [n, F], labels [n], samples [n]
        self._right: deque[bool] = deque(maxlen=_WINDOW)
        self._thread = ThreadPoolExecutor(1, "online-knn")
        self._running: Future[None] | None = None

    def add(self, features: Tensor, tags: Tensor) -> dict[str, float]:
        """Classifies images, then keeps them. Returns the accuracy in percent that the steps before gave, if they gave one.

        features: [n, F]. tags: [n, TAGS].
        """
        if self._running is not None:
            self._running.result()
        found = {"health/knn": 100.0 * sum(self._right) / len(self._right)} if self._right else {}
        whole = tags.long()
        self._running = self._thread.submit(
            self._classify, F.normalize(features.float()), whole[:, 0] * _HALF + whole[:, 1], whole[:, 2] * _HALF + whole[:, 3]
        )
        return found

    def _classify(self, features: Tensor, labels: Tensor, samples: Tensor) -> None:
        known = labels > 0
        features, labels, samples = features[known], labels[known], samples[known]
        if self._bank is not None and len(self._bank[0]) >= _FEWEST and len(features):
            self._right.extend((_nearest_label(features, samples, *self._bank) == labels).tolist())
        bank = self._bank or (features[:0], labels[:0], samples[:0])
        self._bank = (
            torch.cat([bank[0], features])[-_BANK:],
            torch.cat([bank[1], labels])[-_BANK:],
            torch.cat([bank[2], samples])[-_BANK:],
        )


def _nearest_label(features: Tensor, samples: Tensor, bank: Tensor, labels: Tensor, of_bank: Tensor) -> Tensor:
    """int64 [n]: the weighted vote of the nearest features of other images."""
    cosines = (features @ bank.T).masked_fill(samples[:, None] == of_bank, -2.0)
    near, place = cosines.topk(min(_NEIGHBOURS, len(bank)))
    names, classes = labels.unique(return_inverse=True)
    weights = ((near - near[:, :1]) / _TEMPERATURE).exp() * (near > -1.5)
    votes = torch.zeros(len(features), len(names)).scatter_add_(1, classes[place], weights)
    return torch.index_select(names, 0, votes.argmax(1))
