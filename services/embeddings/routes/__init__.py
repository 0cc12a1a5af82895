"""The routes, one file a question."""

from __future__ import annotations

from typing import Any

from services.embeddings.answers import ErrorAnswer

FAILURES: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorAnswer, "description": text}
    for code, text in {
        413: "Too many bytes or items",
        415: "A content type that is not taken",
        422: "A bad parameter, or the only image is bad",
        503: "Busy: try again after the seconds of Retry-After",
    }.items()
}
