"""Control groups as containers plant them: layouts, memory without page cache, quotas of CPU time."""

import os
import resource
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qwq_ref
from qwq_ref.host import doctor, limits, memory
from qwq_ref.host.cgroups import control_groups
from tests.support.machines import GIB, group1, group2, machine, mount, plant

TOP = "sys/fs/cgroup"
V2 = mount("cgroup2", "/sys/fs/cgroup")
V1 = mount("cgroup", "/sys/fs/cgroup/memory", options="rw,memory") + mount(
    "cgroup", "/sys/fs/cgroup/cpu,cpuacct", options="rw,cpu,cpuacct"
)


def process(groups, mounts):
    return {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts}


# Layouts: name -> (/proc/self/cgroup, mountinfo, the folders of memory groups from the process's own outwards).
LAYOUTS = {
    "version 2, a namespace of its own": ("0::/\n", V2, [TOP]),
    "version 2, the host's namespace": (
        "0::/user.slice/a.scope\n",
        V2,
        [f"{TOP}/user.slice/a.scope", f"{TOP}/user.slice", TOP],
    ),
    "version 2, a folder that shows the group": (
        "0::/docker/ab\n",
        mount("cgroup2", "/sys/fs/cgroup", "/docker/ab"),
        [TOP],
    ),
    "version 2, a group within the one that is shown": (
        "0::/docker/ab/init.scope\n",
        mount("cgroup2", "/sys/fs/cgroup", "/docker/ab"),
        [f"{TOP}/init.scope", TOP],
    ),
    "version 2, beside the namespace": ("0::/../other\n", V2, [TOP]),
    "version 2, a folder from before the namespace": ("0::/\n", mount("cgroup2", "/sys/fs/cgroup", "/../.."), [TOP]),
    "version 2, a group with the beginning of another's name": (
        "0::/docker/abc\n",
        mount("cgroup2", "/sys/fs/cgroup", "/docker/ab"),
        [TOP],
    ),
    "version 2, elsewhere": (
        "0::/a b\n",
        mount("cgroup2", r"/mnt/my\040groups"),
        ["mnt/my groups/a b", "mnt/my groups"],
    ),
    "version 2, seen twice": (
        "0::/a\n",
        mount("cgroup2", "/mnt/b", "/b") + mount("cgroup2", "/sys/fs/cgroup"),
        [f"{TOP}/a", TOP],
    ),
    "version 2, a name with colons": ("0::/a:b::c\n", V2, [f"{TOP}/a:b::c", TOP]),
    "version 1, the host's namespace": (
        "4:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n",
        V1,
        [f"{TOP}/memory/docker/ab", f"{TOP}/memory/docker", f"{TOP}/memory"],
    ),
    "version 1, a folder that shows the group": (
        "4:memory:/docker/ab\n",
        mount("cgroup", "/sys/fs/cgroup/memory", "/docker/ab", "rw,memory"),
        [f"{TOP}/memory"],
    ),
    "version 1, two controllers together": (
        "4:cpu,memory:/a\n",
        mount("cgroup", "/sys/fs/cgroup/cpu,memory", options="rw,cpu,memory"),
        [f"{TOP}/cpu,memory/a", f"{TOP}/cpu,memory"],
    ),
    "hybrid": (
        "5:memory:/a\n1:name=systemd:/b\n0::/c\n",
        V1
        + mount("cgroup2", "/sys/fs/cgroup/unified")
        + mount("cgroup", "/sys/fs/cgroup/systemd", options="rw,name=systemd"),
        [f"{TOP}/memory/a", f"{TOP}/memory", f"{TOP}/unified/c", f"{TOP}/unified"],
    ),
    "no mountinfo": (
        "4:memory:/a\n0::/c\n",
        None,
        [f"{TOP}/memory/a", f"{TOP}/memory", f"{TOP}/c", TOP, f"{TOP}/unified/c", f"{TOP}/unified"],
    ),
    "a hidden /proc": (None, None, [TOP, f"{TOP}/unified", f"{TOP}/memory"]),
    "no /sys": ("0::/a\n", mount("proc", "/proc"), [f"{TOP}/a", TOP, f"{TOP}/unified/a", f"{TOP}/unified"]),
    "no controller of version 1": ("4:cpuset:/a\n", V1, []),
    "nothing": ("", "", []),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_groups_of_every_layout_are_found(tmp_path, name):
    groups, mounts, wanted = LAYOUTS[name]
    files = {key: text for key, text in process(groups, mounts).items() if text is not None}
    plant(tmp_path, files)
    assert control_groups("memory", tmp_path) == [tmp_path / folder for folder in wanted]


# Memory: name -> (files of groups, by version 1 or 2, available GiB of 60, the file that limits).
INNER1, INNER2 = f"{TOP}/memory/pod/app", f"{TOP}/pod/app"
MEMORY = {
    "no limit, 2": (2, group2(INNER2), 60, None),
    "no limit, 1": (1, group1(INNER1), 60, None),
    "29 of 30 GiB are page cache, 2": (2, group2(INNER2, 32 * GIB, 30 * GIB, 29 * GIB), 31, "memory.max"),
    "29 of 30 GiB are page cache, 1": (1, group1(INNER1, 32 * GIB, 30 * GIB, 29 * GIB), 31, "memory.limit_in_bytes"),
    "29 of 30 GiB are active page cache, 2": (
        2,
        group2(INNER2, 32 * GIB, 30 * GIB, active=29 * GIB),
        31,
        "memory.max",
    ),
    "29 of 30 GiB are active page cache, 1": (
        1,
        group1(INNER1, 32 * GIB, 30 * GIB, active=29 * GIB),
        31,
        "memory.limit_in_bytes",
    ),
    "page cache of both kinds and slab": (
        2,
        group2(INNER2, 32 * GIB, 30 * GIB, 10 * GIB, active=9 * GIB, slab=8 * GIB),
        29,
        "memory.max",
    ),
    "page cache of a group around": (
        2,
        group2(INNER2) | group2(f"{TOP}/pod", 10 * GIB, 9 * GIB, 2 * GIB, active=3 * GIB, slab=1 * GIB),
        7,
        "memory.max",
    ),
    "throttled, with active page cache": (
        2,
        group2(INNER2, 32 * GIB, 4 * GIB, active=3 * GIB, high=4 * GIB),
        3,
        "memory.high",
    ),
    "memory and swap together, 1": (
        1,
        group1(INNER1, 32 * GIB, 2 * GIB, 1 * GIB, both=8 * GIB, both_used=5 * GIB),
        4,
        "memory.memsw.limit_in_bytes",
    ),
    "memory and swap together, of a group around, 1": (
        1,
        group1(INNER1, 32 * GIB, 2 * GIB, active=1 * GIB, both_around=8 * GIB, both_used=5 * GIB),
        4,
        "hierarchical_memsw_limit",
    ),
    "swap that is not accounted, 1": (
        1,
        {name: text for name, text in group1(INNER1, 8 * GIB, 2 * GIB, 1 * GIB).items() if "memsw" not in name},
        7,
        "memory.limit_in_bytes",
    ),
    "more page cache than use": (2, group2(INNER2, 8 * GIB, 1 * GIB, 3 * GIB), 8, "memory.max"),
    "more use than the limit": (2, group2(INNER2, 8 * GIB, 9 * GIB), 0, "memory.max"),
    "a lower limit around, 2": (
        2,
        group2(INNER2, 32 * GIB, 1 * GIB) | group2(f"{TOP}/pod", 10 * GIB, 9 * GIB, 5 * GIB),
        6,
        "memory.max",
    ),
    "a lower limit around, 1": (
        1,
        group1(INNER1, 32 * GIB, 1 * GIB) | group1(f"{TOP}/memory/pod", 10 * GIB, 9 * GIB, 5 * GIB),
        6,
        "memory.limit_in_bytes",
    ),
    "no limit within one": (2, group2(INNER2) | group2(f"{TOP}/pod", 10 * GIB), 10, "memory.max"),
    "a group around that is not seen, 1": (
        1,
        group1(INNER1, used=2 * GIB, cache=1 * GIB, around=12 * GIB),
        11,
        "hierarchical_memory_limit",
    ),
    "throttled before its limit": (2, group2(INNER2, 32 * GIB, 1 * GIB, high=4 * GIB), 3, "memory.high"),
    "throttled after its limit": (2, group2(INNER2, 4 * GIB, 1 * GIB, high=32 * GIB), 3, "memory.max"),
    "swap is no memory": (
        2,
        group2(INNER2, 4 * GIB) | {f"{INNER2}/memory.swap.max": f"{32 * GIB}"},
        4,
        "memory.max",
    ),
    "as much as the machine has": (2, group2(INNER2, 64 * GIB), 60, None),
    "a limit and no usage": (2, {f"{INNER2}/memory.max": f"{5 * GIB}"}, 5, "memory.max"),
    "a usage and no limit": (2, {f"{INNER2}/memory.current": f"{5 * GIB}"}, 60, None),
    "no statistics": (2, group2(INNER2, 8 * GIB, 2 * GIB) | {f"{INNER2}/memory.stat": ""}, 6, "memory.max"),
    "hybrid": (
        "both",
        group1(INNER1, 20 * GIB, 1 * GIB) | {f"{TOP}/unified/pod/app/cgroup.procs": ""},
        19,
        "memory.limit_in_bytes",
    ),
}
PROCESSES = {
    1: process("4:memory:/pod/app\n", V1),
    2: process("0::/pod/app\n", V2),
    "both": process("4:memory:/pod/app\n0::/pod/app\n", V1 + mount("cgroup2", "/sys/fs/cgroup/unified")),
}


@pytest.mark.parametrize("name", MEMORY)
def test_memory_is_the_limit_without_what_is_used(tmp_path, name):
    version, files, available, limit = MEMORY[name]
    plant(tmp_path, machine() | PROCESSES[version] | files)
    assert memory.available_bytes(tmp_path) == available * GIB
    facts = doctor.memory_facts(tmp_path)
    assert facts["available"] == available * GIB
    assert facts["group_available"] == (None if limit is None else available * GIB)
    assert (facts["limit"] and facts["limit"]["name"]) == limit


def test_a_tight_machine_counts_before_a_wide_group(tmp_path):
    plant(tmp_path, machine(64 * GIB, 3 * GIB) | PROCESSES[2] | group2(INNER2, 32 * GIB, 1 * GIB))
    assert memory.available_bytes(tmp_path) == 3 * GIB
    assert doctor.memory_facts(tmp_path)["group_available"] == 31 * GIB


def test_without_meminfo_the_group_still_counts(tmp_path):
    plant(tmp_path, PROCESSES[2] | group2(INNER2, 1 << 20, 1 << 18))
    assert memory.available_bytes(tmp_path) == 3 << 18


# /proc/meminfo of kernels before 3.14, which estimate nothing: name -> (its fields in GiB, what is available).
OLD = {
    "free alone": ({"MemFree": 5}, 5),
    "free and cached": ({"MemFree": 5, "Cached": 20}, 25),
    "buffers and slab": ({"MemFree": 5, "Buffers": 1, "Cached": 20, "SReclaimable": 2}, 28),
    "shared memory is cached, and stays": ({"MemFree": 5, "Cached": 20, "Shmem": 4}, 21),
    "nonsense": ({"MemFree": 60, "Cached": 50}, 64),
    "more shared than cached": ({"MemFree": 5, "Cached": 2, "Shmem": 4}, 5),
    "nothing": ({}, 64),
}


@pytest.mark.parametrize("name", OLD)
def test_an_old_kernel_that_estimates_nothing(tmp_path, name):
    sizes, available = OLD[name]
    lines = [f"{field}: {size << 20} kB\n" for field, size in {"MemTotal": 64, **sizes}.items()]
    plant(tmp_path, {"proc/meminfo": "".join(lines)})
    assert memory.available_bytes(tmp_path) == available * GIB


@pytest.mark.parametrize("where", ["top", "unified", "memory"])
def test_a_hidden_proc_hides_no_limit(tmp_path, where):
    """Where /proc/self is not shown, the container's own groups are the tops."""
    files = {"top": group2(TOP, 7 * GIB), "unified": group2(f"{TOP}/unified", 7 * GIB)}
    plant(tmp_path, machine() | files.get(where, group1(f"{TOP}/memory", 7 * GIB)))
    assert memory.available_bytes(tmp_path) == 7 * GIB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
def test_a_limit_on_private_memory_counts():
    """As `ulimit -d` sets it. What is mapped without a right to write, or shared, does not count."""
    script = """
import mmap, resource
from qwq_ref import errors
from qwq_ref.host import doctor, memory
shared = mmap.mmap(-1, 1 << 29)
print(memory.available_bytes(), doctor.memory_facts()["limit"])
try:
    memory.require({"weights": 1 << 34}, "m")
except errors.MemoryLimitError as error:
    print(error)
left = memory.available_bytes()
private = mmap.mmap(-1, 1 << 28, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
print(left - memory.available_bytes())
"""

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))

    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, preexec_fn=limit, env=environment, capture_output=True, text=True, check=True)
    first, error, taken = done.stdout.splitlines()
    available, _, limited = first.partition(" ")
    assert 1 << 29 < int(available) < (1 << 30) - (1 << 20)
    assert limited == f"{{'name': 'ulimit -d', 'maximum': {1 << 30}}}"
    assert error.startswith("m: needs 16.00 GiB of memory (weights 16.00 GiB), but ")
    assert error.endswith(" are available, limited by ulimit -d")
    assert 1 << 28 <= int(taken) < (1 << 28) + (1 << 22)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
