"""Vectors of images that were sent before, by the hash of their bytes."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from swav_platform.models.inference import Encoded


class Cache:
    """At most `max_bytes` of vectors of one model; the least recently used are dropped. Safe for concurrent use."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._known: OrderedDict[bytes, Encoded] = OrderedDict()
        self._lock = threading.Lock()

    @staticmethod
    def key(image: bytes) -> bytes:
        return hashlib.sha256(image).digest()

    def get(self, key: bytes) -> Encoded | None:
        with self._lock:
            if key not in self._known:
                return None
            self._known.move_to_end(key)
            return self._known[key]

    def put(self, key: bytes, vectors: Encoded) -> None:
        with self._lock:
            if key in self._known or _size(vectors) > self._max_bytes:
                return
            self._known[key] = vectors
            self._bytes += _size(vectors)
            while self._bytes > self._max_bytes:
                _, dropped = self._known.popitem(last=False)
                self._bytes -= _size(dropped)


def _size(vectors: Encoded) -> int:
    return sum(vector.nbytes + 200 for vector in vectors)  # 200: of the objects
