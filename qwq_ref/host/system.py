"""Files by which the system reports facts. Functions of this package take `root`, which is / but in tests.

A fact that a system does not report is None: only Linux has /proc, and a container may have no /sys.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/")


def read(file: Path) -> str | None:
    """Return the text of a file without spaces around it; None if it cannot be read."""
    try:
        return file.read_text("utf-8", "replace").strip()
    except (OSError, ValueError):  # ValueError: a NUL in the name, which comes from another file
        return None


def numbers(text: str | None) -> set[int]:
    """Return the numbers in a list such as "0-3,8"."""
    found: set[int] = set()
    for part in (text or "").split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            found |= set(range(int(first), int(last or first) + 1))
    return found
