"""Requests that nobody should send: each image in every form, and bodies that are hostile themselves. For tests and benchmarks."""

from __future__ import annotations

import base64
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Hostile(NamedTuple):
    path: str
    body: bytes
    kind: str  # content type
    headers: Mapping[str, str] = {}


JSON = "application/json"
BOUNDARY = "X"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
MIB = 2**20


def documented(root: Path) -> dict[str, set[int]]:
    """The statuses of each error code, as docs/http.md tells them."""
    table = (root / "docs" / "http.md").read_text(encoding="utf-8").partition("## Errors")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", table, re.M)
    return {
        code: set(map(int, re.findall(r"\b[45]\d\d\b", told))) for codes, told in rows for code in re.findall(r"`(\w+)`", codes)
    }


def as_documented(status: int, answer: Any, codes: Mapping[str, set[int]]) -> str:
    """`ok` or the code of the error. Raises AssertionError for an answer that docs/http.md does not have."""
    if status == 200:
        return "ok"
    error = answer["error"]
    assert set(answer) == {"error"}, answer
    assert set(error) == {"code", "message", "detail"}, answer
    assert status in codes.get(error["code"], set()), (status, answer)
    assert status != 500, answer
    return str(error["code"])


def part(name: str, data: bytes, more: str = '; filename="a"') -> bytes:
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def in_every_form(image: bytes) -> dict[str, Hostile]:
    """A request for each way to send one image."""
    text = base64.b64encode(image).decode()
    uri = "data:image/jpeg;base64," + text
    content = {"content": [{"type": "image_url", "image_url": {"url": uri}}]}

    def told(path: str, body: Any) -> Hostile:
        return Hostile(path, json.dumps(body).encode(), JSON)

    return {
        "raw": Hostile("/v1/embeddings", image, "application/octet-stream"),
        "clusters": Hostile("/v1/clusters", image, "image/png"),
        "multipart": Hostile("/v1/embeddings", form(part("images", image)), FORM),
        "base64": told("/v1/embeddings", {"images": [{"base64": text}]}),
        "openai": told("/v1/embeddings", {"input": uri, "encoding_format": "base64"}),
        "infinity": told("/embeddings", {"input": [uri], "modality": "image"}),
        "cohere images": told("/v2/embed", {"images": [uri]}),
        "cohere inputs": told("/v2/embed", {"inputs": [content]}),
    }


def beside(good: bytes, image: bytes) -> Hostile:
    """Both images in one request."""
    return Hostile("/v1/embeddings", form(part("images", good), part("images", image)), FORM)


def _deflated(mebibytes: int, wbits: int = 15) -> bytes:
    packer = zlib.compressobj(9, wbits=wbits)
    return b"".join([*(packer.compress(bytes(MIB)) for _ in range(mebibytes)), packer.flush()])


def bodies(scale: int) -> Iterator[tuple[str, Callable[[], Hostile]]]:
    """Hostile bodies by name, made when they are needed. scale: 1 for a quick sample, 10 for bodies at the limits."""
    many = 10_000 * scale
    for path in ("/v1/embeddings", "/v1/neighbors", "/v2/embed", "/v1/explorer/list", "/v1/explorer/exclusions"):
        name = path.replace("/v1/", "")
        for opening in ("[", '{"images":', '{"input":[', '{"samples":[', '{"vector":['):
            yield f"{name}: {opening} nested", lambda p=path, o=opening: Hostile(p, (o * many).encode(), JSON)
        for number in ("9" * 5000, "9" * many, "1e999", "-1e999", "NaN", "-Infinity", "1" + "0" * 400 + ".5"):
            for key in ("images", "input", "vector", "samples", "top"):
                text = f'{{"images": [""], "{key}": [{number}]}}' if key == "top" else f'{{"{key}": [{number}]}}'
                yield f"{name}: {key} of {number[:9]}", lambda p=path, t=text: Hostile(p, t.encode(), JSON)
        for odd in (
            b'{"images": ["\\ud800"]}',
            b'{"images": ["\\u0000"]}',
            b'{"\\u0000": 1}',
            b"\xff\xfe{\0}\0",
            b"\0",
            b'"\xed\xa0\x80"',
        ):
            yield f"{name}: {odd!r}", lambda p=path, o=odd: Hostile(p, o, JSON)
        yield f"{name}: many keys", lambda p=path: Hostile(p, json.dumps({f"k{n}": n for n in range(many)}).encode(), JSON)
        yield f"{name}: a long key", lambda p=path: Hostile(p, json.dumps({"k" * 100 * many: 1}).encode(), JSON)
        yield f"{name}: many numbers", lambda p=path: Hostile(p, b'{"vector": [' + b"1," * 10 * many + b"1]}", JSON)
        yield f"{name}: many samples", lambda p=path: Hostile(p, b'{"samples": [' + b"1," * 110 * many + b"1]}", JSON)
        yield f"{name}: a long text", lambda p=path: Hostile(p, json.dumps({"images": ["A" * 200 * many]}).encode(), JSON)
        for coding, wbits in (("gzip", 31), ("deflate", 15), ("br", 15)):
            yield (
                f"{name}: {coding} bomb",
                lambda p=path, c=coding, w=wbits: Hostile(p, _deflated(10 * scale, w), JSON, {"content-encoding": c}),
            )
    yield "form of many files", lambda: Hostile("/v1/embeddings", form(part("images", b"x") * many), FORM)
    yield "form of many fields", lambda: Hostile("/v1/embeddings", form(part("kind", b"x", "") * many), FORM)
    yield "form of many empty parts", lambda: Hostile("/v1/embeddings", b"--X\r\n" * many, FORM)
    yield "form with a long header", lambda: Hostile("/v1/embeddings", form(part("a" * 100 * many, b"x")), FORM)
    yield "form with many headers", lambda: Hostile("/v1/embeddings", b"--X\r\n" + b"A: b\r\n" * many, FORM)
    yield "form with a long field", lambda: Hostile("/v1/embeddings", form(part("kind", b"x" * 200 * many, "")), FORM)
    yield "form with a long file", lambda: Hostile("/v1/embeddings", form(part("photo", b"x" * 200 * many)), FORM)
    yield "form with a strange boundary", lambda: Hostile("/v1/embeddings", b"--\r\n", "multipart/form-data; boundary=")
    yield "form with a long boundary", lambda: Hostile("/v1/embeddings", b"x", "multipart/form-data; boundary=" + "b" * 5000)
    for text, name in ((" " * 200 * many, "spaces"), ("%" * 100 * many, "percents"), ("=" * 100 * many, "paddings")):
        yield f"base64 of {name}", lambda t=text: Hostile("/v1/embeddings", json.dumps({"input": t}).encode(), JSON)
    yield "data URI with many parameters", lambda: _uri(";a=b" * 20 * many)
    yield (
        "URL of many characters",
        lambda: Hostile("/v1/embeddings", json.dumps({"input": "https://" + "a." * 50 * many}).encode(), JSON),
    )
    yield "gzip instead of an image", lambda: Hostile("/v1/embeddings", gzip.compress(bytes(10 * scale * MIB)), "image/jpeg")
    yield "zip instead of an image", lambda: Hostile("/v1/embeddings", b"PK\3\4" + _deflated(10 * scale), "image/jpeg")


def _uri(parameters: str) -> Hostile:
    return Hostile("/v1/embeddings", json.dumps({"input": f"data:image/png{parameters};base64,AAAA"}).encode(), JSON)
