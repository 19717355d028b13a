"""What machine this is and what of it this process may use, as the system tells: files under `root`, which is /.

What a system does not tell is None: there is no /proc but on Linux, and a container may have no /sys.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")


@dataclass(frozen=True)
class Processors:
    """
    model        as the processor calls itself
    online       that the machine runs
    usable       of these, what this process may run on
    quota        as many processors' time as the control groups allow; None: no limit
    cores        that the usable ones are threads of
    nodes        of memory (NUMA) that the usable ones are near to
    last_cache   bytes of the largest cache of the first of them
    last_caches  bytes of the largest caches of all of them
    load         programs that wanted to run on the machine, a mean over the last minute
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


def usable_cpus() -> set[int]:
    """Numbers of the processors that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def processors(root: Path = ROOT, usable: set[int] | None = None) -> Processors:
    """All of it. `usable`: as `usable_cpus`, which it is by default."""
    system = root / "sys" / "devices" / "system"
    usable = usable_cpus() if usable is None else usable
    online = _numbers(_text(system / "cpu" / "online"))
    cores, caches = set(), {}
    for cpu in sorted(usable):
        folder = system / "cpu" / f"cpu{cpu}"
        threads = _text(folder / "topology" / "thread_siblings_list")
        if threads is not None:
            cores.add(threads)
        cache = _largest_cache(folder / "cache")
        if cache is not None:
            caches[cache[0]] = cache[1]
    nodes = [_numbers(_text(file)) for file in sorted((system / "node").glob("node*/cpulist"))]
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
    """The first processor's name; its architecture where it has none."""
    return _cpuinfo(root).get("model name") or platform.processor() or platform.machine() or "unknown"


def cpu_flags(root: Path = ROOT) -> list[str] | None:
    """What the system says that the first processor has, by Linux's names."""
    flags = _cpuinfo(root).get("flags")
    return None if flags is None else flags.split()


def cpu_quota(root: Path = ROOT) -> float | None:
    """As many processors' time as the tightest control group around this process allows; None: no limit is known."""
    quotas = []
    for group in control_groups("cpu", root):
        both = (_text(group / "cpu.max") or "").split()  # version 2: the quota and its period
        if len(both) != 2:
            both = [_text(group / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
        if both[0].isdecimal() and both[1].isdecimal() and int(both[1]):  # "max" and -1 are no limit
            quotas.append(int(both[0]) / int(both[1]))
    return min(quotas, default=None)


def load_average(root: Path = ROOT) -> float | None:
    """Programs that wanted to run, a mean over the last minute."""
    words = (_text(root / "proc" / "loadavg") or "").split()
    return float(words[0]) if words and words[0].replace(".", "", 1).isdecimal() else None


def memory_fields(root: Path = ROOT) -> dict[str, int]:
    """/proc/meminfo: name -> bytes."""
    fields = {}
    for line in (_text(root / "proc" / "meminfo") or "").splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdecimal():
            fields[name] = int(words[0]) << (10 if words[1:] == ["kB"] else 0)
    return fields


def huge_page_mode(root: Path = ROOT) -> str | None:
    """Who gets transparent huge pages: "always", "madvise" (who asks for them) or "never"."""
    text = _text(root / "sys" / "kernel" / "mm" / "transparent_hugepage" / "enabled") or ""
    return next((word[1:-1] for word in text.split() if word.startswith("[") and word.endswith("]")), None)


def control_groups(controller: str, root: Path = ROOT) -> list[Path]:
    """This process's control groups and those around them, of either version: each may set a limit."""
    groups: list[Path] = []
    for line in (_text(root / "proc" / "self" / "cgroup") or "").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]  # 4:cpu,cpuacct:/path, or 0::/path in version 2
        if not number.isdecimal() or (controllers and controller not in controllers.split(",")):
            continue
        top = root / "sys" / "fs" / "cgroup" / (controller if controllers else "")
        group = top / path.lstrip("/")
        groups += [group, *(parent for parent in group.parents if parent.is_relative_to(top))]
    return groups


def _cpuinfo(root: Path) -> dict[str, str]:
    """Of the first processor."""
    first = (_text(root / "proc" / "cpuinfo") or "").partition("\n\n")[0]
    pairs = [line.partition(":") for line in first.splitlines()]
    return {name.strip(): value.strip() for name, _, value in pairs}


def _largest_cache(folder: Path) -> tuple[str, int] | None:
    """A processor's largest cache: a name that those who share it agree on, and bytes."""
    found = []
    for index in sorted(folder.glob("index*")):
        size = _text(index / "size") or ""
        if size[:-1].isdecimal() and size[-1] in "KM":
            shared = _text(index / "shared_cpu_list") or str(folder)
            found.append((int(size[:-1]) << {"K": 10, "M": 20}[size[-1]], shared))
    if not found:
        return None
    size_of, shared_by = max(found)
    return shared_by, size_of


def _numbers(text: str | None) -> set[int]:
    """What Linux writes as 0-3,8."""
    numbers: set[int] = set()
    for part in (text or "").split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def _text(file: Path) -> str | None:
    try:
        return file.read_text("utf-8", "replace").strip()
    except OSError:
        return None
