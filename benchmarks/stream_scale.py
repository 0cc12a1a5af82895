"""Measures what 10^9 images in 10^5 shards cost before the first row: time, memory, requests and bytes.

A local web server serves 100,000 shard URLs from ten tars. The index claims 10,000 samples per shard by repeating the tar's
samples, and its equal files are hard links. The same is measured with ten shards, and the result contains ratios of both.
Run it from the project's folder. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import http.server
import io
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import obstore  # noqa: F401  # loaded before the probe measures its memory
import pyarrow as pa
import pyarrow.parquet as pq

from swav_platform.config import Data
from swav_platform.data.datasets import plan_of
from swav_platform.data.index.lookup import Index
from swav_platform.data.index.manifest import FORMAT, GROUP, SHARDS, Shard, ShardFile, ShardTable
from swav_platform.data.index.shard import SCHEMA, Skipped, read_shard
from swav_platform.data.index.version_writer import make_current
from swav_platform.data.samples import ReadCounts, read_samples

TARS, CLAIMED, OF_TAR = 10, 10_000, 1_000  # tars; samples per shard in the index; samples per tar
OF_PART = 100  # shards per file of the index


def probe(folder: Path) -> dict[str, float]:
    """Opens the index, plans and reads the first row. Runs in a process of its own, so that memory is that of this work."""
    before = _resident_mb()
    began = time.perf_counter()
    index = Index.open(folder)
    plan = plan_of(index, Data(row_size=64), 1)
    index.lines(plan.row(0).samples)
    planned = time.perf_counter() - began
    chunk = np.concatenate([plan.row(k).samples for k in range(*plan.chunks(0, 64)[0])])  # what one data task reads at once
    counts = ReadCounts()
    contents = read_samples(index.lines(chunk), counts=counts)
    first = time.perf_counter() - began
    unread = [content for content in contents.values() if not isinstance(content, bytes)]
    assert not unread, unread[0]

    def seconds_near(row: int) -> float:
        times = []
        for step in range(20):
            start = time.perf_counter()
            plan.row(row + step * 16)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    seconds_near(3 * 10**6)  # warm-up
    found = {"samples": index.samples, "shards": len(index.shards), "plan_first_row_s": planned, "first_row_s": first}
    found |= {"memory_mb": _resident_mb() - before, "requests": counts.requests, "bytes": counts.bytes}
    return found | {"near_row_s": seconds_near(10**3), "far_row_s": seconds_near(10**7)}


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def noise(generator: np.random.Generator) -> bytes:
    """8 to 16 kB of random bytes in place of an image."""
    return generator.bytes(int(generator.integers(8_000, 16_000)))


def make_tars(image: Callable[[np.random.Generator], bytes] = noise) -> list[bytes]:
    generator = np.random.default_rng(0)
    tars = []
    for _ in range(TARS):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for number in range(OF_TAR):
                content = image(generator)
                info = tarfile.TarInfo(f"{number:04d}.jpg")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        tars.append(buffer.getvalue())
    return tars


class Server(http.server.ThreadingHTTPServer):
    """Serves tar n % 10 as shard n. `asked` counts requests and bytes of response bodies."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, tars: list[bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tars, self.asked, self.lock = tars, [0, 0], threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def url(self, number: int) -> str:
        return f"http://127.0.0.1:{self.server_port}/shards/{number:06d}.tar"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, body: bool) -> None:
        number = int(re.search(r"(\d+)\.tar$", self.path)[1]) % TARS  # type: ignore[index]
        tar = self.server.tars[number]
        first, end = 0, len(tar)
        if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, end = int(asked[1]), min(end, int(asked[2]) + 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(tar)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(end - first))
        self.send_header("ETag", f'"tar-{number}"')
        self.end_headers()
        with self.server.lock:
            self.server.asked[0] += 1
            self.server.asked[1] += (end - first) * body
        if body:
            self.wfile.write(tar[first:end])


