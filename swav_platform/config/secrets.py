"""Removes passwords, tokens and signatures from text that is stored or shown."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"

_SECRET_WORDS = (
    r"signature|sig|token|access[_-]?token|id[_-]?token|password|passwd|pwd|passphrase|secret|secret[_-]?(?:access[_-]?)?key|"
    r"api[_-]?key|key|auth|authorization|credentials?|sas|awsaccesskeyid|googleaccessid|"
    r"x-(?:amz|goog|oss|cos)-(?:signature|credential|security-token)"
)
_RULES = (
    (re.compile(r"(://[^/:@\s'\"]*):[^/\s'\"]*@"), rf"\1:{HIDDEN}@"),  # user:password@
    (re.compile(r"(\bhttps?://)[^/:@\s'\"]+@"), rf"\1{HIDDEN}@"),  # token@
    (re.compile(rf"([?&;](?:{_SECRET_WORDS})=)[^&;\s'\"]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"(\bauthorization['\"]?\s*[:=]\s*(?:(?:bearer|basic|token)\s+)?)[^\s'\"]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"(\bcurl\b.*?\s(?:-u|--user)[ =]?['\"]?[^\s:'\"]+):[^\s'\"]+"), rf"\1:{HIDDEN}"),  # of pipe: commands
)


def without_secrets(text: str) -> str:
    """`text` with *** for passwords, tokens and signatures in its URLs."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def tree_without_secrets(tree: Any) -> Any:
    """A JSON tree with `without_secrets` applied to its strings."""
    if isinstance(tree, str):
        return without_secrets(tree)
    if isinstance(tree, Mapping):
        return {key: tree_without_secrets(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [tree_without_secrets(value) for value in tree]
    return tree


def has_hidden(text: str) -> bool:
    """Whether `without_secrets` removed something from `text`."""
    filled = text.replace(HIDDEN, "hidden")
    return HIDDEN in text and without_secrets(filled) != filled


class SecretsFilter(logging.Filter):
    """Removes secrets from log records; for handlers and loggers."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = without_secrets(record.getMessage()), ()
        return True
