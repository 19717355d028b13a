"""Limits on this process: the CPUs that it may run on, and the quotas and memory of its control groups."""

from __future__ import annotations

import os
from pathlib import Path

from .system import ROOT, read


def usable_cpus() -> set[int]:
    """Return the numbers of the CPUs that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def cpus() -> int:
    """Return how many CPUs this process may run on."""
    return len(usable_cpus())


def cpu_quota(root: Path = ROOT) -> float | None:
    """Return the CPU time that the tightest control group allows, in CPUs; None where no limit is known."""
    quotas = []
    for group in control_groups("cpu", root):
        both = (read(group / "cpu.max") or "").split()  # version 2: the quota and its period
        if len(both) != 2:
            both = [read(group / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
        if both[0].isdecimal() and both[1].isdecimal() and int(both[1]):  # "max" and -1 are no limit
            quotas.append(int(both[0]) / int(both[1]))
    return min(quotas, default=None)


def memory_left(root: Path = ROOT) -> list[int]:
    """Return, for each control group with a memory limit, the bytes that are left of it."""
    left = []
    for used, limit in (("memory.current", "memory.max"), ("memory.usage_in_bytes", "memory.limit_in_bytes")):
        for group in control_groups("memory", root):
            maximum, usage = read(group / limit), read(group / used)
            if maximum is not None and usage is not None and maximum.isdecimal() and usage.isdecimal():
                left.append(max(0, int(maximum) - int(usage)))
    return left


def control_groups(controller: str, root: Path = ROOT) -> list[Path]:
    """Return this process's control groups and those around them, of both versions: each may set a limit."""
    groups: list[Path] = []
    for line in (read(root / "proc" / "self" / "cgroup") or "").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]  # 4:cpu,cpuacct:/path, or 0::/path in version 2
        if not number.isdecimal() or (controllers and controller not in controllers.split(",")):
            continue
        top = root / "sys" / "fs" / "cgroup" / (controller if controllers else "")
        group = top / path.lstrip("/")
        groups += [group, *(parent for parent in group.parents if parent.is_relative_to(top))]
    return groups
