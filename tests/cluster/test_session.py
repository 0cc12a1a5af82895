"""Connecting to Ray, with a fake one: addresses, local or shared clusters, CPUs that other jobs hold."""

from __future__ import annotations

import signal
import socket
from typing import Any

import pytest
import ray

from swav_platform.cluster import room, session
from swav_platform.config import load
from swav_platform.errors import UsageError, UserError


@pytest.mark.parametrize("address", ["", "auto", "local"])
def test_addresses_without_a_port_are_left_to_ray(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    session.check_address()


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_that_accepts_connections_passes(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"{scheme}127.0.0.1:{server.getsockname()[1]}")
        session.check_address()


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "head.invalid:6379", "127.0.0.1:99999"])
def test_a_dead_address_is_named(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=address):
        session.check_address()


@pytest.fixture
def cpus(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A Ray of 8 CPUs; tests set how many are free."""
    free = {"CPU": 8.0}
    monkeypatch.setattr(ray, "init", lambda **options: seen.update(options))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(room, "nodes_now", lambda: [room.Node(8)])
    monkeypatch.setattr(room, "free_nodes", lambda nodes: [room.Node(int(free["CPU"]))])
    monkeypatch.setattr(session, "RELEASE_TIMEOUT", 0.0)
    monkeypatch.setattr(session, "check_address", lambda: None)
    seen.clear()
    return free


seen: dict[str, Any] = {}
CONFIG = load(None, ["train.workers=2", "data.tasks=4"])


def test_without_an_address_a_local_ray_starts(cpus: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cpus["CPU"] = 0.0
    with session.connected(CONFIG) as connection:
        assert connection == (room.Group(2, 4), True)
    assert seen["address"] == "local", "does not join a head that `ray start` left here"


@pytest.mark.parametrize(("free", "tasks"), [(8.0, 4), (6.0, 4), (5.0, 3), (3.5, 1)])
def test_tasks_use_the_cpus_that_other_jobs_leave(
    free: float, tasks: int, cpus: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    cpus["CPU"] = free
    with session.connected(CONFIG) as (group, local):
        assert (group.tasks, local) == (tasks, False)
    assert seen["address"] == "head:6379"


def test_a_busy_cluster_is_not_a_usage_error(cpus: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    cpus["CPU"] = 2.0
    with pytest.raises(UserError, match="CPUs: 3 for 2 workers") as caught, session.connected(CONFIG):
        pass
    assert not isinstance(caught.value, UsageError)


@pytest.mark.parametrize(("address", "said"), [("local", "did not start"), ("127.0.0.1:1", "127.0.0.1:1")])
def test_a_ray_that_fails_is_explained(address: str, said: str, cpus: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match=f"{said}.*timed out during startup"), session.connected(CONFIG):
        pass


def test_the_sigterm_handler_is_kept(cpus: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray.init` installs its own."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(ray, "init", lambda **_: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    with session.ray_session():
        assert signal.getsignal(signal.SIGTERM) is before


def test_messages_of_ray_go_to_stderr(
    cpus: dict[str, float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray, "shutdown", lambda: print("(raylet) a message that Ray held back until the end"))
    with session.connected(CONFIG):
        print("(raylet) a worker was killed for its memory")
        print("(raylet) WARNING: 8 PYTHON worker processes have been started on node: n, which is 4x what was expected")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "(raylet) a worker was killed for its memory\n(raylet) a message that Ray held back until the end\n"