def write_index(out: Path, server: Server, shards: int) -> Path:
    """Writes the index of `shards` shards as if each tar had 10,000 samples."""
    folder = out / "version-scale"
    folder.mkdir(parents=True)
    found = [read_shard(server.url(number), number, None).lines for number in range(TARS)]
    claimed = [pa.concat_tables([lines] * (CLAIMED // OF_TAR)) for lines in found]
    parts: list[dict[str, Any]] = []
    for first in range(0, shards, OF_PART):
        count = min(OF_PART, shards - first)
        name = f"part-{len(parts):05d}.parquet"
        if first == 0:
            tables = [claimed[n % TARS].set_column(0, "shard", pa.array(np.full(CLAIMED, n, np.int32))) for n in range(count)]
            pq.write_table(pa.concat_tables(tables).cast(SCHEMA), folder / name, row_group_size=GROUP, compression="zstd")
        else:
            os.link(folder / "part-00000.parquet", folder / name)
        parts.append({"file": name, "samples": count * CLAIMED, "first_shard": first})
    sizes = [len(tar) for tar in server.tars]
    ShardTable.of(
        Shard(ShardFile(server.url(n), sizes[n % TARS], f'"tar-{n % TARS}"'), CLAIMED, bytes(16), False, Skipped())
        for n in range(shards)
    ).write(folder / SHARDS)
    manifest = {"format": FORMAT, "digest": f"{shards:032x}", "version": folder.name, "label": None, "excluded": 0, "sources": []}
    manifest |= {"samples": shards * CLAIMED, "shards": shards, "parts": parts}
    make_current(folder, manifest)
    make_current(out, manifest)
    return out


Pair = tuple[dict[str, float], dict[str, float]]
"""Measurements for ten shards and for many."""


def in_turns(command: Sequence[str], server: Server, out: Path, shards: int, rounds: int) -> list[Pair]:
    """Runs `command INDEX` alternately for ten shards and for many. The last line of its output is a JSON object."""
    few, many = write_index(out / "few", server, TARS), write_index(out / "many", server, shards)
    return [(_probe(command, few, server), _probe(command, many, server)) for _ in range(rounds)]


def _probe(command: Sequence[str], index: Path, server: Server) -> dict[str, float]:
    server.asked[:] = [0, 0]
    alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([*command, str(index)], stdout=subprocess.PIPE, text=True, check=False, env=alone)
    if done.returncode:
        raise SystemExit(done.returncode)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found | {"requests": server.asked[0], "bytes": server.asked[1]}  # counted by the server


def middle(pairs: Sequence[Pair], which: int, name: str) -> float:
    return statistics.median(pair[which][name] for pair in pairs)


def traffic(pairs: Sequence[Pair]) -> dict[str, float]:
    """Requests and bytes with many shards, and their ratios to those with ten."""
    names = ("requests", "bytes")
    ratios = {f"{name}_many_over_few": round(middle(pairs, 1, name) / middle(pairs, 0, name), 3) for name in names}
    return ratios | {name: int(middle(pairs, 1, name)) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="keep the index files in this folder")
    parser.add_argument("--probe", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.probe:
        print(json.dumps(probe(given.probe)))
        return
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, __file__, "--probe"]
        pairs = in_turns(command, Server(make_tars()), given.keep or Path(place), given.shards, given.rounds)
    answer = {
        "shards": given.shards,
        "samples": int(pairs[0][1]["samples"]),
        "plan_first_row_s": round(middle(pairs, 1, "plan_first_row_s"), 4),
        "first_row_s": round(middle(pairs, 1, "first_row_s"), 4),
        "first_row_s_ten_shards": round(middle(pairs, 0, "first_row_s"), 4),
        "memory_mb": round(max(many["memory_mb"] for _, many in pairs), 1),
        **traffic(pairs),
        "far_row_over_near_row": round(statistics.median(many["far_row_s"] / many["near_row_s"] for _, many in pairs), 3),
        "rounds": given.rounds,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
