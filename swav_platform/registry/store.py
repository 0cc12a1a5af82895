"""SQLite stores of MLflow: made and migrated under another name, then renamed into place."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger("swav")

BUSY_SECONDS = 60  # that a run waits for another one's transaction
LOCK_WARNING_SECONDS = 30.0
_BESIDE = ("-journal", "-wal", "-shm")  # files that belong to a SQLite file


def path_of(uri: str) -> Path | None:
    """The file of a SQLite URI; None for other stores."""
    if not uri.startswith("sqlite"):
        return None
    from sqlalchemy.engine import make_url

    name = make_url(uri).database
    return Path(name).absolute() if name and name != ":memory:" and not name.startswith("file:") else None


def with_patience(uri: str) -> str:
    """The URI of a SQLite store whose connections wait for the locks of other processes."""
    if path_of(uri) is None or "timeout=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}timeout={BUSY_SECONDS}"


def prepare(path: Path, artifacts: str | None = None) -> None:
    """Leaves a complete store of this version of MLflow at `path`.

    Makes a missing one, migrates an older one, repairs a half-migrated one and sets a broken one aside with a warning.
    artifacts: where runs of the default experiment put their files; by default beside the store.
    """
    if state(path) == "complete":
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f"{path.name}.lock"), path):
        found = state(path)
        if found == "complete":
            return
        for stale in path.parent.glob(f"_{path.name}.new*"):  # of a process that was killed
            stale.unlink(missing_ok=True)
        aside = path.with_name(f"_{path.name}.new")
        if found == "partial" and _migrated_copy(path, aside, artifacts):
            _replace(aside, path)
            log.warning("The MLflow store %s was of an older version or half-migrated; it was migrated.", path)
            return
        if found != "missing":
            kept = _set_aside(path)
            log.warning("The MLflow store %s can't be used. It is kept as %s; a new one was made.", path, kept)
        try:
            _migrate(aside, artifacts or (path.parent / "mlartifacts").as_uri())
            _replace(aside, path)
        finally:
            for end in ("", *_BESIDE):
                Path(f"{aside}{end}").unlink(missing_ok=True)


def state(path: Path) -> str:
    """`missing`, `complete`, `partial` (a store that needs a migration), `newer` or `broken`. Changes nothing."""
    if not path.is_file() or (path.stat().st_size == 0 and not Path(f"{path}-wal").exists()):
        return "missing"
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)) as store:
            tables = {name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables:
                return "missing"
            versions = store.execute("SELECT version_num FROM alembic_version").fetchall() if "alembic_version" in tables else []
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return "complete"  # another process works with it
        return "broken"
    except sqlite3.DatabaseError:
        return "broken"
    newest, known = _revisions()
    if any(name.startswith("_alembic_tmp_") for name in tables):
        return "partial"
    if len(versions) == 1 and versions[0][0] == newest:
        return "complete" if {"experiments", "runs", "metrics", "registered_models"} <= tables else "partial"
    if len(versions) == 1 and versions[0][0] not in known:
        return "complete"  # of a newer MLflow, which says so itself
    return "partial"


@functools.cache
def _revisions() -> tuple[str, frozenset[str]]:
    """The newest revision of this MLflow's tables, and all that it knows."""
    import mlflow.store.db_migrations
    from alembic.script import ScriptDirectory

    script = ScriptDirectory(str(Path(mlflow.store.db_migrations.__file__).parent))
    return str(script.get_current_head()), frozenset(each.revision for each in script.walk_revisions())


def _migrated_copy(path: Path, aside: Path, artifacts: str | None) -> bool:
    """Whether a copy of the store could be repaired and migrated."""
    try:
        with contextlib.closing(sqlite3.connect(path)) as old, contextlib.closing(sqlite3.connect(aside)) as new:
            old.backup(new)
            names = [row[0] for row in new.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for name in names:
                if name.startswith("_alembic_tmp_"):  # what an interrupted migration leaves
                    new.execute(f'DROP TABLE "{name}"')
            new.commit()
        _migrate(aside, artifacts or (path.parent / "mlartifacts").as_uri())
        return state(aside) == "complete"
    except Exception as error:
        log.debug("migration of %s failed: %s", path, error)
        aside.unlink(missing_ok=True)
        return False


def _migrate(path: Path, artifacts: str) -> None:
    """Makes or migrates the store at `path`, and its default experiment."""
    import mlflow.store.db.utils as db
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    uri = f"sqlite:///{path}"
    engine = db.create_sqlalchemy_engine(uri)
    try:
        if state(path) == "missing":
            db._initialize_tables(engine)
        else:
            db._upgrade_db(engine)
    finally:
        engine.dispose()
    store = SqlAlchemyStore(uri, artifacts)
    store.search_experiments()
    store.engine.dispose()


def _replace(aside: Path, path: Path) -> None:
    with aside.open("rb") as written:
        os.fsync(written.fileno())
    for end in _BESIDE:
        Path(f"{path}{end}").unlink(missing_ok=True)
    os.replace(aside, path)


def _set_aside(path: Path) -> Path:
    kept = path.with_name(f"{path.name}.broken-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    for end in _BESIDE:
        with contextlib.suppress(FileNotFoundError):
            os.replace(f"{path}{end}", f"{kept}{end}")
    os.replace(path, kept)
    return kept


@contextlib.contextmanager
def _locked(lock: Path, path: Path) -> Iterator[None]:
    """Waits for the lock without limit: its holder makes the store in seconds, and the system frees it when the holder dies."""
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        began = time.monotonic()
        while not _try(handle):
            if time.monotonic() - began > LOCK_WARNING_SECONDS:
                log.warning("Waiting for another process that makes the MLflow store %s.", path)
                began = time.monotonic()
            time.sleep(0.1)
        yield
    finally:
        os.close(handle)


def _try(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("The file system has no locks (%s); do not start the first runs of a folder together.", error.strerror)
    return True
