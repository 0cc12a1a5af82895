"""A server with the S3 protocol, intact and with faults in a tenth of its answers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swav_platform.data.index.build import build_index
from swav_platform.data.index.lookup import Index
from swav_platform.data.index.sources import expand, find_shards
from swav_platform.data.order.plan import Plan, PlanSpec
from swav_platform.data.outages import Outages
from swav_platform.data.samples import ReadFailure, read_samples
from swav_platform.errors import UsageError, UserError
from swav_platform.failures import Kind, MachineFault
from tests.data.storage.fault_proxy import FaultProxy

pytestmark = pytest.mark.stack

SHARDS, IMAGES = 8, 24


def picture(number: int) -> bytes:
    return random.Random(number).randbytes(30_000 + 100 * (number % 50))


@pytest.fixture(scope="module")
def moto() -> Iterator[Any]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def proxy(moto: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for key, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{key}", value)
    port = moto.get_host_and_port()[1]
    with FaultProxy(port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def bucket(proxy: Any, make_tar: Any) -> str:
    import boto3

    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{proxy.port_behind}", region_name="us-east-1")
    client.create_bucket(Bucket="pictures")
    for shard in range(SHARDS):
        files = [(f"{number:05d}.jpg", picture(number)) for number in range(shard * IMAGES, (shard + 1) * IMAGES)]
        path = Path(make_tar(f"{shard}.tar", files))
        client.put_object(Bucket="pictures", Key=f"set/part/{shard}.tar", Body=path.read_bytes())
    client.put_object(Bucket="pictures", Key="set/part/0.parquet", Body=b"sidecar")
    return "s3://pictures"


def test_faults_cost_no_sample_and_few_repeated_bytes(
    bucket: str, proxy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.share = 0.1
    monkeypatch.setenv("SWAV_STORAGE_TIMEOUT", "0.5")
    report = build_index(expand([f"{bucket}/set/part/*"]), tmp_path / "index")
    assert (report.samples, report.skipped) == (SHARDS * IMAGES, {})
    assert report.digest == build_index([str(tmp_path / f"{n}.tar") for n in range(SHARDS)], tmp_path / "here").digest
    index, plan = Index.open(tmp_path / "index"), Plan(PlanSpec(report.samples, 5, 8, block=8, window=4))
    sent, wanted, seen = proxy.sent, 0, []
    for epoch in range(4):
        for first, last in plan.chunks(epoch * plan.rows_per_epoch, (epoch + 1) * plan.rows_per_epoch):
            lines = index.lines([int(n) for row in range(first, last) for n in plan.row(row).samples])
            found = read_samples(lines)
            for line in lines:
                assert found[line.number] == picture(int(line.key)), line.key
            wanted += sum(line.size for line in lines)
            seen += [line.number for line in lines]
    assert sorted(seen) == sorted(4 * list(range(report.samples)))
    assert set(proxy.met) == {"503", "reset", "slow", "truncated"}
    assert sum(proxy.met.values()) > 0.06 * proxy.requests
    amplification = (proxy.sent - sent) / wanted
    print(f"read amplification {amplification:.3f}, {sum(proxy.met.values())} of {proxy.requests} requests with faults")
    assert amplification <= 1.1


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("set/part/", SHARDS),
        ("set", SHARDS),
        ("", SHARDS),
        ("set/part/{0..2}.tar", 3),
        ("**/[0-3].tar", 4),
        ("set/*/*.tar", SHARDS),
    ],
)
def test_patterns(bucket: str, pattern: str, count: int) -> None:
    found = expand([f"{bucket}/{pattern}"])
    assert len(found) == count
    assert found[0] == f"{bucket}/set/part/0.tar"


def test_missing_objects_and_buckets(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="Nothing matches"):
        expand([f"{bucket}/set/*.tar"])
    for act in (expand, lambda urls: build_index([f"{urls[0]}x.tar"], tmp_path)):
        with pytest.raises(UserError, match=r"There is no bucket 'nowhere'.*AWS_ENDPOINT_URL") as raised:
            act(["s3://nowhere/set/"])
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="does not exist"):
        build_index([f"{bucket}/gone.tar"], tmp_path / "index")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"could not be reached.*AWS_ENDPOINT_URL"):
        expand(["s3://pictures/set/"])


ODD = [
    f"odd/{name}.tar"
    for name in ("a b", "a%20b", "100%", "[0-3]", "{1..2}", "x#y", "x?y", "x+y", "x&y=z", "é猫", "a..b", "~t", "s*")
]
UNADDRESSABLE = ["odd//y.tar", "odd/dup//z.tar", "odd/./d.tar", "odd/../e.tar", "odd/l\x7f.tar", "odd//notes.txt"]


def test_odd_names_are_read_or_left_out_by_name(proxy: Any, make_tar: Any, tmp_path: Path) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{proxy.port_behind}", region_name="us-east-1")
    client.create_bucket(Bucket="odd")
    for number, key in enumerate([*ODD, *UNADDRESSABLE, "odd/._h.tar"]):
        client.put_object(Bucket="odd", Key=key, Body=Path(make_tar("t.tar", [("a.jpg", picture(number))])).read_bytes())
    for pattern in ("s3://odd/odd/", "s3://odd/odd/*.tar", "s3://odd/**/*.tar"):
        found = find_shards([pattern])
        assert sorted(found.shards) == sorted(f"s3://odd/{key}" for key in ODD), pattern
        assert found.left_out.counts == {"odd_name": len(UNADDRESSABLE), "hidden": 1}
    build_index(find_shards(["s3://odd/odd/"]).shards, tmp_path / "index")
    index = Index.open(tmp_path / "index")
    lines = index.lines(range(index.samples))
    read = read_samples(lines)
    assert {line.shard: read[line.number] for line in lines} == {f"s3://odd/{key}": picture(n) for n, key in enumerate(ODD)}
    for key in ODD:
        assert expand([f"s3://odd/{key}"]) == [f"s3://odd/{key}"], "a name that exists is no pattern"
    for pattern in ("s3://odd/odd//y.tar", "s3://odd/odd//*.tar", "s3://odd/odd/../e.tar"):
        with pytest.raises(UserError, match="can't be read: its name has"):
            build_index(expand([pattern]), tmp_path / "none")


def test_an_object_that_changes_while_it_is_read(bucket: str, proxy: Any, make_tar: Any, tmp_path: Path) -> None:
    import boto3

    build_index(expand([f"{bucket}/set/part/{{0..1}}.tar"]), tmp_path / "index")
    index = Index.open(tmp_path / "index")
    lines = index.lines(range(index.samples))
    assert all(isinstance(data, bytes) for data in read_samples(lines[:3]).values())
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{proxy.port_behind}", region_name="us-east-1")
    files = [(f"{number:05d}.jpg", picture(number + 1)) for number in range(IMAGES)]  # other images at the old places
    client.put_object(Bucket="pictures", Key="set/part/0.tar", Body=Path(make_tar("new.tar", files)).read_bytes())
    with pytest.raises(MachineFault, match=r"0\.tar can't be used \(has changed since it was indexed") as raised:
        read_samples(lines[:3], outages=Outages(patience=0))
    assert raised.value.kind is Kind.CHANGED
    assert all(isinstance(data, bytes) for data in read_samples(lines[IMAGES:]).values())
    replaced = read_samples(lines, outages=Outages(patience=0, missing="replace", index=index))
    assert sum(isinstance(data, ReadFailure) for data in replaced.values()) == IMAGES
