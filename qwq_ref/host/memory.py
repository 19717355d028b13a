"""What this process may use of the machine, and the refusal of a model that needs more memory."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from ..errors import MemoryLimitError
from ..footprint import human
from .cpu import (
    ROOT,
    control_groups,
    memory_fields,
    usable_cpus,
)


def available_bytes(root: Path = ROOT) -> int:
    """The smallest of: memory the system can give without swapping, and what the control groups leave."""
    return min([system_available(root), *group_limits(root)])


def system_available(root: Path = ROOT) -> int:
    """What the system can give without swapping; all there is where it does not say."""
    return memory_fields(root).get("MemAvailable", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def group_limits(root: Path = ROOT) -> list[int]:
    """What each control group around this process, and with a limit, leaves of it."""
    limits = []
    for used, limit in (("memory.current", "memory.max"), ("memory.usage_in_bytes", "memory.limit_in_bytes")):
        for group in control_groups("memory", root):
            try:
                maximum = (group / limit).read_text().strip()
                if maximum != "max":
                    limits.append(max(0, int(maximum) - int((group / used).read_text())))
            except (OSError, ValueError):
                continue
    return limits


def cpus() -> int:
    """How many processors this process may use."""
    return len(usable_cpus())


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
        problem = f"needs {human(needed)} of memory ({terms(parts)}), but {human(available)} are available"
        raise MemoryLimitError(model, None, problem)


def terms(parts: dict[str, int]) -> str:
    """A sum for people."""
    return " + ".join(f"{name} {human(size)}" for name, size in parts.items())
