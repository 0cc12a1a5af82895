"""What a data set of 10^9 images in 10^5 shards costs before the first row: time, memory, requests, bytes.

A web server on this machine answers 100,000 shard addresses from ten tars; index files say that each holds 10,000 samples
(the samples that a tar really has, over and over). Equal parts of the index are one file under many names. The same is done
with ten shards, and everything is told as a ratio. Run it from the project's folder; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import http.server
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from swav_platform.data.index.manifest import FORMAT, GROUP, SHARDS, Shard, ShardFile, ShardTable
from swav_platform.data.index.shard import SCHEMA, Skipped, read_shard
from swav_platform.data.index.version_writer import make_current

TARS, CLAIMED, OF_TAR = 10, 10_000, 1_000  # tars; samples that the index claims of a shard; samples that a tar has
OF_PART = 100  # shards whose lines lie in one file of the index

PROBE = """
import json, resource, sys, time
import numpy as np, pyarrow.parquet, obstore
from swav_platform.data import datasets, read
from swav_platform.config import Data
def resident(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6
before = resident()
started = time.perf_counter()
index = datasets.Index.open(sys.argv[1])
plan = datasets.plan_of(index, Data(row_size=64), 1)
row = plan.row(0)
lines = index.lines(row.samples)
planned = time.perf_counter() - started
chunk = np.concatenate([plan.row(k).samples for k in range(*plan.chunks(0, 64)[0])])  # what a data task reads at once
counts = read.ReadCounts()
found = read.read_samples(index.lines(chunk), counts=counts)
first = time.perf_counter() - started
assert all(isinstance(data, bytes) for data in found.values()), next(d for d in found.values() if not isinstance(d, bytes))
def far(k):
    times = []
    for step in range(20):
        begun = time.perf_counter(); plan.row(k + step * 16); times.append(time.perf_counter() - begun)
    return float(np.median(times))
far(3 * 10**6)
print(json.dumps({"samples": index.samples, "shards": len(index.shards), "plan_first_row_s": planned, "first_row_s": first,
    "memory_mb": resident() - before, "requests": counts.requests, "bytes": counts.bytes, "near_row_s": far(10**3), "far_row_s": far(10**7)}))
"""


def noise(chance: np.random.Generator) -> bytes:
    return chance.bytes(int(chance.integers(8_000, 16_000)))


def make_tars(image: Callable[[np.random.Generator], bytes] = noise) -> list[bytes]:
    chance = np.random.default_rng(0)
    tars = []
    for _ in range(TARS):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for number in range(OF_TAR):
                content = image(chance)
                info = tarfile.TarInfo(f"{number:04d}.jpg")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        tars.append(buffer.getvalue())
    return tars


class Server(http.server.ThreadingHTTPServer):
    """Shard n is tar n % 10. `asked`: requests and bytes of bodies."""

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
    """The files that indexing would leave, were there 10,000 samples in each tar."""
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
"""What a command found for ten shards, and for many."""


def in_turns(command: Sequence[str], server: Server, out: Path, shards: int, rounds: int) -> list[Pair]:
    """Runs `command INDEX` in processes of their own, whose last line is a JSON object; indexes are left in `out`."""
    few, many = write_index(out / "few", server, TARS), write_index(out / "many", server, shards)
    return [(_probe(command, few, server), _probe(command, many, server)) for _ in range(rounds)]


def _probe(command: Sequence[str], index: Path, server: Server) -> dict[str, float]:
    server.asked[:] = [0, 0]
    alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([*command, str(index)], stdout=subprocess.PIPE, text=True, check=False, env=alone)
    if done.returncode:
        raise SystemExit(done.returncode)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found | {"requests": server.asked[0], "bytes": server.asked[1]}  # as the server counted them


def middle(pairs: Sequence[Pair], which: int, name: str) -> float:
    return statistics.median(pair[which][name] for pair in pairs)


def traffic(pairs: Sequence[Pair]) -> dict[str, float]:
    """Requests and bytes: for many shards over those for ten, and as they are."""
    names = ("requests", "bytes")
    ratios = {f"{name}_many_over_few": round(middle(pairs, 1, name) / middle(pairs, 0, name), 3) for name in names}
    return ratios | {name: int(middle(pairs, 1, name)) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="leave the index files in this folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-c", PROBE]
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
