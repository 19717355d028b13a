"""The conformance set: small packs, with their models, that ship with this package."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ...errors import GoldenError, UsageError, did_you_mean
from ...files import StrPath
from .pack import Golden

_FOLDER = Path(__file__).parent / "conformance"


def conformance() -> list[str]:
    """Return the names of the packs that ship with this package."""
    return sorted(path.name for path in _FOLDER.iterdir() if path.is_dir()) if _FOLDER.is_dir() else []


def path(name: str) -> Path:
    """Return the folder of a pack that ships with this package. Raises UsageError."""
    if name not in conformance():
        raise UsageError(name[:60], None, _no_such(name))
    return _FOLDER / name


def open_golden(golden: StrPath | Golden) -> contextlib.AbstractContextManager[Golden]:
    """Open a pack by its folder or by the name of a shipped one; an open pack stays open. Raises GoldenError."""
    if isinstance(golden, Golden):
        return contextlib.nullcontext(golden)
    name = os.fspath(golden)
    if not os.path.lexists(name):
        if name not in conformance():
            raise GoldenError(name, None, _no_such(name))
        return Golden.open(_FOLDER / name)
    return Golden.open(name)


def _no_such(name: str) -> str:
    near = did_you_mean(name, conformance())
    return f"is not a folder, and not a shipped pack{near}; those are {', '.join(conformance())}"
