"""Passwords, tokens and signatures are neither stored nor shown."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from swav_platform.config import load
from swav_platform.config.secrets import SecretsFilter, has_hidden, without_secrets
from swav_platform.runs.folder import RunFolder


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host:5000/x", "https://me:***@host:5000/x"),
        ("postgresql://me:p@ss@host/db", "postgresql://me:***@host/db"),
        ("postgresql+psycopg2://me:secret@host/db?sslmode=require", "postgresql+psycopg2://me:***@host/db?sslmode=require"),
        ("call to http://me:secret@host/api failed", "call to http://me:***@host/api failed"),
        ("https://ghp_secret@host/x.tar", "https://***@host/x.tar"),
        ("redis://:secret@host:6379", "redis://:***@host:6379"),
        ("https://h/a.tar?X-Amz-Date=1&X-Amz-Signature=secret", "https://h/a.tar?X-Amz-Date=1&X-Amz-Signature=***"),
        ("https://h/a.tar?X-Amz-Security-Token=secret&x=1", "https://h/a.tar?X-Amz-Security-Token=***&x=1"),
        ("https://a.blob.core.windows.net/c/x.tar?sv=1&sig=secret", "https://a.blob.core.windows.net/c/x.tar?sv=1&sig=***"),
        ("https://h/{000..019}.tar?token=secret", "https://h/{000..019}.tar?token=***"),
        ("pipe:curl -H 'Authorization: Bearer secret' https://h/x", "pipe:curl -H 'Authorization: Bearer ***' https://h/x"),
        ("pipe:curl -u me:secret https://h/x", "pipe:curl -u me:*** https://h/x"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("sqlite:////runs/mlflow.db", "sqlite:////runs/mlflow.db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("s3://bucket/shards-{000..019}.tar", "s3://bucket/shards-{000..019}.tar"),
        ("data/keys=3/x.tar", "data/keys=3/x.tar"),
    ],
)
def test_secrets_of_urls_are_removed(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert without_secrets(shown) == shown
    assert has_hidden(shown) == ("***" in shown)


def test_files_of_a_run_have_no_secrets_and_digests_stay(tmp_path: Path) -> None:
    sources = '["https://me:hush@host/a.tar", "https://host/b.tar?X-Amz-Signature=hush", "plain/*.tar"]'
    config = load(None, [f"data.sources={sources}", "tracking.uri=http://me:hush@mlflow:5000", f"run.out={tmp_path}"])
    folder = RunFolder(tmp_path / "r")
    folder.write(config, index=folder.index, index_digest="d", samples=1, tracking_uri=config.tracking.uri)
    for path in folder.path.iterdir():
        assert "hush" not in path.read_text(), path
    assert folder.config().digest() == config.digest() == folder.info()["config_digest"]
    assert folder.config().data.sources[2] == "plain/*.tar"


def test_log_records_have_no_secrets(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("test-secrets")
    logger.addFilter(SecretsFilter())
    logger.warning("no answer from %s", "http://me:hush@host")
    assert "hush" not in caplog.text
    assert "http://me:***@host" in caplog.text
