"""Limits on this process: control groups and memory."""

import os

import pytest

from qwq_ref.host import memory


def test_available_memory_is_that_of_this_machine():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory.available_bytes() <= total
    assert 0 < memory.peak_bytes() <= total


@pytest.mark.parametrize("version", [1, 2])
def test_control_groups_limit_what_is_available(tmp_path, version):
    """The tightest of all groups around this process counts: its limit without its usage."""
    names = {1: ("memory.usage_in_bytes", "memory.limit_in_bytes"), 2: ("memory.current", "memory.max")}[version]
    top = tmp_path / "sys" / "fs" / "cgroup" / {1: "memory", 2: ""}[version]
    inner = top / "outer" / "inner"
    inner.mkdir(parents=True)
    for group, used, limit in (
        (top / "outer", 30_000, "100000"),
        (inner, 10, str(2**60) if version == 1 else "max"),
    ):
        (group / names[0]).write_text(str(used))
        (group / names[1]).write_text(limit)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    line = {1: "7:cpuset:/\n4:memory,hugetlb:/outer/inner\n", 2: "0::/outer/inner\n"}[version]
    (tmp_path / "proc" / "self" / "cgroup").write_text(line)
    assert memory.available_bytes(tmp_path) == 70_000
