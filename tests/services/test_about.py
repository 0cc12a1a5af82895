"""What the service says of itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from services.embeddings.answers import ModelsAnswer
from tests.makers import smooth

JPEG = {"content-type": "image/jpeg"}


def samples(client: TestClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(response.text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_models(service: TestClient, bare: TestClient, truth: tuple[np.ndarray, np.ndarray]) -> None:
    (card,) = ModelsAnswer.model_validate(service.get("/v1/models").json()).models
    assert (card.feature_dim, card.projection_dim, card.prototypes) == (truth[0].shape[1], truth[1].shape[1], 12)
    assert (card.input_size, card.samples) == (32, 40)
    assert len(card.digest) >= 16
    assert bare.get("/v1/models").json()["models"][0]["samples"] is None


def test_health_and_version(service: TestClient) -> None:
    assert service.get("/healthz").json() == {"status": "ok"}
    assert service.get("/readyz").json() == {"status": "ready"}
    assert set(service.get("/version").json()) >= {"name", "version", "python", "torch"}


def test_home_page_and_schema(service: TestClient) -> None:
    page = service.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "/docs" in page.text
    assert service.get("/docs").status_code == 200
    schema = service.get("/openapi.json").json()
    assert set(schema["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]) >= {"multipart/form-data", "application/json"}
    routes = ["/v1/embeddings", "/v1/clusters", "/v1/clusters/{cluster}", "/v1/neighbors", "/v1/models"]
    assert set(schema["paths"]) >= {*routes, "/healthz", "/readyz", "/version", "/metrics"}


def test_metrics_count(service: TestClient) -> None:
    fresh = [smooth(seed) for seed in (9001, 9002)]  # vectors of images that were sent before come from the cache
    before = samples(service)
    service.post("/v1/embeddings", files=[("images", fresh[0]), ("images", b"text"), ("images", fresh[1])])
    service.post("/v1/embeddings", content=b"text", headers=JPEG)
    service.get("/v1/embeddings")
    service.get("/v1/clusters/1")
    service.get("/v1/clusters/2")
    service.get("/no/such/place")
    after = samples(service)

    def more(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after[key] - before.get(key, 0)

    requests = "swav_service_requests_total"
    assert more(requests, route="/v1/embeddings", code="200") == 1
    assert more(requests, route="/v1/embeddings", code="422") == 1
    assert more(requests, route="/v1/embeddings", code="405") == 1
    assert more(requests, route="/v1/clusters/{cluster}", code="200") == 2
    assert more(requests, route="unmatched", code="404") == 1
    assert more("swav_service_request_seconds_count", route="/v1/embeddings") == 3
    assert more("swav_service_images_total", outcome="ok") == 2
    assert more("swav_service_images_total", outcome="not_an_image") == 2
    assert more("swav_service_batch_images_sum") == 2
    assert ("process_resident_memory_bytes", ()) in after


def test_imports_without_ray_and_mlflow(root: Path) -> None:
    code = "import sys; sys.modules['ray'] = sys.modules['mlflow'] = None; import services.embeddings.app, services.embeddings.server"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
