"""API keys: a text `swav_ID_SECRET` for the client, the SHA-256 of its secret for the service.

The secret has 256 random bits, so that a plain hash withstands guessing; a slow one would cost time on every request.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from swav_platform.atomic import write_text
from swav_platform.errors import UserError

FORMAT = 1
SCOPES = ("embed", "search", "images", "admin")
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY = re.compile(r"swav_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_HASH = re.compile(r"[0-9a-f]{64}")
_NOBODY = "0" * 64


@dataclass(frozen=True)
class Key:
    """What the service knows of a key."""

    id: str  # 12 hex digits, part of the key and no secret
    name: str
    scopes: frozenset[str]
    sha256: str  # of the secret
    per_minute: int | None = None  # images (a request without images counts as one); None: no limit
    expires: datetime | None = None

    def as_json(self) -> dict[str, Any]:
        scopes = [scope for scope in SCOPES if scope in self.scopes]
        expires = self.expires.isoformat() if self.expires else None
        return {
            "id": self.id,
            "name": self.name,
            "scopes": scopes,
            "sha256": self.sha256,
            "per_minute": self.per_minute,
            "expires": expires,
        }


Keys = Mapping[str, Key]
"""Keys by id."""


def make(name: str, scopes: Iterable[str], per_minute: int | None = None, expires: datetime | None = None) -> tuple[str, Key]:
    """A new key: its text, which is stored nowhere, and what to store."""
    number, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    return f"swav_{number}_{secret}", Key(number, name, frozenset(scopes), _sha256(secret), per_minute, expires)


def find(keys: Keys, text: str, now: datetime | None = None) -> Key | None:
    """The key with this text, unless it is unknown or has expired. The time taken does not depend on how much matches."""
    parts = _KEY.fullmatch(text)
    number, secret = parts.groups() if parts else ("", text)
    key = keys.get(number)
    same = hmac.compare_digest(_sha256(secret), key.sha256 if key else _NOBODY)
    if key is None or not same:
        return None
    return None if key.expires and key.expires <= (now or datetime.now(UTC)) else key


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def dumps(keys: Keys) -> str:
    return json.dumps({"version": FORMAT, "keys": [key.as_json() for key in keys.values()]}, indent=1) + "\n"


def loads(text: str | bytes, place: str) -> Keys:
    """Reads what `dumps` wrote. Raises UserError, which names `place`, for anything else."""
    try:
        tree = json.loads(text)
        if tree["version"] != FORMAT:
            raise ValueError(f"its version is {tree['version']!r}; this program reads {FORMAT}")
        keys = [_key(told) for told in tree["keys"]]
        if len({key.id for key in keys}) < len(keys):
            raise ValueError("two keys have the same id")
        return {key.id: key for key in keys}
    except KeyError as error:
        reason = f"the field {error} is missing"
    except (ValueError, TypeError, AttributeError) as error:
        reason = str(error)
    raise UserError(f"{place} does not hold API keys ({reason}). Write it with `swav keys create`.")


def _key(told: Mapping[str, Any]) -> Key:
    name, number, scopes, rate, expires = (told[k] for k in ("name", "id", "scopes", "per_minute", "expires"))
    if not _HASH.fullmatch(told["sha256"]) or not re.fullmatch(r"[0-9a-f]{12}", number) or not NAME.fullmatch(name):
        raise ValueError(f"the key {name!r} has a bad name, id or hash")
    if unknown := set(scopes) - set(SCOPES):
        raise ValueError(f"the key {name!r} has the unknown scope {min(unknown)!r}; scopes are {', '.join(SCOPES)}")
    if rate is not None and (not isinstance(rate, int) or rate < 1):
        raise ValueError(f"per_minute of the key {name!r} must be a whole number above 0, or null")
    until = datetime.fromisoformat(expires) if expires else None
    if until and until.tzinfo is None:
        raise ValueError(f"expires of the key {name!r} has no time zone")
    return Key(number, name, frozenset(scopes), told["sha256"], rate, until)


def read(path: Path) -> Keys:
    """Raises UserError for a file that cannot be read or holds no keys."""
    try:
        return loads(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"Cannot read the API keys in {path} ({error.strerror}). Write them with `swav keys create`.") from None


def write(path: Path, keys: Keys) -> None:
    """Replaces the file at once: a service that reads it sees the old keys or the new ones."""
    write_text(path, dumps(keys))
