"""HTTP client of the embeddings service."""

from swav_platform.client.asynchronous import AsyncClient
from swav_platform.client.exchange import RefusedError
from swav_platform.client.images import Image
from swav_platform.client.sync import Client

__all__ = ["AsyncClient", "Client", "Image", "RefusedError"]
