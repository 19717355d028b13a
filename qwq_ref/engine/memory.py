"""What this process may use of the machine, and the refusal of a model that needs more memory."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from ..errors import MemoryLimitError
from ..footprint import human


def available_bytes() -> int:
    """The smallest of: memory the system can give without swapping, and what the control groups leave."""
    limits = [_system_available()]
    for used, limit in (("memory.current", "memory.max"), ("memory.usage_in_bytes", "memory.limit_in_bytes")):
        for group in _cgroups():
            try:
                maximum = (group / limit).read_text().strip()
                if maximum != "max":
                    limits.append(int(maximum) - int((group / used).read_text()))
            except (OSError, ValueError):
                continue
    return max(0, min(limits))


def cpus() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_bytes() -> int:
    """The most memory that this process has held so far (its peak resident set)."""
    try:  # what getrusage says includes the process that started this one, until it ran another program
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def require(parts: dict[str, int], model: str | os.PathLike[str], available: int | None = None) -> None:
    """Raise MemoryLimitError, with the sum, if what a model needs does not fit. `parts`: what for -> bytes."""
    available = available_bytes() if available is None else available
    needed = sum(parts.values())
    if needed > available:
        terms = " + ".join(f"{name} {human(size)}" for name, size in parts.items())
        raise MemoryLimitError(
            model, None, f"needs {human(needed)} of memory ({terms}), but {human(available)} are available"
        )


def _system_available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroups() -> list[Path]:
    """This process's control groups and those around them, of either version: each may set a limit."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    groups: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup", "memory" if controllers else "")
        group = root / path.lstrip("/")
        groups += [group, *(parent for parent in group.parents if parent.is_relative_to(root))]
    return groups
