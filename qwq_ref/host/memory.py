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

# What the system takes back before it refuses memory: page cache, and caches of its own. The kernel estimates
# MemAvailable in this way. Page cache in use counts too: a program that needs it again reads it from the disk.
_RECLAIMABLE = ("inactive_file", "active_file", "slab_reclaimable")
_NEAR = 1 << 24  # bytes by which a number may change until it is read again
# Of control groups: the file of the usage -> the files of limits, and limits in memory.stat. In version 1, a second
# pair counts memory and swap together, and memory.stat has the limits of groups around that are not seen.
_USAGES = {
    "memory.current": (("memory.max", "memory.high"), ()),
    "memory.usage_in_bytes": (("memory.limit_in_bytes",), ("hierarchical_memory_limit",)),
    "memory.memsw.usage_in_bytes": (("memory.memsw.limit_in_bytes",), ("hierarchical_memsw_limit",)),
}
# Of the process, by the names that a shell has: the address space, and private memory that can be written.
_RESOURCES = {"ulimit -v": (resource.RLIMIT_AS, "VmSize"), "ulimit -d": (resource.RLIMIT_DATA, "VmData")}


@dataclass(frozen=True)
class Limit:
    """A limit on memory that is tighter than the machine's.

    name     of the file or the resource that sets it: "memory.max", "ulimit -v"
    maximum  bytes
    used     bytes, without the caches that the system can take back
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
    """Return the limits of this process's control groups, of both versions, and of `ulimit`; the tightest first.

    Swap is left out, as everywhere: a model that is swapped out is read from the disk for each token.
    """
    found, total = [], machine_bytes(root)
    for group in control_groups("memory", root):
        stat = _pairs(read(group / "memory.stat"))
        # The totals of version 1 include the groups within, as the usage does, and as all numbers of version 2 do.
        cached = sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in _RECLAIMABLE)
        for usage, (files, names) in _USAGES.items():
            used = max(0, (_number(read(group / usage)) or 0) - cached)
            maxima = {name: _number(read(group / name)) for name in files}
            maxima |= {name: stat.get(name) for name in names}
            found += [Limit(name, size, used) for name, size in maxima.items() if size is not None and size < total]
    if root == ROOT:
        found += _of_process()
    return sorted(found, key=lambda limit: limit.left)


def _of_process() -> list[Limit]:
    """Return the limits of `ulimit` on this process, if there are any."""
    maxima = {name: resource.getrlimit(kind)[0] for name, (kind, _) in _RESOURCES.items()}
    used = _fields(read(ROOT / "proc" / "self" / "status"))
    return [
        Limit(name, maximum, used[field])
        for name, maximum in maxima.items()
        if maximum != resource.RLIM_INFINITY and (field := _RESOURCES[name][1]) in used
    ]


def is_of_process(limit: str) -> bool:
    """Return whether a limit of this name is one of the process, and not of a control group."""
    return limit in _RESOURCES


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
    """Return the memory that the system can give without swapping; all of it where the system does not tell.

    A kernel before 3.14 tells no MemAvailable: free memory counts, and caches, which shared memory is no part of.
    """
    told, total = fields(root), machine_bytes(root)
    if "MemAvailable" in told or "MemFree" not in told:
        return told.get("MemAvailable", total)
    cached = max(0, told.get("Cached", 0) - told.get("Shmem", 0))
    return min(total, told["MemFree"] + cached + told.get("Buffers", 0) + told.get("SReclaimable", 0))


def fields(root: Path = ROOT) -> dict[str, int]:
    """Return the fields of /proc/meminfo: name -> bytes."""
    return _fields(read(root / "proc" / "meminfo"))


def _fields(text: str | None) -> dict[str, int]:
    found = {}
    for line in (text or "").splitlines():
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


def process_bytes() -> int:
    """Return the memory that this process holds now: its resident set. 0 where the system does not tell."""
    return _fields(read(ROOT / "proc" / "self" / "status")).get("VmRSS", 0)


def require(
    parts: dict[str, int], model: str | os.PathLike[str], available: int | None = None, reason: str | None = None
) -> None:
    """Raise MemoryLimitError, with the sum, if a model does not fit in memory.

    parts      purpose -> bytes
    available  None: `available_bytes`
    reason     the end of the error: why no more is available; None: the limit of the system, if there is one
    """
    available = available_bytes() if available is None else available
    needed = sum(parts.values())
    if needed > available:
        problem = f"needs {human(needed)} of memory ({terms(parts)}), but {human(available)} are available"
        tight = next(iter(limits()), None) if reason is None else None
        if tight is not None and abs(tight.left - available) < _NEAR:
            problem += f", limited by {tight.name}"
        problem += reason or ""
        raise MemoryLimitError(model, None, problem)


def terms(parts: dict[str, int]) -> str:
    """Return a sum for people: "weights 1.00 GiB + scratch 2.00 MiB"."""
    return " + ".join(f"{name} {human(size)}" for name, size in parts.items())
