"""Energy counters of planted machines: wraps, two sockets, domains within others, unreadable and missing files."""

import os
import time

import pytest

from qwq_ref.host import energy
from qwq_ref.host.energy import Energy, Given, find_meter
from tests.support.machines import plant

POWERCAP = "sys/class/powercap"
RANGE = 262_143_328_850  # microjoules, as of many processors of Intel


def zone(name, label, microjoules, most=RANGE):
    """The files of one domain, as Linux's driver intel_rapl lays them out. AMD's processors have the same."""
    return {
        f"{POWERCAP}/{name}/name": f"{label}\n",
        f"{POWERCAP}/{name}/energy_uj": f"{microjoules}\n",
        f"{POWERCAP}/{name}/max_energy_range_uj": f"{most}\n",
    }


def count(root, name, microjoules):
    (root / "new").write_text(f"{microjoules}\n")
    (root / "new").replace(root / POWERCAP / name / "energy_uj")  # in one step: a thread may read


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(energy, "perf_counter", lambda: now[0])
    return now


def test_one_socket(tmp_path, clock):
    root = plant(tmp_path, zone("intel-rapl:0", "package-0", 5_000_000))
    meter, words = find_meter(root=root)
    assert words == meter.source == "RAPL, package-0, idle power included"
    count(root, "intel-rapl:0", 7_500_000)
    clock[0] += 2
    assert meter.total() == Energy(2.5, 2)
    count(root, "intel-rapl:0", 8_500_000)
    clock[0] += 1
    assert meter.total() == Energy(3.5, 3)
    assert meter.total() - Energy(2.5, 2) == Energy(1.0, 1)


def test_a_counter_that_wraps(tmp_path, clock):
    root = plant(tmp_path, zone("intel-rapl:0", "package-0", 900_000_000, most=1_000_000_000))
    meter, _ = find_meter(root=root)
    for now, joules in [(950_000_000, 50), (20_000_000, 120), (20_000_000, 120), (19_000_000, 1119)]:
        count(root, "intel-rapl:0", now)
        assert meter.total().joules == joules


def test_two_sockets_and_nothing_twice(tmp_path, clock):
    """The parts of a package, the second path to it, and the whole platform count nothing."""
    files = {}
    for name, label in [
        ("intel-rapl:0", "package-0"),
        ("intel-rapl:0:0", "core"),
        ("intel-rapl:0:1", "uncore"),
        ("intel-rapl:0:2", "dram"),
        ("intel-rapl:1", "package-1"),
        ("intel-rapl:1:0", "package-9"),
        ("intel-rapl:2", "psys"),
        ("intel-rapl-mmio:0", "package-0"),
        ("dtpm:0", "package-0"),
    ]:
        files |= zone(name, label, 0)
    root = plant(tmp_path, files)
    meter, words = find_meter(root=root)
    assert words == "RAPL, package-0 and package-1, idle power included"
    for place, file in enumerate(sorted((root / POWERCAP).glob("*/energy_uj"))):
        file.write_text(str(1_000_000 * 10**place))
    order = [file.parent.name for file in sorted((root / POWERCAP).glob("*/energy_uj"))]
    wanted = 10 ** order.index("intel-rapl:0") + 10 ** order.index("intel-rapl:1")
    assert meter.total().joules == wanted


def test_dies_of_one_package_are_all_counted(tmp_path, clock):
    files = zone("intel-rapl:0", "package-0-die-0", 0) | zone("intel-rapl:1", "package-0-die-1", 0)
    root = plant(tmp_path, files)
    meter, _ = find_meter(root=root)
    count(root, "intel-rapl:0", 1_000_000)
    count(root, "intel-rapl:1", 2_000_000)
    assert meter.total().joules == 3


@pytest.mark.parametrize("files", [{}, zone("intel-rapl:0", "psys", 0), {f"{POWERCAP}/intel-rapl/enabled": "1\n"}])
def test_no_counter(tmp_path, files):
    meter, words = find_meter(root=plant(tmp_path, files))
    assert meter is None
    assert words == (
        "not measured: this machine shows no energy counters, as most virtual machines and containers; --watts takes a "
        "meter's reading"
    )


def test_a_counter_that_only_root_can_read(tmp_path):
    """Unreadable since 2020; one of two packages is not taken for the whole."""
    root = plant(tmp_path, zone("intel-rapl:0", "package-0", 0) | zone("intel-rapl:1", "package-1", 0))
    file = root / POWERCAP / "intel-rapl:1" / "energy_uj"
    file.unlink()
    file.mkdir()  # reading it fails for root, too
    meter, words = find_meter(root=root)
    assert meter is None
    assert words == (
        f"not measured: {file} cannot be read; Linux lets only root read it, unless "
        f"`chmod a+r` allows it; --watts takes a meter's reading"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_counter_without_permission(tmp_path):
    root = plant(tmp_path, zone("intel-rapl:0", "package-0", 0))
    (root / POWERCAP / "intel-rapl:0" / "energy_uj").chmod(0)
    assert find_meter(root=root)[0] is None


@pytest.mark.parametrize(("field", "text"), [("energy_uj", "-5"), ("energy_uj", ""), ("max_energy_range_uj", "0")])
def test_nonsense_in_a_counter(tmp_path, field, text):
    root = plant(tmp_path, zone("intel-rapl:0", "package-0", 0) | {f"{POWERCAP}/intel-rapl:0/{field}": text})
    meter, words = find_meter(root=root)
    assert meter is None
    assert words.startswith(f"not measured: {root / POWERCAP / 'intel-rapl:0' / field} cannot be read")


def test_a_counter_that_goes_away(tmp_path, clock):
    """The figure is lost, and no smaller one takes its place."""
    root = plant(tmp_path, zone("intel-rapl:0", "package-0", 0))
    meter, _ = find_meter(root=root)
    (root / POWERCAP / "intel-rapl:0" / "energy_uj").unlink()
    assert meter.total() is None
    count(root, "intel-rapl:0", 1_000_000)
    assert meter.total() is None


def test_a_thread_sees_each_wrap(tmp_path, monkeypatch):
    """A counter that wraps between two readings would lose a whole range: a thread reads it in between."""
    monkeypatch.setattr(energy, "_SECONDS", 0.005)
    root = plant(tmp_path, zone("intel-rapl:0", "package-0", 0, most=1_000_000))
    meter, _ = find_meter(root=root)
    for now in (600_000, 200_000, 800_000):
        count(root, "intel-rapl:0", now)
        for _ in range(500):
            if meter.seen == {"intel-rapl:0": now}:
                break
            time.sleep(0.005)
    assert meter.total().joules == 1.8
    meter.close()
    assert not meter.watching


def test_the_reading_of_a_meter(clock):
    """Joules are watts times seconds, and say so."""
    meter, words = find_meter(watts=65)
    assert isinstance(meter, Given)
    assert words == "65 W of --watts times seconds"
    clock[0] += 4
    assert meter.total() == Energy(260, 4)


def test_a_given_reading_is_preferred(tmp_path):
    root = plant(tmp_path, zone("intel-rapl:0", "package-0", 0))
    assert find_meter(watts=7.5, root=root)[1] == "7.5 W of --watts times seconds"
