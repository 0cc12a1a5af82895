"""Jobs with a fake client: ids, names, paths, a cluster that is unreachable for a while."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from swav_platform.cluster import jobs
from swav_platform.config import Config, load
from swav_platform.errors import UsageError, UserError


class FakeClient:
    """The methods of Ray's JobSubmissionClient that are used."""

    def __init__(self) -> None:
        self.details: list[Any] = []
        self.configs: list[Config] = []
        self.failures = 0  # how many of the next calls fail

    def add(self, job_id: str, name: str | None, state: str = "SUCCEEDED") -> None:
        metadata = {"run": name} if name else {}
        found = {"submission_id": job_id, "metadata": metadata, "status": SimpleNamespace(value=state), "message": ""}
        self.details.append(SimpleNamespace(**found, driver_exit_code=0, start_time=1000 * (1 + len(self.details))))

    def list_jobs(self) -> list[Any]:
        return self.details

    def get_job_info(self, job_id: str) -> Any:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("unreachable")
        return next(d for d in self.details if d.submission_id == job_id)

    def get_job_logs(self, job_id: str) -> str:
        return "step 1/2\n" if job_id == "a" else "step 1/2\nswav: Nothing matches 'nix/*.tar'.\n"

    def submit_job(self, *, submission_id: str, metadata: dict[str, str], runtime_env: dict[str, Any], **_: Any) -> None:
        assert submission_id not in [d.submission_id for d in self.details]
        tree = yaml.safe_load(Path(runtime_env["working_dir"], "config.yaml").read_text())
        self.configs.append(Config.model_validate(tree))
        self.add(submission_id, metadata["run"], "PENDING")


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def cluster(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> jobs.Cluster:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    here = jobs.Cluster("http://127.0.0.1:1")
    here._client = client
    return here


def named(name: str, *more: str) -> Config:
    return load(None, [f"run.name={name}", "data.sources=/d/a.tar", *more])


def test_ids_never_collide(cluster: jobs.Cluster, client: FakeClient) -> None:
    client.add("a", None)  # of another program
    client.add("b-2", "b-2")
    client.add("b", "b")
    assert cluster.submit(named("a")).id == "a-2"
    assert cluster.submit(named("b")).id == "b-3", "b-2 belongs to another run"


def test_a_failed_job_says_why(cluster: jobs.Cluster, client: FakeClient) -> None:
    client.add("one", "one", "FAILED")
    client.add("two", "two", "RUNNING")
    assert cluster.report(cluster.job("one"))["error"] == "Nothing matches 'nix/*.tar'."
    assert cluster.report(cluster.job("two"))["error"] is None


def test_run_names_take_precedence_over_ids(cluster: jobs.Cluster, client: FakeClient) -> None:
    client.add("a", "a")
    client.add("a-2-2", "a-2")
    client.add("a-2", "a")
    assert cluster.job("a-2").id == "a-2-2"
    assert cluster.job("a").id == "a-2", "the newest"
    assert cluster.job("a-2-2").name == "a-2"
    with pytest.raises(UsageError, match="c"):
        cluster.job("c")


def test_following_survives_a_short_outage(cluster: jobs.Cluster, client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    client.add("a", "a")
    client.failures = 3
    shown: list[str] = []
    assert cluster.follow(cluster.job("a"), shown.append, poll=0.0).state == "succeeded"
    assert shown == ["step 1/2\n"]
    monkeypatch.setattr(jobs, "OUTAGE_TIMEOUT", -1.0)
    client.failures = 1
    with pytest.raises(UserError, match="unreachable"):
        cluster.follow(cluster.job("a"), shown.append, poll=0.0)


@pytest.mark.parametrize("override", ["data.sources=a.tar", "run.out=runs", "data.index=ix", "data.sample_log=log"])
def test_paths_are_checked_before_the_cluster_is_contacted(override: str) -> None:
    with pytest.raises(UsageError, match=override.partition("=")[2]):
        jobs.Cluster("http://head.invalid:8265").submit(named("a", "run.out=/r", override))


def test_the_submitters_tracking_server_is_used(
    cluster: jobs.Cluster, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    cluster.submit(named("a"))
    cluster.submit(named("b", "tracking.uri=http://other:5000"))
    assert [c.tracking.uri for c in client.configs] == ["http://mlflow:5000", "http://other:5000"]
