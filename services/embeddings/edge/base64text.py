"""Base64 as clients send it: MIME lines (Ruby, Java), the URL-safe alphabet, without padding, as a data URI of a browser."""

from __future__ import annotations

import base64
import binascii
import re

_STRAY = re.compile("%(?![0-9A-Fa-f]{2})")
_HEAD = 1000
_STANDARD = bytes.maketrans(b"-_", b"+/")
_SPACE = b" \t\r\n\v\f"


def decode(text: str) -> bytes:
    """The bytes of a base64 text or of a data URI. Raises ValueError, whose words continue "it is not base64: "."""
    text = text.strip("\ufeff \t\r\n\v\f")
    if text[:5].lower() == "data:":
        head, comma, text = text[5:].partition(",")
        if not comma:
            raise ValueError("the data URI has no comma before its data")
        if len(head) > _HEAD:
            raise ValueError(f"the data URI has more than {_HEAD} characters before its data")
        if "base64" not in (part.strip().lower() for part in head.split(";")):
            return _unescaped(text)
    if "%" in text:  # a URI may escape + / and =
        text = _unescaped(text).decode("latin-1")
    try:
        plain = text.encode("ascii").translate(_STANDARD, _SPACE).rstrip(b"=")
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is not of its alphabet") from None
    if len(plain) % 4 == 1:
        raise ValueError(f"{len(plain)} characters can't be whole bytes (its end may be missing)")
    try:
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except binascii.Error:
        raise ValueError("it has characters that are not of its alphabet") from None


def _unescaped(text: str) -> bytes:
    """Replaces %XX. urllib makes an object of each escape, and millions of them cost seconds; quoted-printable has the same escapes."""
    if _STRAY.search(text):
        raise ValueError("it has a % without two hexadecimal digits")
    return binascii.a2b_qp(text.encode("utf-8", "replace").replace(b"=", b"=3D").replace(b"%", b"="))
