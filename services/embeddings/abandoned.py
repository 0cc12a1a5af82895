"""Drops requests whose clients are gone: their images leave the queue, so that others do not wait for answers to nobody."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Abandoned:
    """ASGI middleware. Once a body is complete, it watches for the end of the connection and then cancels the request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        complete, gone = asyncio.Event(), asyncio.Event()

        async def watched() -> Message:
            if complete.is_set():
                await gone.wait()
                return {"type": "http.disconnect"}
            message = await receive()
            if message["type"] == "http.disconnect":
                gone.set()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                complete.set()
            return message

        async def watch() -> None:
            await complete.wait()
            while not gone.is_set():
                if (await receive())["type"] == "http.disconnect":
                    gone.set()

        request = asyncio.ensure_future(self.app(scope, watched, send))
        watcher = asyncio.create_task(watch())
        try:
            await asyncio.wait({request, watcher}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watcher.cancel()
            if not request.done():
                request.cancel()
        with suppress(asyncio.CancelledError):
            await request
