"""Operations on object stores are repeated while they fail on their way, and only then."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
from obstore.exceptions import AlreadyExistsError, GenericError, NotFoundError, PermissionDeniedError

from swav_platform import failures
from swav_platform.data.storage.objects import Changed
from swav_platform.data.storage.retries import persistently
from swav_platform.failures import Kind, MachineFault

_REFUSED = "Generic S3 error: Error performing PUT http://h/b/a in 1ms - Server returned non-2xx status code: 400 Bad Request: "


def failing(*errors: Exception) -> Callable[[], str]:
    left = list(errors)

    def work() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return work


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "FIRST_PAUSE", 0.0)


def test_what_failed_on_its_way_is_repeated() -> None:
    work = failing(GenericError("error sending request"), Changed("s3://b/a has changed"), GenericError("reset"))
    assert persistently("s3://b/a", work) == "done"


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (PermissionDeniedError("403"), Kind.DENIED, "Access to s3://b/a was denied"),
        (GenericError(_REFUSED), Kind.UNREACHABLE, "s3://b/a could not be reached (400 Bad Request)"),
        (NotFoundError("<Code>NoSuchBucket</Code>"), Kind.MISSING, "There is no bucket 'b'"),
    ],
)
def test_a_refusal_is_a_machine_fault_at_once(error: Exception, kind: Kind, said: str) -> None:
    work = failing(error)
    with pytest.raises(MachineFault) as raised:
        persistently("s3://b/a", work)
    assert (raised.value.kind, raised.value.place) == (kind, "s3://b/a")
    assert str(pickle.loads(pickle.dumps(raised.value))).startswith(said)
    assert work() == "done", "it was called once"


def test_conditions_and_missing_objects_are_answers() -> None:
    with pytest.raises(AlreadyExistsError):
        persistently("s3://b/a", failing(AlreadyExistsError("a")))
    with pytest.raises(FileNotFoundError, match="s3://b/a does not exist"):
        persistently("s3://b/a", failing(NotFoundError("a")))
