"""Counts copies and odd-looking images during the first epoch. Data tasks hash each image and judge its look."""

from __future__ import annotations

import logging
import pickle
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from swav_platform.data.ledger.contents import FOLDER, Contents, read_contents, share_of, write_contents
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.images.look import WORDS, Look
from swav_platform.methods.comm import Comm
from swav_platform.runs.folder import RunFolder
from swav_platform.training.collectives import gather_bytes

if TYPE_CHECKING:
    from swav_platform.rows.layout import Row

log = logging.getLogger("swav")

_EMPTY = Contents(np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.uint8))
_EARLY, _FEWEST = 0.1, 100  # the warning comes before the epoch ends if a tenth of so many images is odd
_OUTSIDE = 2**16  # images that are recorded although their hash is not in the part that is compared: odd ones and frequent ones


class FirstEpoch:
    """The contents of the first epoch. Rank 0 holds those of all ranks; the others hold theirs since the last `gather`."""

    def __init__(self, folder: RunFolder, samples: int, comm: Comm) -> None:
        self.samples, self.share, self._comm = samples, share_of(samples), comm
        self._storage, self._run = folder.storage, folder.name
        self._new: list[tuple[np.ndarray, ...]] = []
        self._known = self._unsaved = _EMPTY
        self._outside, self._told = 0, False
        self._warned = set[str]()

    def open(self, positions: int) -> None:
        """Starts at that position. Rank 0 reads what is known of the epoch so far."""
        self._told = positions >= self.samples
        if self._comm.rank:
            return
        if positions:
            self._known = read_contents(self._storage)
        else:  # left by an attempt without a checkpoint, perhaps with other data
            self._storage.delete(list(self._storage.entries(f"{FOLDER}/")))

    @property
    def copied(self) -> int:
        """Number of images that have the same bytes as others, as far as rank 0 knows."""
        return self._known.copied

    def rows(self, rows: Sequence[Row]) -> None:
        """Notes a rank's rows of a finished step."""
        for row in rows:
            if not len(row.content) or row.position[0] >= self.samples:
                continue
            known = (row.content != 0) & (row.position < self.samples) & (row.outcome != Outcome.FILLER)
            names = [xxhash.xxh3_64_intdigest(f"{row.shard[slot]}\t{row.key[slot]}".encode()) for slot in np.flatnonzero(known)]
            self._new.append((row.content[known], np.array(names, np.uint64), row.sample[known], row.look[known]))

    def gather(self) -> None:
        """Brings what is new to rank 0. Called on all ranks; does nothing after the first epoch has been told."""
        if self._told:
            return
        columns = [np.concatenate(parts) for parts in zip(_EMPTY.columns, *self._new, strict=True)]
        self._new = []
        parts = [pickle.loads(part) for part in gather_bytes(pickle.dumps(columns), self._comm)]  # from ranks of this run
        if self._comm.rank == 0:
            new = self._compared(Contents.of([np.concatenate(column) for column in zip(*parts, strict=True)]))
            self._unsaved, self._known = self._unsaved + new, self._known + new

    def ready(self, steps: int) -> Callable[[], None]:
        """Returns the function that saves what is new, which is called before the checkpoint of `steps` steps (rank 0)."""
        new, self._unsaved = self._unsaved, _EMPTY

        def save() -> None:
            if len(new):
                write_contents(self._storage, steps, new)

        return save

    def tell(self, positions: int, last: bool) -> None:
        """Warns of copies and of odd images (rank 0): at the end of the first epoch or of the run; earlier, if they are many."""
        ended = last or positions >= self.samples
        if self._comm.rank == 0 and not self._told:
            compared = len(self._known)
            for kind, count, text in self._remarks():
                many = compared >= _FEWEST and count >= _EARLY * compared
                if count and (ended or (many and kind not in self._warned)):
                    so_far = "" if positions >= self.samples else " so far"
                    part = f" (one image of {self.share} is examined)" if self.share > 1 else ""
                    log.warning(f"{count:,} of {compared:,} images{so_far}{part} {text}")
                    self._warned.add(kind)
        self._told = self._told or positions >= self.samples

    def _remarks(self) -> Iterator[tuple[str, int, str]]:
        """Kind, number of images, and the rest of a sentence."""
        listed = (
            f"List the copies with `swav ledger {shlex.quote(self._run)} --duplicates`; `swav index --exclude` takes that list."
        )
        yield "copies", self.copied, f"have the same bytes as others. {listed}"
        narrow = bool(np.count_nonzero(self._known.look & Look.NARROW))
        for look in Look:
            deeper = narrow and look in (Look.NARROW, Look.BLACK)
            cure = (
                "set data.images.levels, to [0, 4095] for 12 bits"
                if deeper
                else "data.images.blank=reject leaves such images out"
            )
            shown = f"See them with `swav ledger {shlex.quote(self._run)} --html FILE`; {cure}."
            yield WORDS[look], int(np.count_nonzero(self._known.look & look)), f"{WORDS[look]}. {shown}"

    def _compared(self, contents: Contents) -> Contents:
        """Without images outside of the part that is compared, except some that look odd or that are frequent."""
        if self.share == 1:
            return contents
        inside = contents.content % np.uint64(self.share) == 0
        frequent = np.repeat(contents.sizes * 50 > len(contents), contents.sizes)
        outside = np.flatnonzero(~inside & (frequent | (contents.look != 0)))[: max(0, _OUTSIDE - self._outside)]
        self._outside += len(outside)
        inside[outside] = True
        return Contents(*(column[inside] for column in contents.columns))