def test_a_limit_on_the_address_space_counts():
    script = "from qwq_ref.host import doctor, memory; print(memory.available_bytes(), doctor.memory_facts()['limit'])"

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))

    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, preexec_fn=limit, env=environment, capture_output=True, text=True, check=True)
    available, _, limited = done.stdout.strip().partition(" ")
    assert 1 << 28 < int(available) < (1 << 30) - (1 << 20)
    assert limited == f"{{'name': 'ulimit -v', 'maximum': {1 << 30}}}"


# --- CPU time -------------------------------------------------------------------------------------------------------

CPU1 = "4:cpu,cpuacct:/pod/app\n"


@pytest.mark.parametrize(
    ("cpus", "quota", "threads"),
    [
        (8, 0.5, 1),
        (8, 0.01, 1),
        (8, 1.0, 1),
        (8, 1.5, 2),
        (8, 2.0, 2),
        (8, 7.01, 8),
        (8, 64.0, 8),
        (2, 4.0, 2),
        (1, 1.5, 1),
    ],
)
@pytest.mark.parametrize("version", [1, 2, "around", "hybrid"])
def test_threads_are_the_quota_rounded_up(tmp_path, monkeypatch, cpus, quota, threads, version):
    monkeypatch.setattr(limits, "usable_cpus", lambda: set(range(cpus)))
    time = round(quota * 100_000)
    if version in (1, "hybrid"):
        groups = CPU1 + ("0::/pod/app\n" if version == "hybrid" else "")
        folder = f"{TOP}/cpu,cpuacct/pod/app"
        files = {f"{folder}/cpu.cfs_quota_us": f"{time}\n", f"{folder}/cpu.cfs_period_us": "100000\n"}
        files |= process(groups, V1 + mount("cgroup2", "/sys/fs/cgroup/unified"))
    else:
        tight = f"{TOP}/pod/app" if version == 2 else f"{TOP}/pod"
        files = {f"{TOP}/pod/app/cpu.max": "max 100000\n", f"{tight}/cpu.max": f"{time} 100000\n"}
        files |= process("0::/pod/app\n", V2)
    plant(tmp_path, files)
    assert limits.cpu_quota(tmp_path) == quota
    assert limits.cpus(tmp_path) == threads


