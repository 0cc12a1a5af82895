"""Reads shard lists of wids and webdataset (https://github.com/webdataset/webdataset, wids-shard-index-v1)."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from swav_platform.data.index.lookup import Index
from swav_platform.errors import UsageError


def shards_of_wids(path: str | Path) -> list[tuple[str, int | None]]:
    """Path or URL of each shard, and its number of samples according to the list.

    Relative URLs start at the list's `base`, or at its folder. Raises UsageError if the file is not a shard list.
    """
    path = Path(path).expanduser()
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        found = [shard for listed in _lists(tree) for shard in _shards(listed, path.absolute().parent)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} can't be read as a wids index ({type(error).__name__}: {error}). It must be JSON with a `shardlist` of "
            f"objects with `url` and `nsamples`."
        ) from None
    if not found:
        raise UsageError(f"The wids index {path} lists no shard: pass one whose `shardlist` is not empty.")
    return found


def _lists(tree: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tree.get("datasets", [tree])
    return found


def _shards(listed: dict[str, Any], folder: Path) -> list[tuple[str, int | None]]:
    base = str(listed.get("base") or listed.get("base_path") or folder)
    return [(_resolved(str(shard["url"]), base), shard.get("nsamples")) for shard in listed["shardlist"]]


def _resolved(url: str, base: str) -> str:
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:", url):
        return url.removeprefix("file://") if url.startswith("file://") else url
    return f"{base.rstrip('/')}/{url}" if "://" in base else os.path.abspath(os.path.join(base, url))


def compare(index: Index, listed: list[tuple[str, int | None]]) -> list[str]:
    """One message per shard whose number of samples differs between the index and the list."""
    expected = {url: count for url, count in listed if count is not None}
    found = ((file.url, int(index.shards.samples[number])) for number, file in enumerate(index.shards.files()) if expected)
    return [
        f"{url} has {has:,} images; the wids index says {expected[url]:,}." for url, has in found if expected.get(url, has) != has
    ]
