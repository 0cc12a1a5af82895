"""Load for the benchmarks of the service: a small HTTP client on raw connections, in a closed and in an open loop."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple


class Reply(NamedTuple):
    status: int  # 0: the connection broke
    seconds: float
    body: bytes


class Connection:
    """One HTTP/1.1 connection, opened when it is needed and kept alive."""

    def __init__(self, host: str, port: int) -> None:
        self._place = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes, kind: str = "image/jpeg") -> Reply:
        started = time.perf_counter()
        try:
            status, answer = await self._ask(path, body, kind)
        except (OSError, asyncio.IncompleteReadError, ValueError, IndexError):
            self.close()
            status, answer = 0, b""
        return Reply(status, time.perf_counter() - started, answer)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None

    async def _ask(self, path: str, body: bytes, kind: str) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._place, limit=2**20)
        reader, writer = self._streams
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        answer = await reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection") == "close":
            self.close()
        return int(lines[0].split()[1]), answer


def unique(images: list[bytes]) -> Iterator[bytes]:
    """The JPEGs over and over, each with another comment: no cache knows them."""
    for number in count(random.getrandbits(48)):
        image = images[number % len(images)]
        yield image[:2] + b"\xff\xfe\x00\x0a" + number.to_bytes(8, "big") + image[2:]


@dataclass
class Load:
    """What came back in `seconds`."""

    seconds: float
    replies: list[Reply] = field(default_factory=list)

    @property
    def good(self) -> list[float]:
        """Latencies of the answers with status 200."""
        return sorted(reply.seconds for reply in self.replies if reply.status == 200)

    @property
    def rate(self) -> float:
        return len(self.good) / self.seconds

    def quantile(self, share: float) -> float:
        found = self.good
        return found[min(len(found) - 1, int(share * len(found)))] if found else float("nan")


async def closed_loop(host: str, port: int, path: str, bodies: Iterator[bytes], clients: int, seconds: float) -> Load:
    """`clients` connections that each send the next image when the last is answered. A refused client waits half a second."""
    load, start = Load(seconds), time.perf_counter()

    async def client() -> None:
        connection = Connection(host, port)
        while time.perf_counter() - start < seconds:
            reply = await connection.post(path, next(bodies))
            if time.perf_counter() - start < seconds:
                load.replies.append(reply)
            if reply.status != 200:
                await asyncio.sleep(0.5)
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return load


async def open_loop(
    host: str, port: int, path: str, bodies: Iterator[bytes], rate: float, seconds: float, draw: Callable[[float], float]
) -> Load:
    """Requests at times that do not depend on the answers. draw: the next gap, from the rate."""
    load, waiting, idle = Load(seconds), set[asyncio.Task[None]](), list[Connection]()

    async def one() -> None:
        connection = idle.pop() if idle else Connection(host, port)
        load.replies.append(await connection.post(path, next(bodies)))
        idle.append(connection)

    started, due = time.perf_counter(), 0.0
    while (due := due + draw(rate)) < seconds:
        await asyncio.sleep(max(0.0, started + due - time.perf_counter()))
        waiting.add(task := asyncio.create_task(one()))
        task.add_done_callback(waiting.discard)
    await asyncio.gather(*waiting)
    for connection in idle:
        connection.close()
    return load
