"""The registry: a trained run is registered when MLflow answers, again and again with one result, and found by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from swav_platform.cli.main import run
from swav_platform.data.ledger.outcomes import Event, Outcome
from swav_platform.data.ledger.parts import LedgerWriter
from swav_platform.errors import UsageError
from swav_platform.registry import begin, complete, download_package, log_evaluation, set_alias
from swav_platform.registry.connect import connect
from swav_platform.registry.errors import TrackingError
from swav_platform.runs.folder import RunFolder
from tests.registry.conftest import card, of_record, recorded


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def trained(uri: str, make_recorded: Callable[..., RunFolder]) -> RunFolder:
    """A trained run that MLflow has never heard of."""
    folder = make_recorded("réseau-猫", uri)
    assert begin(folder, "http://127.0.0.1:9", card()) is None
    return folder


def test_a_run_that_mlflow_never_heard_of_is_recorded_whole(
    trained: RunFolder, uri: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(TrackingError, match="does not answer"):
        complete(trained, "http://127.0.0.1:9", patience=0)
    log_evaluation(trained, "http://127.0.0.1:9", {"eval/knn_top1": 0.5}, step=5)
    for alias in ("champion", "champion", "other"):
        assert run(["promote", str(trained.path), "--alias", alias, "--json"]) == 0, capsys.readouterr().err
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["model_uri"], said["alias"]) == ("models:/réseau-猫/1", "other"), "registered once"
    client = connect(uri)
    assert client.get_run(said["run_id"]).info.status == "FINISHED"
    assert trained.info()["run_id"] == said["run_id"]
    for key in ("train/loss", "data/images_per_second"):
        assert recorded(client, said["run_id"], key) == of_record(trained, key)
    assert recorded(client, said["run_id"], "eval/knn_top1") == [(5, 0.5)]
    assert set(client.get_registered_model("réseau-猫").aliases) == {"candidate", "champion", "other"}
    for name in ("@champion", "@candidate", "/1", "/latest"):
        path = download_package(uri, f"models:/réseau-猫{name}", tmp_path / name.strip("/@"))
        assert (path / "encoder.safetensors").read_bytes() == "réseau-猫".encode()


def test_a_version_that_was_deleted_is_registered_again(trained: RunFolder, uri: str) -> None:
    first = complete(trained, uri, patience=0)
    assert complete(trained, uri, patience=0) == first
    connect(uri).delete_model_version("réseau-猫", "1")
    assert complete(trained, uri, patience=0)["model_uri"] == "models:/réseau-猫/2"
    connect(uri).delete_registered_model("réseau-猫")
    assert complete(trained, uri, patience=0)["model_uri"] == "models:/réseau-猫/1"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("models:/réseau@candidate", "has no model réseau. Did you mean réseau-猫?"),
        ("models:/réseau-猫@best", "has no alias best. Its aliases: candidate"),
        ("models:/réseau-猫/7", "has no version 7. Its versions: 1"),
        ("runs:/0123/model", "has no run 0123"),
    ],
)
def test_what_is_missing_is_named(name: str, said: str, trained: RunFolder, uri: str, tmp_path: Path) -> None:
    complete(trained, uri, patience=0)
    with pytest.raises(TrackingError) as caught:
        download_package(uri, name, tmp_path / "to")
    assert said in str(caught.value)
    assert "is its address" not in str(caught.value)


def test_wrong_use(trained: RunFolder, uri: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a model URI"):
        download_package(uri, "models:/a/b/c", tmp_path)
    with pytest.raises(UsageError, match="can't be an alias"):
        set_alias(uri, complete(trained, uri, patience=0)["model_uri"], "latest")


def test_checkpoints_and_the_counts_of_the_ledger_are_logged_if_wanted(
    uri: str, make_recorded: Callable[..., RunFolder], tmp_path: Path
) -> None:
    folder = make_recorded("logged", uri)
    writer = LedgerWriter(folder.path)
    writer.open(0)
    writer.append([Event(3, 0, 1, "b", "shard-000000.tar", Outcome.TRUNCATED, "cut off", None)], 5)
    begin(folder, uri, card(log_checkpoints=True))
    run_id = complete(folder, uri, patience=0)["run_id"]
    client = connect(uri)
    assert [Path(each.path).name for each in client.list_artifacts(run_id, "checkpoints")] == ["step-000000005"]
    (uploaded,) = tmp_path.glob(f"mlartifacts/*{run_id}/artifacts/checkpoints/*/MANIFEST.json")
    uploaded.unlink()  # as an upload that was interrupted leaves it
    assert complete(folder, uri, patience=0)["run_id"] == run_id
    assert uploaded.is_file()
    counts = json.loads(Path(client.download_artifacts(run_id, "ledger.json")).read_text())
    assert counts == {"outcomes": {"truncated": 1}, "shards": {"shard-000000.tar": 1}}
