"""Limits on this process's processors: the CPUs that it may run on, and the time that control groups give it."""

from __future__ import annotations

import math
import os
from pathlib import Path

from .cgroups import control_groups
from .system import ROOT, read


def usable_cpus() -> set[int]:
    """Return the numbers of the CPUs that this process may run on: its affinity, which is kept within its cpuset."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def cpus(root: Path = ROOT) -> int:
    """Return how many threads can run at a time: the usable CPUs, or the quota of control groups, rounded up.

    A quota of 1.5 CPUs gives two threads, which rest a quarter of the time. One thread would leave a third unused.
    """
    quota = cpu_quota(root)
    usable = len(usable_cpus())
    return usable if quota is None else max(1, min(usable, math.ceil(quota)))


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
