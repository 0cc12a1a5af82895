"""Whether a local shard is still the one that was indexed. Remote shards have an ETag, which each request compares."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain

from swav_platform.data.index.lookup import Index
from swav_platform.data.storage.cache import is_command
from swav_platform.data.storage.objects import is_remote
from swav_platform.data.storage.ranges import LocalFile, probe

_THREADS = 16


def is_fresh(file: LocalFile, size: int, version: str, known: bytes | None) -> bool | None:
    """Whether an open shard has the size and modification time of the index.

    A shard that was copied or touched has another time; then the hash `known` of some of its bytes decides. None: without it.
    """
    if size >= 0 and file.size != size:
        return False
    if file.version == version or not version:
        return True
    return None if known is None else _has(file, known)


def _has(file: LocalFile, known: bytes) -> bool:
    key = (*file.identity, file.size, file.version)
    if key not in (found := _probes()):
        if len(found) >= _REMEMBERED:
            found.clear()
        found[key] = probe(file)
    return found[key] == known


_REMEMBERED = 4096  # shards of another time, whose hash is not computed on each open


@lru_cache(1)
def _probes() -> dict[tuple[object, ...], bytes]:
    return {}


def changed_shards(index: Index) -> list[str]:
    """Names of the local shards that have changed since they were indexed. A shard that can't be opened is not judged."""
    files = index.shards.files()

    def changed(number: int) -> Iterator[str]:
        shard = files[number]
        if is_remote(shard.url) or is_command(shard.url) or index.shards.whole[number]:
            return
        try:
            with LocalFile(shard.url) as file:
                if is_fresh(file, shard.size, shard.version, index.shards.probe(number)) is False:
                    yield index.shards.names[number]
        except OSError:
            return

    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda number: list(changed(number)), range(len(files)))
        return list(dict.fromkeys(chain.from_iterable(found)))
