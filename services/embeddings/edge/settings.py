"""Settings of the routes that take images: in the query, in a form, or as keys of a JSON body."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(None, description="any name while one model is served; the answer names it")


class EmbeddingSettings(Settings):
    kind: Literal["embedding", "projection"] = Field(
        "embedding", description="embedding: the encoder's features. projection: the head's output. Both have unit length."
    )


class ClusterSettings(Settings):
    top: int = Field(5, ge=1, le=20, description="number of prototypes to return")


class NeighbourSettings(Settings):
    k: int = Field(10, ge=1, le=100, description="number of samples to return")
    offset: int = Field(0, ge=0, le=10_000, description="number of nearer samples to leave out")
    cluster: int | None = Field(None, ge=0, le=2**31 - 1, description="only samples of this cluster")
    label: str | None = Field(None, description="only samples with this label")
    shard: str | None = Field(None, description="only samples of this shard (file name or more of its path)")
    key_prefix: str | None = Field(None, description="only samples whose key begins so")
    thumbnails: bool | None = Field(
        None, description="include thumbnails as data URIs; by default if the key has the scope `images`"
    )


class SampleSettings(NeighbourSettings):
    id: int | None = Field(None, ge=0, le=2**63 - 1, description="number of a stored sample, or id of an added item")
    key: str | None = Field(None, description="key of a sample or an added item; `shard` then tells its shard")


class ItemSettings(Settings):
    key: str | None = Field(None, min_length=1, max_length=1024, description="key of the only image; by default its name")
    label: str | None = Field(None, max_length=1024, description="label of the images")
    thumbnail: bool = Field(True, description="keep a thumbnail of each image")


class OpenAISettings(EmbeddingSettings):
    """Of OpenAI's `/v1/embeddings`, and infinity's `modality`."""

    encoding_format: Literal["float", "base64"] = Field("float", description="base64: of float32, little endian")
    dimensions: int | None = Field(None, ge=1, description="the first so many numbers, scaled to unit length")
    user: str | None = Field(None, description="has no effect")
    modality: Literal["image"] = "image"


InputType = Literal["image", "search_document", "search_query", "classification", "clustering"]
CohereType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]


class CohereSettings(Settings):
    """Of Cohere's `/v2/embed`."""

    input_type: InputType | None = Field(None, description="has no effect")
    embedding_types: list[CohereType] = Field(["float"], min_length=1, max_length=6)
    output_dimension: int | None = Field(None, ge=1, description="the first so many numbers, scaled to unit length")
    max_tokens: int | None = Field(None, description="has no effect")
    truncate: Literal["NONE", "START", "END"] | None = Field(None, description="has no effect")
    priority: int | None = Field(None, description="has no effect")
