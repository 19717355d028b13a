"""The processors of this machine, as the system reports them."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from .limits import cpu_quota, usable_cpus
from .system import ROOT, numbers, read


@dataclass(frozen=True)
class Processors:
    """
    model        the processor's name
    online       CPUs that the machine runs
    usable       those that this process may run on
    quota        CPU time that control groups allow, in CPUs; None: no limit
    cores        cores to which the usable CPUs belong
    nodes        NUMA nodes of memory near the usable CPUs
    last_cache   bytes of the largest cache of the first usable CPU
    last_caches  bytes of the largest caches of all usable CPUs
    load         programs that wanted to run, a mean over the last minute
    """

    model: str
    online: int
    usable: int
    quota: float | None
    cores: int | None
    nodes: int | None
    last_cache: int | None
    last_caches: int | None
    load: float | None


def processors(root: Path = ROOT, usable: set[int] | None = None) -> Processors:
    """Return the facts of the processors. `usable`: CPU numbers; None: those of `limits.usable_cpus`."""
    system = root / "sys" / "devices" / "system"
    usable = usable_cpus() if usable is None else usable
    online = numbers(read(system / "cpu" / "online"))
    cores, caches = set(), {}
    for cpu in sorted(usable):
        folder = system / "cpu" / f"cpu{cpu}"
        threads = read(folder / "topology" / "thread_siblings_list")
        if threads is not None:
            cores.add(threads)
        cache = _largest_cache(folder / "cache")
        if cache is not None:
            caches[cache[0]] = cache[1]
    nodes = [numbers(read(file)) for file in sorted((system / "node").glob("node*/cpulist"))]
    sizes = list(caches.values())
    return Processors(
        model=cpu_model(root),
        online=len(online) or os.cpu_count() or len(usable),
        usable=len(usable),
        quota=cpu_quota(root),
        cores=len(cores) or None,
        nodes=sum(not usable.isdisjoint(near) for near in nodes) or None,
        last_cache=sizes[0] if sizes else None,
        last_caches=sum(sizes) or None,
        load=load_average(root),
    )


def cpu_model(root: Path = ROOT) -> str:
    """Return the first processor's name, or its architecture where it has none."""
    return _cpuinfo(root).get("model name") or platform.processor() or platform.machine() or "unknown"


def cpu_flags(root: Path = ROOT) -> list[str] | None:
    """Return the first processor's features by Linux's names; None where the system does not list them."""
    flags = _cpuinfo(root).get("flags")
    return None if flags is None else flags.split()


def load_average(root: Path = ROOT) -> float | None:
    """Return the number of programs that wanted to run, a mean over the last minute."""
    words = (read(root / "proc" / "loadavg") or "").split()
    return float(words[0]) if words and words[0].replace(".", "", 1).isdecimal() else None


def _cpuinfo(root: Path) -> dict[str, str]:
    """Return what /proc/cpuinfo holds of the first processor."""
    first = (read(root / "proc" / "cpuinfo") or "").partition("\n\n")[0]
    pairs = [line.partition(":") for line in first.splitlines()]
    return {name.strip(): value.strip() for name, _, value in pairs}


def _largest_cache(folder: Path) -> tuple[str, int] | None:
    """Return a processor's largest cache: a name that is the same for all who share it, and bytes."""
    found = []
    for index in sorted(folder.glob("index*")):
        size = read(index / "size") or ""
        if size[:-1].isdecimal() and size[-1] in "KM":
            shared = read(index / "shared_cpu_list") or str(folder)
            found.append((int(size[:-1]) << {"K": 10, "M": 20}[size[-1]], shared))
    if not found:
        return None
    size_of, shared_by = max(found)
    return shared_by, size_of
