"""Exports of a model package to other formats."""
