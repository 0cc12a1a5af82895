"""The JSON bodies that the service understands, as a table: where the images are, which settings there are.

A body speaks the first dialect of its route one of whose image keys it has.
"""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.embeddings.answers import numbers
from services.embeddings.edge.settings import (
    ClusterSettings,
    CohereSettings,
    EmbeddingSettings,
    ItemSettings,
    NeighbourSettings,
    OpenAISettings,
    Settings,
)

Text = tuple[str | None, str]
"""Name and text (base64, data URI or URL) of one image."""


@dataclass(frozen=True)
class Source:
    """A key of the body that holds images."""

    read: Callable[[Any], list[Text] | None] | None  # gives None for a value of another shape. None: the key holds a vector
    shape: str  # in words, for the error
    schema: Mapping[str, Any]  # for OpenAPI


@dataclass(frozen=True)
class Dialect:
    name: str
    sources: Mapping[str, Source]
    settings: type[Settings]
    numbers: int = 0  # that a body may have: those of a vector


def _each(value: Any, read: Callable[[Any], Text | None]) -> list[Text] | None:
    if not isinstance(value, list):
        return None
    found = [read(one) for one in value]
    return None if any(text is None for text in found) else [text for text in found if text is not None]


def _plain(value: Any) -> Text | None:
    return (None, value) if isinstance(value, str) else None


def _named(value: Any) -> Text | None:
    """Our own form: {"base64": …, "name": …}, or "url" instead of "base64"."""
    if not isinstance(value, dict) or len(set(value) - {"name"}) != 1 or set(value) - {"base64", "url", "name"}:
        return _plain(value)
    text, name = value.get("base64", value.get("url")), value.get("name")
    return (name, text) if isinstance(text, str) and isinstance(name, str | None) else None


def _content(value: Any) -> Text | None:
    """Cohere's {"content": [{"type": "image_url", "image_url": {"url": …}}]} with a single image."""
    try:
        [part] = value["content"]
        url = part["image_url"]["url"]
        fits = set(value) == {"content"} and part["type"] == "image_url"
    except (ValueError, TypeError, KeyError):
        return None
    return (None, url) if fits and isinstance(url, str) else None


_STRING = {
    "type": "string",
    "format": "image",
    "description": "base64, a data URI, or an https URL if the service allows its host",
}


def _named_schema(key: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [key],
        "properties": {key: _STRING, "name": {"type": ["string", "null"]}},
        "additionalProperties": False,
    }


_CONTENT = {
    "type": "object",
    "required": ["content"],
    "additionalProperties": False,
    "properties": {
        "content": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": {
                "type": "object",
                "required": ["type", "image_url"],
                "properties": {
                    "type": {"const": "image_url"},
                    "image_url": {"type": "object", "required": ["url"], "properties": {"url": _STRING}},
                },
            },
        }
    },
}


def _list_of(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": schema}


_OWN = {
    "images": Source(
        lambda value: _each(value, _named),
        'a list of {"base64": text, "name": text (optional)}, {"url": text, "name": text (optional)}, or texts',
        _list_of({"anyOf": [_STRING, _named_schema("base64"), _named_schema("url")]}),
    )
}
_INPUT = {
    "input": Source(
        lambda value: _each([value] if isinstance(value, str) else value, _plain),
        "the base64, data URI or URL of an image, or a list of them",
        {"anyOf": [_STRING, _list_of(_STRING)]},
    )
}
_COHERE = {
    "images": Source(lambda value: _each(value, _plain), "a list of data URIs, base64 texts or URLs", _list_of(_STRING)),
    "inputs": Source(
        lambda value: _each(value, _content),
        'a list of {"content": [{"type": "image_url", "image_url": {"url": data URI or URL}}]}, one image in each',
        _list_of(_CONTENT),
    ),
}

_NUMBERS = {"type": "array", "minItems": 1, "items": {"type": "number"}}
_VECTOR = {"vector": Source(None, "a list of numbers, not all zero", _NUMBERS)}

OPENAI = Dialect("openai", _INPUT, OpenAISettings)
COHERE = Dialect("cohere", _COHERE, CohereSettings)
EMBEDDINGS = (Dialect("own", _OWN, EmbeddingSettings), OPENAI)
CLUSTERS = (Dialect("own", _OWN, ClusterSettings),)
NEIGHBOURS = (Dialect("own", _OWN, NeighbourSettings), Dialect("vector", _VECTOR, NeighbourSettings, 16_384))
ITEMS = (Dialect("own", _OWN, ItemSettings),)


def shortened(vectors: np.ndarray, dimensions: int | None) -> np.ndarray:
    """The first numbers of each vector, scaled to unit length: float32 [n, dimensions]."""
    if dimensions is None:
        return vectors
    cut = vectors[:, :dimensions]
    return np.asarray(cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-12), np.float32)


def floats_as_base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def openai_answer(vectors: np.ndarray, model: Mapping[str, str], settings: OpenAISettings) -> dict[str, Any]:
    """OpenAI's list of embeddings. `digest` is ours: it tells one version of a model from the next."""
    write = floats_as_base64 if settings.encoding_format == "base64" else numbers
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": write(vector)} for i, vector in enumerate(vectors)],
        "model": model["name"],
        "digest": model["digest"],
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
        "id": f"embd-{uuid.uuid4().hex}",
        "created": int(time.time()),
    }


def _int8(vector: np.ndarray) -> np.ndarray:
    """Scaled so that the largest number is ±127: cosines stay, lengths do not."""
    return np.rint(vector * (127 / max(float(np.abs(vector).max()), 1e-12))).astype(np.int16)


def _bits(vector: np.ndarray) -> np.ndarray:
    """Signs, eight to a byte, the first in the highest bit."""
    return np.packbits(vector > 0).astype(np.int16)


QUANTISED: Mapping[str, Callable[[np.ndarray], Any]] = {
    "float": numbers,
    "base64": floats_as_base64,
    "int8": lambda vector: _int8(vector).tolist(),
    "uint8": lambda vector: (_int8(vector) + 128).tolist(),
    "ubinary": lambda vector: _bits(vector).tolist(),
    "binary": lambda vector: (_bits(vector) - 128).tolist(),
}
"""Cohere's embedding types. uint8 is int8 + 128, binary is ubinary − 128, as in Cohere's service."""


def cohere_answer(vectors: np.ndarray, model: Mapping[str, str], settings: CohereSettings) -> dict[str, Any]:
    """Cohere's embeddings by type. `model` is ours."""
    wanted = dict.fromkeys(settings.embedding_types)
    return {
        "id": str(uuid.uuid4()),
        "embeddings": {kind: [QUANTISED[kind](vector) for vector in vectors] for kind in wanted},
        "texts": [],
        "meta": {"api_version": {"version": "2"}, "billed_units": {"images": len(vectors)}},
        "response_type": "embeddings_by_type",
        "model": dict(model),
    }
