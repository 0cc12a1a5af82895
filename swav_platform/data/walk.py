"""The files below a folder, for all commands that take one: indexing, packing, the demo."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence

Note = Callable[[str, bytes], None]
"""note(reason, path): what is left out.

hidden_folder; linked_folder: a link to a folder that is visited under another name; special_file: a pipe, socket or device;
dangling_link; unreadable.
"""


def walk(root: bytes, note: Note, avoid: Collection[bytes] = (), more: Sequence[bytes] = ()) -> Iterator[bytes]:
    """Paths of the regular files below `root` and `more` folders, also hidden ones and those behind links.

    Each folder is visited once, so circles of links end: under its own name, or under that of a link if its own is not below `root`.
    Nothing is opened. avoid: folders that are left out without a note. Raises OSError if `root` can't be read.
    """
    roots = (root, *more)
    seen = {identity for folder in avoid if (identity := identity_of(folder)) is not None} - set(map(identity_of, roots))
    avoided = set(seen)
    folders, links = deque(sorted(roots, key=os.path.islink)), deque[bytes]()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        if (identity := identity_of(folder)) in seen:
            if identity not in avoided:
                note("linked_folder", folder)
            continue
        if identity is not None:
            seen.add(identity)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            if folder == root:
                raise
            note("unreadable", folder)
            continue
        for entry in entries:
            if (kind := _kind(entry)) == "file":
                yield entry.path
            elif kind != "folder":
                note(kind, entry.path)
            elif entry.name.startswith(b"."):
                note("hidden_folder", entry.path)
            else:
                (links if entry.is_symlink() else folders).append(entry.path)


def is_special(path: str | bytes) -> bool:
    """Whether a path is a pipe, socket or device, whose opening may never return."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _kind(entry: os.DirEntry[bytes]) -> str:
    """file, folder, or the reason why it is neither."""
    try:
        mode = entry.stat().st_mode
    except OSError:
        return "dangling_link" if entry.is_symlink() else "unreadable"
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "special_file"


def identity_of(path: bytes | str) -> tuple[int, int] | None:
    """Device and inode of a file or folder, the same under all its names; None if it can't be looked at."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
