"""The room on the disk of a folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def free_bytes(folder: Path) -> int | None:
    """Return the bytes that are free where a folder is or will be; None where the system does not tell."""
    for place in (folder, *folder.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None


def same(one: Path, other: Path) -> bool:
    """Return whether two folders are or will be on one disk."""
    return _device(one) == _device(other)


def _device(folder: Path) -> int | None:
    for place in (folder, *folder.absolute().parents):
        try:
            return os.stat(place).st_dev
        except OSError:
            continue
    return None
