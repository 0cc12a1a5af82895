"""Each odd, broken and hostile file ends in pixels or in a reason, quickly."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import features

from swav_platform.config import ImagePolicy
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.images.decoding.decode import decode, thumbnail
from swav_platform.images.decoding.pillow import has_codec
from swav_platform.images.decoding.refused import Refused

ANY_SHAPE = ImagePolicy(min_side=1, max_aspect=1e9)
FULL = has_codec("AVIF") and all(features.check(part) for part in ("webp", "libtiff", "littlecms2"))


def result(data: bytes) -> np.ndarray | Refused:
    try:
        return decode(data, ANY_SHAPE)
    except Refused as refused:
        return refused


@pytest.mark.filterwarnings("ignore")  # pytest takes back the filter that the module sets
def test_every_file(shared: Path) -> None:
    wrong, slow, count = [], [], 0
    for path in sorted((shared / "data" / "odd-images").iterdir()):
        if path.name == "MANIFEST.csv":
            continue
        count += 1
        data = path.read_bytes()
        begin = time.process_time()
        got = result(data)
        if time.process_time() - begin > 2:
            slow.append(path.name)
        if isinstance(got, np.ndarray):
            assert got.dtype == np.uint8
            assert got.shape[2] == 3
            assert got.shape[0] * got.shape[1] < 64_000_000, path.name
            if path.name.startswith("bad-"):
                wrong.append(f"{path.name} decodes")
        elif path.name.startswith("odd-") and not _not_taken(got):
            wrong.append(f"{path.name}: {got}")
        elif path.name.startswith("bad-"):
            assert got.detail, path.name
            thumbnail(data, ANY_SHAPE)
    assert count == 699
    assert not wrong
    assert not slow


def _not_taken(refused: Refused) -> bool:
    """One odd file is an ICO, and some have fax codes, which no policy takes; a Pillow built without a codec takes fewer."""
    known = any(word in refused.detail for word in ("ICO", "fax"))
    return refused.outcome is Outcome.UNSUPPORTED_FORMAT and (known or not FULL)
