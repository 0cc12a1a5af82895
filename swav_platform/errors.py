"""Errors that a user meets: one paragraph that names the thing, the cause and what to do."""

from __future__ import annotations


class UserError(Exception):
    """The work could not be done. The command line prints the message and ends with exit code 1."""


class UsageError(UserError):
    """The command or its configuration is wrong. The command line ends with exit code 2."""
