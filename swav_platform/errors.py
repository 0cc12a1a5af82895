"""Errors shown to users. A message says what happened, why, and what to do."""

from __future__ import annotations


class UserError(Exception):
    """The operation failed. The command line prints the message and exits with code 1."""


class UsageError(UserError):
    """The command or its configuration is wrong. The command line exits with code 2."""
