"""What keeps the service from starting is told in a paragraph."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.embeddings.app import create_app
from services.embeddings.server import listen, serve, url
from services.embeddings.settings import ServiceSettings
from swav_platform.errors import UserError


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        create_app(ServiceSettings(model=tmp_path))
    with pytest.raises(UserError, match="not a model package"):
        create_app(ServiceSettings(model=tmp_path / "absent"))


@pytest.mark.parametrize("name", ["encoder.safetensors", "head.safetensors", "model.json"])
def test_damaged_model(package: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(package, folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=re.escape(str(folder))) as caught:
        create_app(ServiceSettings(model=folder))
    assert "\n" not in str(caught.value)


def change(stored: Path, folder: Path, edit: Callable[[pa.Table], pa.Table]) -> Path:
    table = edit(pq.read_table(stored / "embeddings.parquet"))
    pq.write_table(table, folder / "embeddings.parquet")
    return folder


def doubled(table: pa.Table) -> pa.Table:
    width = 2 * table["embedding"].type.list_size
    wide = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(width * len(table), np.float16)), width)
    return table.set_column(table.schema.get_field_index("embedding"), "embedding", wide)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.drop_columns(["score"]), "no column score"),
        (lambda t: t.slice(0, 0), "no samples"),
        (doubled, "swav embed"),
        (lambda t: t.set_column(t.schema.get_field_index("cluster"), "cluster", pa.array([99] * len(t))), "99"),
        (
            lambda t: t.set_column(t.schema.get_field_index("embedding"), "embedding", pa.array([[1.0]] * len(t))),
            "lists of one size",
        ),
    ],
)
def test_embeddings_that_do_not_fit(
    package: Path, stored: Path, tmp_path: Path, edit: Callable[[pa.Table], pa.Table], words: str
) -> None:
    folder = change(stored, tmp_path, edit)
    with pytest.raises(UserError, match=words) as caught:
        create_app(ServiceSettings(model=package, embeddings=folder))
    assert str(folder) in str(caught.value)


def test_embeddings_missing_damaged_or_of_another_model(package: Path, stored: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="swav embed RUN --data PATTERN"):
        create_app(ServiceSettings(model=package, embeddings=tmp_path))
    (tmp_path / "embeddings.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(UserError, match="can't be read as embeddings"):
        create_app(ServiceSettings(model=package, embeddings=tmp_path))
    change(stored, tmp_path, lambda table: table)
    (tmp_path / "embeddings.json").write_text(json.dumps({"model": "0123456789abcdef"}))
    with pytest.raises(UserError, match="made by the model 0123456789abcdef"):
        create_app(ServiceSettings(model=package, embeddings=tmp_path))


def test_a_thumbnail_and_label_are_not_needed(package: Path, stored: Path, tmp_path: Path) -> None:
    folder = change(stored, tmp_path, lambda table: table.drop_columns(["thumbnail", "label"]))
    store = create_app(ServiceSettings(model=package, embeddings=folder)).state.service.first.store
    assert store.sample(0, 0.5)["thumbnail"] is None
    assert store.sample(0, 0.5)["label"] is None


def test_port_in_use(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"Port {port} of 127.0.0.1 is in use.*another port"):
            serve(ServiceSettings(model=tmp_path), port=port)  # told before the missing model is


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("no.such.host.invalid", 0), ("192.0.2.1", 0)])
def test_addresses_that_are_none(tmp_path: Path, host: str, port: int) -> None:
    with pytest.raises(UserError, match=re.escape(host)):
        serve(ServiceSettings(model=tmp_path), host, port)


def test_urls() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*", url(listener))
    if socket.has_ipv6:
        try:
            with listen("::1", 0) as listener:
                assert url(listener).startswith("http://[::1]:")
        except UserError:
            pytest.skip("no IPv6 here")
