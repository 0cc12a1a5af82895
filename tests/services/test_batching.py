"""Images of many requests go through the model together, and nobody can tell from the numbers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from services.embeddings.app import create_app
from services.embeddings.batching import Batcher
from services.embeddings.errors import ServiceError
from services.embeddings.settings import Limits, ServiceSettings
from tests.services.test_bad_input import refused

JPEG = {"content-type": "image/jpeg"}


def test_batches_fill_up_and_keep_their_order() -> None:
    batches: list[list[int]] = []

    def double(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        time.sleep(0.01)
        return [2 * item for item in items]

    async def main() -> list[int]:
        with ThreadPoolExecutor(1) as executor:
            batcher: Batcher[int, int] = Batcher(double, max_batch=4, max_wait=0.02, executor=executor)
            batcher.start()
            results = await asyncio.gather(*(batcher.submit(n) for n in range(10)))
            await batcher.stop()
            return list(results)

    assert asyncio.run(main()) == [2 * n for n in range(10)]
    assert [item for batch in batches for item in batch] == list(range(10))
    assert max(len(batch) for batch in batches) == 4  # full, and no larger than max_batch


def test_a_failing_batch_fails_alone() -> None:
    def picky(items: Sequence[int]) -> list[int]:
        if 13 in items:
            raise ValueError("13")
        return list(items)

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher: Batcher[int, int] = Batcher(picky, max_batch=2, max_wait=0.001, executor=executor)
            batcher.start()
            with pytest.raises(ValueError, match="13"):
                await batcher.submit(13)
            assert await batcher.submit(5) == 5
            assert batcher.running
            await batcher.stop()
            assert not batcher.running

    asyncio.run(main())


def test_stopping_tells_those_who_wait() -> None:
    def slow(items: Sequence[int]) -> list[int]:
        time.sleep(0.05)
        return list(items)

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher: Batcher[int, int] = Batcher(slow, max_batch=1, max_wait=0, executor=executor)
            batcher.start()
            waiting = [asyncio.create_task(batcher.submit(n)) for n in range(3)]
            await asyncio.sleep(0.01)
            await batcher.stop()
            for outcome in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(outcome, ServiceError)

    asyncio.run(main())


def test_requests_at_the_same_time_share_batches(
    package: Path, pictures: list[bytes], truth: tuple[np.ndarray, np.ndarray]
) -> None:
    async def main() -> tuple[list[httpx.Response], list[httpx.Response], str]:
        app = create_app(ServiceSettings(model=package, threads=1, max_wait=0.02))
        transport = httpx.ASGITransport(app)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            alone = [await client.post("/v1/embeddings", content=pictures[n], headers=JPEG) for n in range(3)]
            together = await asyncio.gather(
                *(client.post("/v1/embeddings", content=pictures[n], headers=JPEG) for n in range(32))
            )
            return alone, list(together), (await client.get("/metrics")).text

    alone, together, metrics = asyncio.run(main())
    assert {response.status_code for response in together} == {200}
    found = np.array([response.json()["items"][0]["embedding"] for response in together])
    single = np.array([response.json()["items"][0]["embedding"] for response in alone])
    np.testing.assert_allclose(found, truth[0][:32], atol=1e-5)
    np.testing.assert_allclose(found[:3], single, atol=1e-5)
    passes = next(float(line.split()[1]) for line in metrics.splitlines() if line.startswith("swav_service_batch_images_count"))
    assert passes < 1 + 3 + 32  # the warm-up, those alone, and fewer than one for each of the others


def test_too_much_at_once_is_told(package: Path, pictures: list[bytes]) -> None:
    async def main(limits: Limits) -> list[httpx.Response]:
        app = create_app(ServiceSettings(model=package, threads=1, limits=limits))
        transport = httpx.ASGITransport(app)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            posts = [client.post("/v1/embeddings", files=[("images", picture) for picture in pictures[:4]]) for _ in range(6)]
            answers = list(await asyncio.gather(*posts))
            answers.append(await client.post("/v1/embeddings", content=pictures[0], headers=JPEG))
            return answers

    for limits in (Limits(max_pending=8), Limits(max_held=3 * sum(map(len, pictures[:4])))):
        *rush, later = asyncio.run(main(limits))
        codes = [response.status_code for response in rush]
        assert set(codes) == {200, 503}
        busy = rush[codes.index(503)]
        assert busy.json()["error"]["code"] == "busy"
        assert int(busy.headers["retry-after"]) >= 1
        assert later.status_code == 200  # what was held has been given back


def test_ready_only_while_it_runs(package: Path) -> None:
    app = create_app(ServiceSettings(model=package, threads=1))
    outside = TestClient(app)
    assert outside.get("/readyz").status_code == 503
    assert outside.get("/healthz").status_code == 200
    with TestClient(app) as inside:
        assert inside.get("/readyz").json() == {"status": "ready"}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/neighbors?key=0003",
        "/v1/clusters/1",
        "/v1/explorer/clusters",
        "/v1/explorer/clusters/1",
        "/v1/explorer/items?samples=1",
        "/v1/explorer/neighbors?sample=1",
        "/v1/explorer/outliers",
        "/v1/explorer/duplicates",
    ],
)
def test_searches_of_all_routes_are_bounded(full: TestClient, path: str) -> None:
    answer = refused(full.get(path), 503, "busy")
    assert "searches" in answer["message"]


@pytest.fixture(scope="module")
def full(package: Path, stored: Path) -> Iterator[TestClient]:
    """A service that has no place for another search."""
    settings = ServiceSettings(model=package, embeddings=stored, limits=Limits(max_pending=0), threads=1)
    with TestClient(create_app(settings)) as client:
        yield client
