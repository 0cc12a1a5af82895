from __future__ import annotations

import pytest

from swav_platform.data.ledger.outcomes import Outcome

WORDS = """ok filler read_error not_an_image unsupported_format truncated corrupt too_many_pixels too_many_bytes too_small
extreme_aspect decode_timeout decode_memory decode_crash excluded blank"""


def test_words_and_numbers_never_change() -> None:
    assert {outcome.word: int(outcome) for outcome in Outcome} == {word: n for n, word in enumerate(WORDS.split())}


def test_from_word() -> None:
    assert all(Outcome.from_word(outcome.word) is outcome for outcome in Outcome)
    with pytest.raises(ValueError, match="'fine' is not an outcome"):
        Outcome.from_word("fine")
