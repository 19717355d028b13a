"""Facts of planted machines: processors, quotas, memory; without any files, and with nonsense in them."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq_ref.host import cpu, doctor, limits, memory
from tests.support.machines import plant

CPU = "sys/devices/system/cpu"


def server():
    """Two sockets of two cores of two threads; a last cache for each socket; a group with a quota within another."""
    files = {
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: Two of Them\nflags\t\t: sse avx2 fma f16c avx512f\n\n"
        "processor\t: 1\nmodel name\t: Another\nflags\t\t: sse\n",
        "proc/meminfo": "MemTotal:  1000 kB\nMemAvailable: 800 kB\nSwapTotal: 50 kB\nSwapFree: 20 kB\nHugePages: 3\n",
        "proc/loadavg": "1.25 0.50 0.25 1/234 5678\n",
        f"{CPU}/online": "0-7\n",
        "sys/devices/system/node/node0/cpulist": "0-1,4-5\n",
        "sys/devices/system/node/node1/cpulist": "2-3,6-7\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    }
    for number in range(8):
        core_of, socket = number % 4, number % 4 // 2
        files[f"{CPU}/cpu{number}/topology/thread_siblings_list"] = f"{core_of},{core_of + 4}\n"
        for index, (size, shared) in enumerate([("32K", core_of), ("1024K", core_of), ("24M", f"socket{socket}")]):
            files[f"{CPU}/cpu{number}/cache/index{index}/size"] = f"{size}\n"
            files[f"{CPU}/cpu{number}/cache/index{index}/shared_cpu_list"] = f"{shared}\n"
    return files


def test_a_planted_server(tmp_path):
    root = plant(tmp_path, server())
    assert cpu.processors(root, set(range(8))) == cpu.Processors(
        "Two of Them", 8, 8, None, 4, 2, 24 << 20, 48 << 20, 1.25
    )
    assert cpu.processors(root, {2, 6}) == cpu.Processors("Two of Them", 8, 2, None, 1, 1, 24 << 20, 24 << 20, 1.25)
    assert cpu.cpu_flags(root) == ["sse", "avx2", "fma", "f16c", "avx512f"]
    assert memory.fields(root)["HugePages"] == 3
    assert memory.huge_page_mode(root) == "madvise"
    facts = doctor.memory_facts(root)
    assert facts == {
        "total": 1000 << 10,
        "available": 800 << 10,
        "limit": None,
        "group_available": None,
        "swap_used": 30 << 10,
        "huge_page_mode": "madvise",
    }


@pytest.mark.parametrize(
    ("lines", "files", "quota"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "50000 100000\n", "a/cpu.max": "150000 100000\n"}, 0.5),
        ("0::/a\n", {"a/cpu.max": "max 100000\n"}, None),
        ("0::/a\n", {"a/cpu.max": "3\n"}, None),
        ("0::/a\n", {"a/cpu.max": "3 0\n"}, None),
        ("0::/elsewhere\n", {"cpu.max": "200000 100000\n"}, 2),
        (
            "5:cpuset:/a\n4:cpu,cpuacct:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "1e5"},
            None,
        ),
        (
            "5:cpuset:/\n4:cpuacct,cpu:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "300000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            3,
        ),
        ("4:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, None),
        ("4:cpuset:/a\n", {"cpu/a/cpu.cfs_quota_us": "300000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, None),
        ("no cgroup\n:\nx::/\n", {"cpu.max": "100000 100000"}, None),
    ],
)
def test_cpu_quotas_of_both_versions(tmp_path, lines, files, quota):
    plant(tmp_path, {"proc/self/cgroup": lines} | {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert limits.cpu_quota(tmp_path) == quota
    assert doctor.cpu_facts(1, tmp_path)["quota"] == quota


def test_a_machine_without_files(tmp_path):
    found = cpu.processors(tmp_path, {0, 1})
    assert (found.usable, found.online) == (2, os.cpu_count())
    assert (found.quota, found.cores, found.nodes, found.last_cache, found.last_caches, found.load) == (None,) * 6
    assert found.model
    assert memory.huge_page_mode(tmp_path) is None
    assert cpu.cpu_flags(tmp_path) is None
    facts = doctor.memory_facts(tmp_path)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert facts.pop("available") == total
    assert set(facts.values()) == {None}


@settings(max_examples=settings.default.max_examples // 2)
@given(data=st.data())
def test_nonsense_in_files_breaks_nothing(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("machine")
    files = server() | {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "1 1"}
    words = st.text(st.sampled_from("0123456789-, \n:kKM[]max/.²\0"), max_size=12)
    for name in data.draw(st.lists(st.sampled_from(sorted(files)), min_size=1, max_size=8, unique=True)):
        files[name] = data.draw(words)
    plant(root, files)
    found = cpu.processors(root, {0, 1, 5})
    assert found.usable == 3
    assert found.quota is None or found.quota >= 0
    doctor.cpu_facts(1, root, {0, 5})
    assert doctor.memory_facts(root)["available"] >= 0
