"""Reads a file of weights without executing anything in it."""

from __future__ import annotations

import argparse
import hashlib
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from swav_platform.data.storage.cache import local_copy
from swav_platform.data.storage.errors import explain
from swav_platform.data.storage.objects import info, is_remote
from swav_platform.errors import UsageError, UserError


def local_file(source: str) -> Path:
    """The file `source` names, downloaded if it is a URL. Raises UsageError if there is none, UserError if it can't be fetched."""
    if is_remote(source):
        try:
            return local_copy(source, info(source).version)
        except UserError:
            raise
        except Exception as error:  # of obstore, or of the system
            raise UserError(explain(source, error)) from error
    path = Path(source).expanduser()
    if not path.is_file():
        raise UsageError(f"There is no file {path}. Name a .pth, .pth.tar, .torch or .safetensors file, or its URL.")
    return path


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path, name: str) -> Any:
    """The tree of tensors and plain values in a file. name: what the user called it, for messages.

    torch.load unpickles tensors and containers only (`weights_only`); argparse.Namespace is allowed, since it holds plain values and
    DINO and MSF store their options as one. Raises UserError for other files.
    """
    _refuse_archives(path, name)
    try:
        with path.open("rb") as file:
            head = file.read(9)
        if head[8:9] == b"{":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=None)
    except Exception as error:  # torch.load raises many types of errors
        said = " ".join(str(error).split())
        if wanted := said.partition("GLOBAL ")[2].split(" ")[0]:
            raise UserError(
                f"{name} holds an object that could run code ({wanted}), so it was not loaded and nothing in it was executed. If you "
                f"trust the file, load it yourself and save its state_dict alone."
            ) from None
        why = said.partition("WeightsUnpickler error: ")[2] or said.partition(" Re-running")[0]
        why = why.partition(" Check the documentation")[0]
        raise UserError(
            f"{name} can't be read as weights ({type(error).__name__}: {why[:160]}); nothing in it was executed. Download it again."
        ) from error


def _refuse_archives(path: Path, name: str) -> None:
    """Published files end in .tar and are no tars. Real ones, and packed files, have to be unpacked by the user."""
    if tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            first = [member.name for member, _ in zip(archive, range(3), strict=False)]
        raise UserError(
            f"{name} is a tar archive of {_some(first)}, not a file of weights. Unpack it with `tar -xf` and import the file in it."
        )
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as zipped:
            names = zipped.namelist()
        if not any(member.endswith("/data.pkl") for member in names):
            raise UserError(
                f"{name} is a zip archive of {_some(names)}, not a file of weights. Unpack it and import the file in it."
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) or "nothing"
