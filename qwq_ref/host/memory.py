"""The memory of this machine, and the refusal of a model that needs more than is available."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from ..errors import MemoryLimitError
from ..footprint import human
from .limits import memory_left
from .system import ROOT, read


def available_bytes(root: Path = ROOT) -> int:
    """Return the memory that this process may take: the least of what the system and its control groups have left."""
    return min([system_available(root), *memory_left(root)])


def system_available(root: Path = ROOT) -> int:
    """Return the memory that the system can give without swapping; all of it where the system does not tell."""
    return fields(root).get("MemAvailable", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def fields(root: Path = ROOT) -> dict[str, int]:
    """Return the fields of /proc/meminfo: name -> bytes."""
    found = {}
    for line in (read(root / "proc" / "meminfo") or "").splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdecimal():
            found[name] = int(words[0]) << (10 if words[1:] == ["kB"] else 0)
    return found


def huge_page_mode(root: Path = ROOT) -> str | None:
    """Return when the system gives huge pages: "always", "madvise" (on request) or "never"."""
    text = read(root / "sys" / "kernel" / "mm" / "transparent_hugepage" / "enabled") or ""
    return next((word[1:-1] for word in text.split() if word.startswith("[") and word.endswith("]")), None)


def peak_bytes() -> int:
    """Return the most memory that this process has held so far: its peak resident set."""
    try:  # getrusage includes the parent process, until this one ran another program
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def require(parts: dict[str, int], model: str | os.PathLike[str], available: int | None = None) -> None:
    """Raise MemoryLimitError, with the sum, if a model does not fit in memory.

    parts      purpose -> bytes
    available  None: `available_bytes`
    """
    available = available_bytes() if available is None else available
    needed = sum(parts.values())
    if needed > available:
        problem = f"needs {human(needed)} of memory ({terms(parts)}), but {human(available)} are available"
        raise MemoryLimitError(model, None, problem)


def terms(parts: dict[str, int]) -> str:
    """Return a sum for people: "weights 1.00 GiB + scratch 2.00 MiB"."""
    return " + ".join(f"{name} {human(size)}" for name, size in parts.items())
