"""Tries to break a running service: stalled uploads, bombs, hostile bodies, odd images in every form, and all checks of schemathesis.

    python benchmarks/serve_fuzz.py [--odd FOLDER] [--data PATTERN] [--examples 30] [--seconds 15] [--scale 10]

One JSON line. `p99_under_stall_over_calm`: of other clients, while 40 clients have sent 19 MiB each and stall; `stall_errors`: their
answers other than 200; `stall_memory_mb`: most resident memory over that of the idle service. `undocumented`: answers that
docs/http.md does not have, internal errors among them; `accepted`: bombs and hostile bodies that were not refused; `disagree`: odd images
of which two forms say different things; `slowest_ms`: longest time of a refusal, of `slowest`. `schemathesis_failures`, `schemathesis_cases`.
`memory_mb`: growth over idle when all is over.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from bombs import BOMBS
from http_load import Load, closed_loop, unique
from serve import make_package, read_images, started
from serve_swaps import write_set

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.services import hostile  # noqa: E402
from tests.services.hostile import Hostile, as_documented  # noqa: E402
from tests.services.test_openapi import schemathesis  # noqa: E402

PORT, CLIENTS, STALLED, MIB = 8783, 4, 40, 2**20
URL = f"http://127.0.0.1:{PORT}"


@contextmanager
def peak_memory(process: psutil.Process) -> Iterator[list[int]]:
    """Yields a list whose only number is the most resident bytes so far."""
    peak, done = [process.memory_info().rss], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def stall(number: int, end: float) -> None:
    """Sends 19 of 20 MiB, and nothing more until the service hangs up. In a thread, whose sending does not hold up the clock of others."""
    time.sleep(0.02 * number)
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {20 * MIB}\r\n\r\n"
    with suppress(OSError), socket.create_connection(("127.0.0.1", PORT)) as connection:
        connection.settimeout(max(1.0, end - time.perf_counter()))
        connection.sendall(head.encode() + bytes(19 * MIB))
        connection.recv(1)


async def under_stall(images: list[bytes], seconds: float) -> tuple[Load, Load]:
    calm = await closed_loop("127.0.0.1", PORT, "/v1/embeddings", unique(images), CLIENTS, seconds)
    with ThreadPoolExecutor(STALLED) as pool:
        end = time.perf_counter() + seconds
        for number in range(STALLED):
            pool.submit(stall, number, end)
        load = await closed_loop("127.0.0.1", PORT, "/v1/embeddings", unique(images), CLIENTS, seconds)
    return calm, load


@dataclass
class Judge:
    """Sends requests and takes notes. Safe for concurrent use."""

    client: httpx.Client
    codes: dict[str, set[int]]
    undocumented: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    disagree: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, str] = (0.0, "")
    requests: int = 0

    def send(self, name: str, request: Hostile) -> str:
        begun = time.perf_counter()
        try:
            headers = {"content-type": request.kind, **request.headers}
            answer = self.client.post(request.path, content=request.body, headers=headers)
            code = as_documented(answer.status_code, answer.json(), self.codes)
        except (AssertionError, KeyError, ValueError, httpx.HTTPError) as error:
            self.undocumented.append(f"{name}: {type(error).__name__} {str(error)[:200]}")
            code = "undocumented"
        self.requests += 1
        if code != "ok":
            self.slowest = max(self.slowest, (time.perf_counter() - begun, name))
        return code

    def image(self, name: str, image: bytes) -> str:
        told = {form: self.send(f"{name} ({form})", each) for form, each in hostile.in_every_form(image).items()}
        found = set(told.values()) - ({"no_images"} if not image else set())
        if len(found) != 1:
            self.disagree.append(f"{name}: {told}")
        code = found.pop()
        self.outcomes[code] += 1
        return code

    def bomb(self, name: str, image: bytes) -> None:
        if self.image(name, image) == "ok":
            self.accepted.append(name)

    def body(self, name: str, request: Hostile) -> None:
        if self.send(name, request) == "ok":
            self.accepted.append(name)


def attack(odd: Path, scale: int) -> Judge:
    with httpx.Client(base_url=URL, timeout=120) as client, ThreadPoolExecutor(CLIENTS) as pool:
        judge = Judge(client, hostile.documented(ROOT))
        for name, make in hostile.bodies(scale):
            judge.body(name, make())
        print(f"{judge.requests} hostile bodies", file=sys.stderr, flush=True)
        for name, bomb in BOMBS.items():
            judge.bomb(name, bomb())
        print(f"{len(BOMBS)} bombs", file=sys.stderr, flush=True)
        files = sorted(path for path in odd.glob("*") if path.suffix != ".csv")
        list(pool.map(lambda path: judge.image(path.name, path.read_bytes()), files))
        print(f"{len(files)} odd images", file=sys.stderr, flush=True)
    return judge


def checked(folder: Path, examples: int) -> dict[str, Any]:
    done = schemathesis(URL, "", folder, "--max-examples", str(examples), "--phases", "examples,coverage,fuzzing,stateful")
    cases = re.search(r"(\d+) generated", done.stdout)
    failures = sum(map(int, re.findall(r"^  ❌ .*: (\d+)$", done.stdout, re.M)))
    if done.returncode:
        print(done.stdout[-8000:], done.stderr[-2000:], file=sys.stderr)
    return {
        "schemathesis_cases": int(cases[1]) if cases else 0,
        "schemathesis_failures": failures or int(done.returncode != 0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--odd", type=Path, default=ROOT.parent / "shared" / "data" / "odd-images")
    parser.add_argument("--data", default=str(ROOT.parent / "shared" / "data" / "imagenet-sample" / "*.tar"))
    parser.add_argument("--examples", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--scale", type=int, default=10)
    options = parser.parse_args()
    images, begun = read_images(options.data)[:40], time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        package = make_package(folder / "model", options.encoder, options.size)
        write_set(package, folder / "set", images)
        command = [sys.executable, "-m", "swav_platform", "serve", str(package), "--port", str(PORT), "--runtime", "torch"]
        with started([*command, "--embeddings", str(folder / "set"), "--json"], PORT, images[0]):
            process = next(child for child in psutil.Process().children() if "serve" in child.cmdline())
            asyncio.run(closed_loop("127.0.0.1", PORT, "/v1/embeddings", unique(images), CLIENTS, 3.0))
            idle = process.memory_info().rss
            with peak_memory(process) as peak:
                calm, stalled = asyncio.run(under_stall(images, options.seconds))
            judge = attack(options.odd, options.scale)
            told = checked(folder, options.examples)
            grown = process.memory_info().rss - idle
    figures = {
        "p99_under_stall_over_calm": round(stalled.quantile(0.99) / calm.quantile(0.99), 2),
        "stall_errors": len(stalled.replies) - len(stalled.good),
        "stall_memory_mb": round((peak[0] - idle) / 1e6),
        "undocumented": judge.undocumented,
        "accepted": judge.accepted,
        "disagree": judge.disagree,
        "slowest_ms": round(judge.slowest[0] * 1e3),
        "slowest": judge.slowest[1],
        "requests": judge.requests,
        "outcomes": dict(judge.outcomes.most_common()),
        **told,
        "memory_mb": round(grown / 1e6),
        "idle_mb": round(idle / 1e6),
        "seconds": round(time.perf_counter() - begun),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
