"""The memory of this machine, and the refusal of a model that needs more than is available."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

from ..errors import MemoryLimitError
from ..footprint import human
from .cgroups import control_groups
from .system import ROOT, read

ADDRESS_SPACE = "ulimit -v"  # the name of the limit that a shell sets


@dataclass(frozen=True)
class Limit:
    """A limit on memory that is tighter than the machine's.

    name     of the file or the resource that sets it: "memory.max", "ulimit -v"
    maximum  bytes
    used     bytes, without the page cache that the system can take back
    """

    name: str
    maximum: int
    used: int

    @property
    def left(self) -> int:
        return max(0, self.maximum - self.used)


def available_bytes(root: Path = ROOT) -> int:
    """Return the memory that this process may take: the least of what the system and the limits leave."""
    return min([system_available(root), *(limit.left for limit in limits(root))])


def limits(root: Path = ROOT) -> list[Limit]:
    """Return the limits of this process's control groups, of both versions, and of `ulimit -v`; the tightest first.

    Swap is left out, as everywhere: a model that is swapped out is read from the disk for each token.
    """
    found, total = [], machine_bytes(root)
    for group in control_groups("memory", root):
        stat = _pairs(read(group / "memory.stat"))
        for usage, names, cache in (
            ("memory.current", ("memory.max", "memory.high"), ("inactive_file",)),
            # In version 1 there are totals with all groups within, and the limit of groups around that are not seen.
            ("memory.usage_in_bytes", ("memory.limit_in_bytes",), ("total_inactive_file", "inactive_file")),
        ):
            used = _number(read(group / usage)) or 0
            used -= min(used, next((stat[name] for name in cache if name in stat), 0))
            maxima = {name: _number(read(group / name)) for name in names}
            if usage == "memory.usage_in_bytes":
                maxima["hierarchical_memory_limit"] = stat.get("hierarchical_memory_limit")
            found += [Limit(name, size, used) for name, size in maxima.items() if size is not None and size < total]
    if root == ROOT:
        found += _address_space()
    return sorted(found, key=lambda limit: limit.left)


def _address_space() -> list[Limit]:
    """Return the limit of `ulimit -v` on this process, if there is one."""
    maximum = resource.getrlimit(resource.RLIMIT_AS)[0]
    pages = (read(ROOT / "proc" / "self" / "statm") or "").split()
    if maximum == resource.RLIM_INFINITY or not pages:
        return []
    return [Limit(ADDRESS_SPACE, maximum, int(pages[0]) * os.sysconf("SC_PAGE_SIZE"))]


def _pairs(text: str | None) -> dict[str, int]:
    """Return the lines "name number" of a file."""
    pairs = [line.split() for line in (text or "").splitlines()]
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _number(text: str | None) -> int | None:
    """Return a number of bytes; None for "max", and for a file that cannot be read."""
    return int(text) if text is not None and text.isdecimal() else None


def machine_bytes(root: Path = ROOT) -> int:
    """Return the memory of the machine."""
    return fields(root).get("MemTotal", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def system_available(root: Path = ROOT) -> int:
    """Return the memory that the system can give without swapping; all of it where the system does not tell."""
    return fields(root).get("MemAvailable", machine_bytes(root))


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