def test_without_a_quota_every_usable_cpu_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "usable_cpus", lambda: {2, 3, 9})
    assert limits.cpus(tmp_path) == 3
    plant(tmp_path, process(CPU1, V1) | {f"{TOP}/cpu,cpuacct/pod/app/cpu.cfs_quota_us": "-1\n"})
    assert limits.cpus(tmp_path) == 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="asks the system of Linux")
def test_a_cpuset_counts():
    """The system keeps a process's affinity within its cpuset."""
    one = min(os.sched_getaffinity(0))
    script = f"import os; os.sched_setaffinity(0, {{{one}}}); from qwq_ref.host import limits; print(limits.cpus())"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "1\n"


def test_loading_takes_the_threads_of_the_quota(monkeypatch):
    monkeypatch.setattr(limits, "usable_cpus", lambda: set(range(8)))
    monkeypatch.setattr(limits, "cpu_quota", lambda root=None: 2.5)
    model = qwq_ref.load("qwq-nano")
    assert model.backend.threads == (3 if qwq_ref.core.available() else 1)


@settings(max_examples=settings.default.max_examples // 2)
@given(data=st.data())
def test_nonsense_in_any_file_breaks_nothing(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("machine")
    files = machine() | PROCESSES["both"] | group1(INNER1, 20 * GIB, GIB) | group2(INNER2, 9 * GIB, GIB)
    files |= {f"{INNER2}/cpu.max": "1 1", f"{TOP}/cpu,cpuacct/cpu.cfs_quota_us": "5"}
    words = st.text(st.sampled_from("0123456789-, \n:/max.²\0\\kB"), max_size=20)
    for name in data.draw(st.lists(st.sampled_from(sorted(files)), min_size=1, max_size=6, unique=True)):
        text, at = files[name], data.draw(st.integers(0, 40))
        files[name] = data.draw(st.sampled_from([data.draw(words), text[:at] + data.draw(words) + text[at:]]))
    plant(root, files)
    assert memory.available_bytes(root) >= 0
    assert limits.cpus(root) >= 1
