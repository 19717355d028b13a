"""Planted machines: the files by which a system reports facts, under a folder that stands for its root."""

GIB = 1 << 30


def plant(root, files):
    """Write the texts of `files`, by their paths under a root."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def machine(total=64 * GIB, available=60 * GIB):
    """The memory of a whole machine."""
    return {"proc/meminfo": f"MemTotal: {total >> 10} kB\nMemAvailable: {available >> 10} kB\n"}


def mount(kind, folder, shows="/", options="rw"):
    """A line of mountinfo: a hierarchy of control groups, the folder where it is seen, and the group that it shows."""
    optional = "shared:9 master:3 " if kind == "cgroup2" else ""
    return f"31 23 0:28 {shows} {folder} rw,nosuid,relatime {optional}- {kind} {kind} {options}\n"


def group2(folder, limit="max", used=0, cache=0, high="max", active=0, slab=0, more=""):
    """The files of a memory group of version 2. `cache` and `active`: bytes of inactive and of active page cache."""
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.high": f"{high}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": f"anon 4096\nfile {cache + active}\ninactive_file {cache}\n"
        f"active_file {active}\nunevictable 5\nslab_reclaimable {slab}\nslab_unreclaimable 3\n{more}",
        f"{folder}/memory.swap.max": "0\n",
        f"{folder}/memory.swap.current": "0\n",
    }


NONE = 0x7FFFFFFFFFFFF000


def group1(folder, limit=NONE, used=0, cache=0, around=NONE, active=0, both=NONE, both_used=0, both_around=NONE):
    """The files of a memory group of version 1. `around`: the lowest limit of this group and those around it.

    both  the limit of memory and swap together, and `both_used`, `both_around` as for memory alone
    """
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{used}\n",
        f"{folder}/memory.memsw.limit_in_bytes": f"{both}\n",
        f"{folder}/memory.memsw.usage_in_bytes": f"{both_used}\n",
        f"{folder}/memory.stat": f"cache 1\ninactive_file 1\nactive_file 1\nhierarchical_memory_limit {around}\n"
        f"hierarchical_memsw_limit {both_around}\ntotal_cache {cache + active}\n"
        f"total_inactive_file {cache}\ntotal_active_file {active}\n",
    }
