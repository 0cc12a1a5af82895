"""The S3 server of the tests can fail in the ways that a run must survive."""

from __future__ import annotations

import obstore
import pytest
from obstore.exceptions import GenericError, PermissionDeniedError

from tests.s3 import S3Server

pytestmark = pytest.mark.stack


def test_it_stops_refuses_and_comes_back(s3: S3Server) -> None:
    store = s3.store("server")
    obstore.put(store, "object", b"0123456789")
    s3.stop()
    with pytest.raises(GenericError):
        obstore.get_range(store, "object", start=2, end=5)
    s3.start()
    s3.revoke()
    with pytest.raises(PermissionDeniedError):
        obstore.get_range(store, "object", start=2, end=5)
    s3.restore()
    assert bytes(obstore.get_range(store, "object", start=2, end=5)) == b"234"
