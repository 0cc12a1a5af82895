"""Requests with images: one request after the other where one would be too large, and one answer made of theirs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

from swav_platform.client.exchange import Call, Got, RefusedError, Server, exchange
from swav_platform.client.images import Named
from swav_platform.errors import UsageError, UserError

Make = Callable[[Sequence[Named]], Call]
"""The call for some images."""

MOST = 32
"""Images in a request, unless the caller says otherwise. A service that takes fewer is asked for fewer."""


class Joined:
    """The answers to parts of a list of images, as one."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._head: dict[str, Any] = {}
        self._refused: RefusedError | None = None
        self._count = 0
        self.items: list[dict[str, Any]] = []

    def ask(self, make: Make, part: Sequence[Named]) -> Generator[Call | float, Got, list[dict[str, Any]]]:
        """The items of a part, numbered over all parts. A part that is too large for the service is halved.

        Raises UserError if the service takes another model meanwhile, since the answers would not be comparable.
        """
        try:
            answer = yield from exchange(make(part), self._server)
        except RefusedError as refused:
            if len(part) > 1 and refused.status == 413:
                half = len(part) // 2
                first = yield from self.ask(make, part[:half])
                return first + (yield from self.ask(make, part[half:]))
            if len(part) > 1 or refused.status not in (413, 422) or refused.error["code"] == "invalid_request":
                raise
            self._refused = refused  # the only image of a request is bad: the error of the request is that of its item
            answer = {"items": [{"index": 0, "name": part[0][0], "error": refused.error}]}
        else:
            model = self._head.get("model", answer["model"])
            if model != answer["model"]:
                raise UserError(f"{self._server.base_url} has changed its model from {model} to {answer['model']}. Start again.")
            self._head = answer
        items = [{**item, "index": self._count + item["index"]} for item in answer["items"]]
        self._count += len(part)
        return items

    def whole(self) -> dict[str, Any]:
        """One answer with all items. Raises RefusedError if no image was good, UsageError if there was none."""
        if self._head:
            return {**self._head, "items": self.items}
        if self._refused is not None:
            raise self._refused
        raise UsageError("The list of images is empty. Pass at least one image.")
