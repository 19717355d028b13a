"""A journal of work that can be interrupted at any moment: lines of JSON, each behind its checksum.

A line that was cut off, or changed, ends the journal. Readers check the other files that it tells of: after a loss of
power, a line can be there without the bytes.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files import read_file

_MOST = 1 << 28  # bytes that are read


def read_journal(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the entries, and the number of bytes that they take. A file that cannot be read has none."""
    try:
        data = read_file(path, _MOST, CheckpointError)
    except CheckpointError:
        return [], 0
    entries: list[dict[str, Any]] = []
    good = 0
    for line in data.splitlines(keepends=True):
        entry = _entry(line)
        if entry is None:
            break
        entries.append(entry)
        good += len(line)
    return entries, good


def append_entry(descriptor: int, entry: dict[str, Any]) -> None:
    """Write an entry at the end of a journal that is open for appending. Raises OSError."""
    text = json.dumps(entry, separators=(",", ":")).encode()
    line = b"%08x %s\n" % (zlib.crc32(text), text)
    while line:
        line = line[os.write(descriptor, line) :]


def _entry(line: bytes) -> dict[str, Any] | None:
    """Return the entry of a line; None for one that is not whole."""
    digits, _, text = line[:-1].partition(b" ")
    if line[-1:] != b"\n" or digits != b"%08x" % zlib.crc32(text):
        return None
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None
