"""Failures of MLflow as messages for the user, by kind."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from typing import Any, Literal

from swav_platform.config.secrets import without_secrets
from swav_platform.errors import UserError

Kind = Literal["away", "busy", "missing", "forbidden", "exists", "other"]
"""away: nobody answers. busy: the server answers with an error that may pass. missing: it has no such run, model or version."""

_BY_CODE: dict[str, Kind] = {
    "RESOURCE_DOES_NOT_EXIST": "missing",
    "NOT_FOUND": "missing",
    "RESOURCE_ALREADY_EXISTS": "exists",
    "PERMISSION_DENIED": "forbidden",
    "UNAUTHENTICATED": "forbidden",
    "CUSTOMER_UNAUTHORIZED": "forbidden",
    "TEMPORARILY_UNAVAILABLE": "busy",
    "REQUEST_LIMIT_EXCEEDED": "busy",
}
_BY_STATUS: dict[int, Kind] = {
    401: "forbidden",
    403: "forbidden",
    404: "missing",
    429: "busy",
    502: "busy",
    503: "busy",
    504: "busy",
}


class TrackingError(UserError):
    """A request to MLflow failed.

    Attributes:
        kind: why.
    """

    def __init__(self, message: str, kind: Kind) -> None:
        super().__init__(message)
        self.kind = kind

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed later."""
        return self.kind in ("away", "busy")


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turns any exception of MLflow into a TrackingError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        kind, where, why = kind_of(error), without_secrets(uri), without_secrets(_cause(error))
        raise TrackingError(_MESSAGES[kind].format(where=where, why=why), kind) from error


_MESSAGES: dict[Kind, str] = {
    "away": (
        "MLflow at {where} does not answer ({why}). Check that the server runs and that tracking.uri, --tracking-uri or "
        "MLFLOW_TRACKING_URI is its address."
    ),
    "busy": "MLflow at {where} answers, but can't work now ({why}). Try again later.",
    "missing": "MLflow at {where} has no such entry ({why}).",
    "forbidden": (
        "MLflow at {where} gives no permission ({why}). Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
        "MLFLOW_TRACKING_TOKEN, for a user who may do this."
    ),
    "exists": "MLflow at {where} has such an entry already ({why}).",
    "other": "MLflow at {where} could not handle the request ({why}).",
}


def kind_of(error: BaseException) -> Kind:
    """The kind of an exception that MLflow or one of its libraries raised."""
    if isinstance(error, TrackingError):
        return error.kind
    code = getattr(error, "error_code", None)
    is_mlflow = "API request to endpoint" not in str(error)  # otherwise a proxy or another kind of server answered
    if code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "ENDPOINT_NOT_FOUND") and not is_mlflow:
        return "other"
    if code in _BY_CODE:
        return _BY_CODE[code]
    for each in _chain(error):
        status = getattr(getattr(each, "response", None), "status_code", None)
        if status in _BY_STATUS:
            return _BY_STATUS[status]
        if "too many 5" in str(each) or "database is locked" in str(each):
            return "busy"
    if any(_no_answer(each) for each in _chain(error)):
        return "away"
    return "other"


def _no_answer(error: BaseException) -> bool:
    if isinstance(error, (ConnectionError, TimeoutError, socket.gaierror)):
        return True
    name, module = type(error).__name__, type(error).__module__
    if module.startswith(("requests", "urllib3")):
        return any(word in name for word in ("Connect", "Timeout", "MaxRetry", "NameResolution", "Protocol", "SSL", "Proxy"))
    refused = ("could not connect", "Connection refused", "could not translate host name", "Can't connect")
    return name == "OperationalError" and any(word in str(error) for word in refused)


def _chain(error: BaseException) -> Iterator[BaseException]:
    following: BaseException | None = error
    while following is not None:
        yield following
        following = following.__cause__ or following.__context__


def _cause(error: BaseException) -> str:
    """The cause in one sentence: the network error if there is one, else the first sentence of MLflow's message."""
    root: Any = list(_chain(error))[-1]
    if isinstance(root, (ConnectionError, TimeoutError, socket.gaierror)):
        return root.strerror or str(root) or type(root).__name__
    text = str(error).strip() or type(error).__name__
    if found := re.search(r"failed with error code (\d+)", text):
        return f"HTTP {found.group(1)}, not an answer of MLflow" if found.group(1) == "404" else f"HTTP {found.group(1)}"
    if found := re.search(r"too many (\d+) error responses", text):
        return f"HTTP {found.group(1)}"
    line = re.sub(r"^[A-Z_]+: ", "", text.splitlines()[0])
    line = re.sub(r"^\(.*?(\w+Error)\) ", "", line)
    return re.split(r"\.\s", line, maxsplit=1)[0].rstrip(".")
