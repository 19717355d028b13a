"""A warning at import, if this is a source folder without a compiled core: NumPy then computes, slowly."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

_warned: dict[Any, Any] = {}  # so that an import again says it no more


def warn() -> None:
    """Warn once, in one line on stderr. PYTHONWARNINGS=ignore silences it, as any warning."""
    message = problem(Path(__file__).parent, sys.path)
    if message is not None:
        warnings.warn_explicit(message, UserWarning, "qwq_ref", 1, "qwq", _warned)


def problem(package: Path, path: Sequence[str]) -> str | None:
    """Return the warning; None if the core is built, or if no sources stand beside the package.

    A package that was installed without a compiler is no surprise: `qwq doctor` reports it.

    package  the folder of the imported package
    path     the folders where Python looks for packages
    """
    sources = package.parent
    if not (sources / "csrc" / "qwq.h").is_file() or _is_built(package):
        return None
    fault = f"{sources} has no compiled core, so NumPy computes, slowly"
    for entry in path:
        other = Path(entry) / package.name
        if other.resolve() != package.resolve() and _is_built(other):
            return f"{fault}. It hides the package in {other.parent.resolve()}, which has one: run from another folder"
    return f"{fault}. With a C compiler, build it there: pip install -e ."


def _is_built(package: Path) -> bool:
    return any((package / "core" / f"_core{suffix}").is_file() for suffix in EXTENSION_SUFFIXES)
