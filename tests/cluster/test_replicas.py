"""The service under Ray Serve, from its file: two replicas, one of which is killed while clients ask."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from services.embeddings.scale.replicas import build, settings
from swav_platform.client import Client
from swav_platform.errors import UsageError
from tests.makers import smooth
from tests.services.conftest import direct, package

__all__ = ["package"]  # a fixture

pytestmark = pytest.mark.stack

IMAGES = [smooth(seed) for seed in range(6)]


@pytest.fixture(scope="module")
def client(local_ray: None, package: Path, root: Path) -> Iterator[Any]:
    """Ray Serve's own client, with the application of configs/serve/service.yaml on a free port."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    told = yaml.safe_load((root / "configs" / "serve" / "service.yaml").read_text())
    with socket.create_server(("127.0.0.1", 0)) as free:
        told["http_options"] |= {"host": "127.0.0.1", "port": free.getsockname()[1]}
    [application] = told["applications"]
    application["args"] |= {"model": str(package), "keys": None, "no_auth": True, "runtime": "torch"}
    [deployment] = application["deployments"]
    deployment["autoscaling_config"] |= {"min_replicas": 2, "max_replicas": 2}
    deployment["ray_actor_options"] = {"num_cpus": 1}
    deployment["health_check_period_s"] = 1
    schema = ServeDeploySchema.model_validate(told)
    serve.start(proxy_location="HeadOnly", http_options=told["http_options"])
    found = _get_global_client()
    found.deploy_apps(schema, _blocking=True)
    yield found
    serve.shutdown()


def replicas(client: Any) -> list[dict[str, Any]]:
    [application] = client.get_serve_details()["applications"].values()
    return [replica for replica in application["deployments"]["service"]["replicas"] if replica["state"] == "RUNNING"]


def address(client: Any) -> str:
    return f"http://127.0.0.1:{client.http_config.port}"


def test_a_killed_replica_costs_retries_only(client: Any, package: Path) -> None:
    truth, _ = direct(package, IMAGES)
    first = replicas(client)
    assert len({replica["pid"] for replica in first}) == 2
    end = time.monotonic() + 4

    def ask(number: int) -> int:
        """Asks until the end; the answers are right, whoever gives them."""
        with Client(address(client), retries=8) as mine:
            for asked in range(10_000):
                image = (number + asked) % len(IMAGES)
                [item] = mine.embeddings([IMAGES[image]])["items"]
                np.testing.assert_allclose(item["embedding"], truth[image], atol=1e-5)
                if time.monotonic() > end:
                    return asked + 1
        raise AssertionError

    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(ask, number) for number in range(6)]
        time.sleep(1)
        os.kill(first[0]["pid"], signal.SIGKILL)
        assert sum(each.result() for each in asking) > 12
    deadline = time.monotonic() + 60
    while len(found := replicas(client)) < 2 or found == first:
        assert time.monotonic() < deadline, "the killed replica was not replaced"
        time.sleep(0.2)


def test_changes_would_reach_one_replica_only(client: Any) -> None:
    assert httpx.get(f"{address(client)}/readyz").json() == {"status": "ready"}
    for method, path in (("POST", "/v1/models/reload"), ("DELETE", "/v1/items/1"), ("PUT", "/v1/nothing")):
        answer = httpx.request(method, address(client) + path)
        assert answer.json()["error"]["code"] == ("not_found" if path == "/v1/nothing" else "read_only")


def test_arguments_are_checked(package: Path) -> None:
    assert settings({"model": str(package), "limits": {"max_items": 3}}).limits.max_items == 3
    with pytest.raises(UsageError, match="Did you mean model"):
        settings({"modl": str(package)})
    with pytest.raises(UsageError, match="max_batch"):
        settings({"model": str(package), "max_batch": "many"})
    with pytest.raises(UsageError, match="no_auth"):
        build({"model": str(package)})
