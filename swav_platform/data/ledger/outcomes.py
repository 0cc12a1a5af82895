"""The outcome of a position: a closed list with the same words everywhere."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Outcome(enum.IntEnum):
    """Stored as uint8 in a row. The numbers never change; new outcomes are appended.

    OK and FILLER are consumed as planned. Every other outcome is a reason for a replacement sample.
    """

    OK = 0
    FILLER = 1
    READ_ERROR = 2
    NOT_AN_IMAGE = 3
    UNSUPPORTED_FORMAT = 4
    TRUNCATED = 5
    CORRUPT = 6
    TOO_MANY_PIXELS = 7
    TOO_MANY_BYTES = 8
    TOO_SMALL = 9
    EXTREME_ASPECT = 10
    DECODE_TIMEOUT = 11
    DECODE_MEMORY = 12
    DECODE_CRASH = 13
    EXCLUDED = 14
    BLANK = 15

    @property
    def word(self) -> str:
        """The lower-case word that reports, logs and ledgers use."""
        return self.name.lower()

    @classmethod
    def from_word(cls, word: str) -> Outcome:
        """Raises ValueError for an unknown word."""
        try:
            return cls[word.upper()]
        except KeyError:
            raise ValueError(f"'{word}' is not an outcome; the list is {', '.join(o.word for o in cls)}") from None


@dataclass(frozen=True)
class Event:
    """A failed attempt to fill a position of a row."""

    position: int
    attempt: int  # 0: the position's own sample; 1, 2, 3: its replacement samples
    sample: int
    key: str
    shard: str
    outcome: Outcome
    detail: str
    thumbnail: bytes | None  # a small JPEG, if possible
