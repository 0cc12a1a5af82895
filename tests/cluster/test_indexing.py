from __future__ import annotations

from pathlib import Path

import pytest

from swav_platform.cluster.indexing import cluster_reader
from swav_platform.data.index.build import build_index
from swav_platform.data.index.sources import expand

pytestmark = pytest.mark.stack


def test_the_cluster_makes_the_same_index(shards: Path, tmp_path: Path, local_ray: None) -> None:
    tars = expand([str(shards)])
    with cluster_reader() as read:
        there = build_index(tars, tmp_path / "there", label="folder", read=read)
    here = build_index(tars, tmp_path / "here", label="folder")
    assert (there.digest, there.samples, there.bytes_read) == (here.digest, here.samples, here.bytes_read)
