"""What became of a position: a closed list, the same words everywhere."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Outcome(enum.IntEnum):
    """Stored as uint8 in a row. The numbers are for ever: new reasons go to the end.

    OK and FILLER are consumed as planned; every other one is a reason that leads to a stand-in.
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

    @property
    def word(self) -> str:
        """The lower-case word that reports, logs and ledgers use."""
        return self.name.lower()

    @classmethod
    def from_word(cls, word: str) -> Outcome:
        """Raises ValueError for a word that is not on the list."""
        try:
            return cls[word.upper()]
        except KeyError:
            raise ValueError(f"'{word}' is not an outcome; the list is {', '.join(o.word for o in cls)}") from None


@dataclass(frozen=True)
class Event:
    """One try that failed: a sample that could not fill its place in a row."""

    position: int
    attempt: int  # 0: the position's own sample; 1, 2, 3: its stand-ins
    sample: int
    key: str
    shard: str
    outcome: Outcome
    detail: str
    thumbnail: bytes | None  # a small JPEG, where one can be had
