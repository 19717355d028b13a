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


def group2(folder, limit="max", used=0, cache=0, high="max", more=""):
    """The files of a memory group of version 2. `cache`: bytes of inactive page cache."""
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.high": f"{high}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": f"anon 4096\nfile {cache}\ninactive_file {cache}\nactive_file 0\n{more}",
        f"{folder}/memory.swap.max": "0\n",
        f"{folder}/memory.swap.current": "0\n",
    }


def group1(folder, limit=0x7FFFFFFFFFFFF000, used=0, cache=0, around=0x7FFFFFFFFFFFF000):
    """The files of a memory group of version 1. `around`: the lowest limit of this group and those around it."""
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{used}\n",
        f"{folder}/memory.memsw.limit_in_bytes": f"{0x7FFFFFFFFFFFF000}\n",
        f"{folder}/memory.stat": f"cache 1\ninactive_file 1\nhierarchical_memory_limit {around}\n"
        f"total_cache {cache}\ntotal_inactive_file {cache}\ntotal_active_file 7\n",
    }
