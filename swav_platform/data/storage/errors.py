"""Actionable messages for storage errors."""

from __future__ import annotations

from obstore.exceptions import GenericError, NotFoundError, NotSupportedError, PermissionDeniedError, UnauthenticatedError

from swav_platform.data.storage.cache import is_command
from swav_platform.data.storage.objects import OddName, is_remote
from swav_platform.failures import reason

_REMEDIES = {
    "s3": (
        "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and, for storage other than Amazon's, AWS_ENDPOINT_URL",
        "For a public bucket set AWS_SKIP_SIGNATURE=true.",
    ),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS", "For a public bucket set GOOGLE_SKIP_SIGNATURE=true."),
}
_OF_WEB_SERVERS = (
    "the URL (a signed URL may have expired)",
    "For a token or a password set HF_TOKEN (huggingface.co), SWAV_HTTP_HEADERS (headers by host) or an entry in ~/.netrc.",
)


def explain(url: str, error: Exception) -> str:
    """The message for a user who passed `url`."""
    if is_command(url):
        return f"{url} gives no tar ({error}): run the command separately to find the cause."
    if not is_remote(url):
        return f"{url} can't be read ({getattr(error, 'strerror', None) or error}): check that it exists and its permissions."
    text = reason(error)
    scheme = url.partition("://")[0]
    credentials, public = _REMEDIES.get(scheme, _OF_WEB_SERVERS)
    if "NoSuchBucket" in str(error):
        return f"There is no bucket '{url.split('/')[2]}' ({url}): check the spelling, AWS_ENDPOINT_URL and AWS_REGION."
    if isinstance(error, OddName):
        return f"{url} can't be read: {error}, which no client can address. Copy the object to another name."
    if isinstance(error, FileNotFoundError | NotFoundError):
        return f"{url} does not exist (404): check the spelling" + (f" and {credentials}." if scheme in _REMEDIES else ".")
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return f"Access to {url} was denied ({text}): check {credentials}. {public}"
    if isinstance(error, NotSupportedError):
        return f"The server of {url} does not support byte ranges ({text})."
    if isinstance(error, GenericError | OSError):
        return f"{url} could not be reached ({text}): check the network, the host name and {credentials}; then try again."
    return f"{url} can't be read ({text}): check the URL."


def is_missing(error: Exception) -> bool:
    """Whether there is no such file or object, in a place that exists."""
    return isinstance(error, FileNotFoundError | NotFoundError) and "NoSuchBucket" not in str(error)
