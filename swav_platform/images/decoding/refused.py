"""The exception for an image that gives no sample, and the check of its size."""

from __future__ import annotations

from swav_platform.config import ImagePolicy
from swav_platform.data.ledger.outcomes import Outcome


class Refused(Exception):
    """An image that gives no sample: the outcome, and a detail about the cause."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(outcome, detail)
        self.outcome = outcome
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.outcome.word}: {self.detail}"


def check_size(width: int, height: int, policy: ImagePolicy) -> None:
    """Raises Refused for an image of a size outside the policy."""
    if width * height >= policy.max_pixels:
        raise Refused(Outcome.TOO_MANY_PIXELS, f"{width}x{height} pixels, max_pixels is {policy.max_pixels:,}")
    if min(width, height) < policy.min_side:
        raise Refused(Outcome.TOO_SMALL, f"{width}x{height} pixels, min_side is {policy.min_side}")
    if max(width, height) > policy.max_aspect * min(width, height):
        raise Refused(Outcome.EXTREME_ASPECT, f"{width}x{height} pixels, max_aspect is {policy.max_aspect:g}")
