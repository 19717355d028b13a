"""The conformance set: small packs, with their models, that ship with this package."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ...errors import UsageError
from ...files import StrPath
from .pack import Golden

_FOLDER = Path(__file__).parent / "conformance"


def conformance() -> list[str]:
    """Return the names of the packs that ship with this package."""
    return sorted(path.name for path in _FOLDER.iterdir() if path.is_dir()) if _FOLDER.is_dir() else []


def path(name: str) -> Path:
    """Return the folder of a pack that ships with this package. Raises UsageError."""
    if name not in conformance():
        raise UsageError(None, "golden", f"{name[:60]} is not among {', '.join(conformance())}")
    return _FOLDER / name


def open_golden(golden: StrPath | Golden) -> contextlib.AbstractContextManager[Golden]:
    """Open a pack by its folder or by the name of a shipped one; an open pack stays open. Raises GoldenError."""
    if isinstance(golden, Golden):
        return contextlib.nullcontext(golden)
    name = os.fspath(golden)
    if not os.path.exists(name) and name in conformance():
        return Golden.open(_FOLDER / name)
    return Golden.open(name)
