"""What went wrong with a storage, in one paragraph that says what to do."""

from __future__ import annotations

import re

from obstore.exceptions import GenericError, NotFoundError, NotSupportedError, PermissionDeniedError, UnauthenticatedError

from swav_platform.data.storage.cache import is_command
from swav_platform.data.storage.objects import is_remote

_HEAD = re.compile(r"^(?:Generic \S+ error: )?(?:Error performing \w+ \S+ in \S+?,? )?")


def explain(url: str, error: Exception) -> str:
    """For a person who named `url`."""
    if is_command(url):
        return f"{url} gives no tar ({error}): run the command by itself, and see why."
    if not is_remote(url):
        return f"{url} can't be read ({getattr(error, 'strerror', None) or error}): check that it exists and may be read."
    text = reason(error)
    scheme = url.partition("://")[0]
    settings = {
        "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and, for other storages than Amazon's, AWS_ENDPOINT_URL"
    }
    settings["gs"] = "GOOGLE_APPLICATION_CREDENTIALS"
    credentials = settings.get(scheme, "the address (a signed one may have expired)")
    if "NoSuchBucket" in str(error):
        return f"There is no bucket '{url.split('/')[2]}', which {url} names: check its spelling, and AWS_ENDPOINT_URL and AWS_REGION."
    if isinstance(error, FileNotFoundError | NotFoundError):
        return f"{url} is not there (404): check the spelling; for a bucket, also {credentials}."
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return f"{url} may not be read ({text}): check {credentials}. For a public bucket set AWS_SKIP_SIGNATURE=true."
    if isinstance(error, NotSupportedError):
        return f"{url} lies on a server that knows no ranges of bytes ({text})."
    if isinstance(error, GenericError | OSError):
        return (
            f"{url} could not be reached ({text}): check the network, the name of the host and {credentials}; then run it again."
        )
    return f"{url} can't be read ({text}): check the address."


def reason(error: Exception) -> str:
    """The first line of what an exception says, without what repeats the address."""
    text = str(error)
    line = _HEAD.sub("", text.partition("\n")[0]).strip(" -:") or type(error).__name__
    if "dns error" in text or "failed to lookup" in text:
        line = "there is no such host"
    elif "ConnectionRefused" in text:
        line = "connection refused"
    elif "kind: Timeout" in text or "TimedOut" in text:
        line = "no answer in time"
    elif status := re.search(r"status code: (\d+ [A-Z][\w ]*)", text):
        line = status[1].strip()
    return line[:200]
