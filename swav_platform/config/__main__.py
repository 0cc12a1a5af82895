"""Prints docs/settings.md: `python -m swav_platform.config > docs/settings.md`."""

from swav_platform.config.table import markdown

print(markdown(), end="")
