"""Kills a process again and again while it adds, deletes and compacts, and looks for what it had acknowledged.

    python benchmarks/items.py [--rounds 50]

Prints one JSON line: `lost` counts acknowledged additions that were not found, `resurrected` acknowledged deletions that were
undone, `wrong` items with another key or vector than was added. All three must be 0.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from services.embeddings.search.items import Items
from services.embeddings.search.log import Item

SET, FIRST, DIM = "set", 1000, 8
ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Acknowledged:
    """What the process has said over all rounds. tried: deletions that it began, which may be done without being acknowledged."""

    added: dict[int, str] = field(default_factory=dict)
    deleted: set[int] = field(default_factory=set)
    tried: set[int] = field(default_factory=set)
    compactions: int = 0

    def hear(self, line: str) -> None:
        what, _, rest = line.rstrip("\n").partition(" ")
        if what == "add":
            number, _, key = rest.partition(" ")
            self.added[int(number)] = key
        elif what == "compacted":
            self.compactions += 1
        else:
            (self.tried if what == "try" else self.deleted).add(int(rest))


def item(key: str) -> Item:
    """An item whose vector and thumbnail follow from its key."""
    vector = np.random.default_rng(list(key.encode())).normal(size=DIM).astype(np.float32)
    return Item(0, key, "label", 3, 0.5, key.encode() * 20, vector / np.linalg.norm(vector))


def say(what: str) -> None:
    os.write(1, f"{what}\n".encode())  # at once, also from two threads


def child(folder: Path, seed: int) -> None:
    """Adds, deletes and compacts without end, and says what was acknowledged."""
    rng, items = random.Random(seed), Items(folder, SET, FIRST, DIM)
    living = [number for number in range(FIRST, FIRST + 1_000_000) if items.get(number)]
    stored = sorted(set(range(FIRST)) - items.deleted)

    def compact() -> None:
        while True:
            items.compact()
            say("compacted")

    threading.Thread(target=compact, daemon=True).start()
    for turn in range(10**9):
        if rng.random() < 0.5 and len(living) > 5:
            number = living.pop(rng.randrange(len(living)))
        elif rng.random() < 0.1 and stored:
            number = stored.pop(rng.randrange(len(stored)))
        else:
            keys = [f"{seed}-{turn}-{place}" for place in range(rng.randint(1, 3))]
            for number, key in zip(items.add([item(key) for key in keys]), keys, strict=True):
                living.append(number)
                say(f"add {number} {key}")
            continue
        say(f"try {number}")
        items.delete(number)
        say(f"delete {number}")


def kill_once(folder: Path, seed: int, seconds: float, heard: Acknowledged) -> None:
    """Runs the process for so many seconds after its first acknowledgement and kills it."""
    command = [sys.executable, __file__, "--child", str(folder), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=_environment()) as process:
        assert process.stdout is not None
        heard.hear(process.stdout.readline())
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        for line in process.stdout:
            if line.endswith("\n"):
                heard.hear(line)


def check(folder: Path, heard: Acknowledged) -> dict[str, int]:
    """What a new process would find."""
    items = Items(folder, SET, FIRST, DIM)
    found = {number: items.get(number) for number in heard.added}
    wanted = {number: key for number, key in heard.added.items() if number not in heard.tried}
    lost = [number for number in wanted if found[number] is None]
    back = [number for number in heard.deleted if (number < FIRST and number not in items.deleted) or found.get(number)]
    wrong = []
    for number, key in wanted.items():
        if (kept := found[number]) is not None:
            made = item(key)
            [[(nearest, _)]] = items.nearest(made.vector[None], 1)
            same = kept.key == key and kept.thumbnail == made.thumbnail and nearest.id == number
            wrong += [] if same and np.array_equal(kept.vector, made.vector) else [number]
    return {"lost": len(lost), "resurrected": len(back), "wrong": len(wrong)}


def rounds(count: int, folder: Path, seed: int = 0) -> dict[str, int]:
    heard, told = Acknowledged(), {"lost": 0, "resurrected": 0, "wrong": 0}
    chance = random.Random(seed)
    for number in range(count):
        kill_once(folder, number, chance.uniform(0.0, 0.5), heard)
        found = check(folder, heard)
        told = {name: told[name] + found[name] for name in told}
        print(f"round {number}: {len(heard.added)} added, {len(heard.deleted)} deleted, {found}", file=sys.stderr, flush=True)
    return {
        "rounds": count,
        **told,
        "added": len(heard.added),
        "deleted": len(heard.deleted),
        "compactions": heard.compactions,
    }


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(Path(options.child[0]), int(options.child[1]))
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        figures = rounds(options.rounds, Path(folder))
    print(json.dumps({**figures, "seconds": round(time.monotonic() - began, 1)}))


if __name__ == "__main__":
    main()
