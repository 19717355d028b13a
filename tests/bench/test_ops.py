"""qwq bench: what it says is what was run, and its arithmetic is right. Nothing here depends on any speed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from qwq_ref import cli, core
from qwq_ref.bench import measure, op_rows
from qwq_ref.bench.ops import copies_for, registry
from qwq_ref.bench.weights import weight
from qwq_ref.core import ceilings
from qwq_ref.errors import MemoryLimitError

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)
ISAS = core.isas()
OPS = registry()
TINY = {"NxK": "64x256", "S": "32", "N": "128", "F": "96", "HxE": "3x32", "V": "500"}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small buffers and short samples, and a cache that holds next to nothing."""
    monkeypatch.setattr(measure, "rotation", lambda: 1 << 20)
    monkeypatch.setattr(measure, "last_cache_bytes", lambda: 1 << 12)
    monkeypatch.setattr(op_rows, "SHORTEST", 1e-4)


def bench(capsys, *arguments):
    status = cli.main(["bench", *arguments])
    return status, *capsys.readouterr()


def rows_of(capsys, *arguments):
    status, out, _ = bench(capsys, *arguments, "-o", "json")
    assert status == 0
    facts = json.loads(out)
    assert set(facts) == {"machine", "ceilings", "rows"}
    return facts


@pytest.mark.parametrize("name", OPS)
def test_each_operation_runs_on_each_instruction_set(name, capsys):
    op = OPS[name]
    shape = TINY[op.letters]
    facts = rows_of(capsys, "--op", name, "--shape", shape, "-T", "1,3", "-t", "1,2", "--isa", "all", "-r", "3")
    wanted = [
        (T, isa, threads)
        for T in ((1, 3) if op.tokens else (None,))
        for isa in ISAS
        for threads in ((1, 2) if op.threaded else (1,))
    ]
    assert [(row["T"], row["isa"], row["threads"]) for row in facts["rows"]] == wanted
    for row in facts["rows"]:
        assert row["op"] == name
        assert row["dims"] == [int(n) for n in shape.split("x")]
        assert len(row["samples"]) == len(row["read_samples"]) == 3
        assert row["seconds"] == median(row["samples"]) > 0
        assert row["read"] == median(row["read_samples"]) > 0
        assert row["operations_per_second"] == row["operations"] / row["seconds"]
        assert row["bytes_per_second"] == row["bytes"] / row["seconds"]
        limits = {}
        if op.peak is not None and row["isa"] != "scalar":
            assert row["peak"] == median(row["peak_samples"]) > 0
            limits[ceilings.instructions(op.peak, row["isa"])] = row["operations"] / row["peak"]
        else:
            assert row["peak"] is None
        if not row["cached"] and (op.peak is None or row["isa"] != "scalar"):
            limits["read"] = row["bytes"] / row["read"]
        assert row["ceiling"] == (max(limits, key=limits.get) if limits else None)
        assert row["share"] == (limits[row["ceiling"]] / row["seconds"] if limits else None)
    assert all(ceiling["per_second"] > 0 for ceiling in facts["ceilings"])


@pytest.mark.parametrize(
    ("name", "shape", "T", "operations", "size"),
    [
        ("matmul-q4", "qkv", 1, 7168 * 5120, 7168 * 5120 * 4.25 / 8 + 4 * (7168 + 5120)),
        (
            "matmul-u4-128-zero",
            "o",
            8,
            8 * 5120**2,
            5120**2 * 4.25 / 8 + 4 * 8 * 2 * 5120,
        ),  # blocks of whole lines
        ("matmul-u4-32-plain", "o", 1, 5120**2, 5120**2 * 4.5 / 8 + 4 * 2 * 5120),
        ("matmul-u4-32-super_min", "o", 1, 5120**2, 5120**2 * (4 + 32 / 256 + 16 / 32) / 8 + 4 * 2 * 5120),
        ("matmul-q8-64", "down", 1, 5120 * 27648, 5120 * 27648 * 8.25 / 8 + 4 * (5120 + 27648)),
        ("matmul-q8-32", "down", 1, 5120 * 27648, 5120 * 27648 * 8.5 / 8 + 4 * (5120 + 27648)),
        ("matmul-bf16", "gate_up", 1, 55296 * 5120, 55296 * 5120 * 2 + 4 * (55296 + 5120)),
        ("attention-int8", "4k", 1, 2 * 4096 * 40 * 128, 4096 * 8 * 268 + 2 * 4 * 40 * 128),
        ("attention-fp32", "4k", 2, 2 * (4095 + 4096) * 40 * 128, 4096 * 8 * 1024 + 2 * 2 * 4 * 40 * 128),
        ("quantise-q4", "o", 1, 5120**2, 5120**2 * (2 + 1 + 2 / 64)),
        ("swiglu", "mlp", 3, 3 * 27648, 3 * 27648 * 12),
    ],
)
def test_what_is_computed_and_moved(name, shape, T, operations, size):
    op = OPS[name]
    work = op.work(op.shapes[shape], T)
    assert (work.operations, work.bytes) == (operations, size)
    assert work.held <= work.bytes


@pytest.mark.parametrize("isa", ISAS)
def test_a_forced_instruction_set_and_number_of_threads_is_what_ran(isa, capsys, monkeypatch):
    seen, matmul = set(), core.matmul

    def spy(x, w, **options):
        seen.add((options["isa"], options["threads"], len(x), w.format.codes, w.shape))
        return matmul(x, w, **options)

    monkeypatch.setattr(core, "matmul", spy)
    rows_of(capsys, "--op", "matmul-u6-16-super", "--shape", "33x256", "-T", "5", "-t", "3", "--isa", isa, "-r", "1")
    assert seen == {(isa, 3, 5, "u6", (33, 256))}


def test_the_best_instruction_set_unless_another_is_set(capsys, monkeypatch):
    arguments = ("--op", "argmax", "--shape", "100", "-r", "1")
    assert rows_of(capsys, *arguments)["rows"][0]["isa"] == ISAS[-1]
    monkeypatch.setenv("QWQ_ISA", "scalar")
    assert rows_of(capsys, *arguments)["rows"][0]["isa"] == "scalar"


def test_calls_take_copies_in_turns_until_no_cache_holds_them(capsys, monkeypatch):
    seen, matmul = [], core.matmul
    monkeypatch.setattr(core, "matmul", lambda x, w, **o: (seen.append(w.packed.ctypes.data), matmul(x, w, **o))[1])
    monkeypatch.setattr(op_rows, "SHORTEST", 1e-2)
    (row,) = rows_of(capsys, "--op", "matmul-q4", "--shape", "256x512", "-T", "1", "-t", "1", "-r", "2")["rows"]
    assert row["copies"] == -(-(1 << 20) // (256 * 512 * 17 // 32)) == len(set(seen))
    assert len(seen) > 2 * row["copies"]
    assert seen[: row["copies"]] == seen[row["copies"] : 2 * row["copies"]]
    assert not row["cached"]
    monkeypatch.setattr(measure, "last_cache_bytes", lambda: 1 << 30)
    (row,) = rows_of(capsys, "--op", "matmul-q4", "--shape", "256x512", "-T", "1", "-t", "1", "-r", "1")["rows"]
    assert row["cached"]
    assert row["ceiling"] != "read"
    assert copies_for(1, 1 << 28, "") == 64
    assert copies_for(1 << 28, 1 << 28, "") == 1
    with pytest.raises(MemoryLimitError, match="big: needs"):
        copies_for(1 << 60, 1 << 28, "big")


@pytest.mark.parametrize("name", [name for name in OPS if name.startswith("matmul-")])
def test_weights_are_what_packing_makes(name):
    """Rows beyond those that are random repeat them, and results are finite."""
    form = next(f for f in measure_formats() if f[0] == name.removeprefix("matmul-"))[2]
    packed = weight(form, (600, 256))
    assert len(packed.packed) == core.packed_bytes(form, (600, 256))
    x = np.random.default_rng(0).standard_normal((3, 256)).astype(np.float32)
    y = core.matmul(x, packed)
    assert np.isfinite(y).all()
    assert np.array_equal(y[:, :256], y[:, 256:512])
    assert np.array_equal(y[:, :88], y[:, 512:])
    assert y.std() > 0


def measure_formats():
    from qwq_ref.bench.ops import _FORMATS

    return _FORMATS


def test_ceilings():
    data = core.aligned(256 * 6 * 100)
    data[:] = 1
    for isa in ISAS:
        for which in ceilings.PEAKS:
            assert (ceilings.products(which, isa) > 0) == (isa != "scalar")
            for threads in (1, 3) if isa != "scalar" else ():
                ceilings.peak(which, 10, isa, threads)
        for order in ceilings.ORDERS:
            for threads in (1, 2, 3):
                ceilings.read(data, order, isa, threads)
    with pytest.raises(core.CoreError, match="size is impossible"):
        ceilings.read(data, "one stream", threads=7)
    with pytest.raises(core.CoreError, match="not aligned"):
        ceilings.read(data[1 : 1 + 256], "one stream")
    with pytest.raises(core.CoreError, match="ceiling: must be one of dots-31"):
        ceilings.peak("dots", 1)
    with pytest.raises(core.CoreError, match="size is impossible"):
        ceilings.peak("floats", 0, ISAS[-1]) if ISAS[-1] != "scalar" else ceilings.read(data, "one stream", threads=0)


def test_a_table_and_markdown(capsys):
    arguments = ("--op", "matmul-q4,argmax", "--shape", "64x256,100", "-T", "1,2", "-t", "1", "-r", "1")
    status, out, _ = bench(capsys, *arguments)
    head, *lines = out.splitlines()
    assert status == 0
    assert head.split()[:5] == ["op", "shape", "isa", "threads", "T"]
    assert [line.split()[:5] for line in lines[:3]] == [
        ["matmul-q4", "64x256", ISAS[-1], "1", "1"],
        ["matmul-q4", "64x256", ISAS[-1], "1", "2"],
        ["argmax", "100", ISAS[-1], "1", "-"],
    ]
    assert "GMAC/s" in lines[0]
    assert "Gelement/s" in lines[2]
    assert any(line.startswith("ceiling: read, ") for line in lines)
    _, out, _ = bench(capsys, *arguments, "-o", "md")
    assert out.startswith("| op | shape | isa |")
    assert len({line.count("|") for line in out.splitlines()[:5]}) == 1


def test_without_an_operation_it_lists_them(capsys):
    status, out, _ = bench(capsys, "--op")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == list(OPS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "matmul-q3"], "qwq: --op: matmul-q3 does not exist (did you mean matmul-q4?); there are matmul-q4, "),
        (["--op", "argmax", "--isa", "altivec"], "qwq: --isa: altivec cannot run here; scalar"),
        (["--op", "argmax", "--shape", "qkv"], "qwq: --shape: qkv fits no operation; there are vocabulary, V"),
        (["--op", "matmul-q4", "--shape", "64x65"], "qwq: --shape: 64x65 fits no operation"),
        (["--op", "argmax", "-T", "0"], "qwq: -T/--tokens: must be at least 1, got 0"),
        (["--op", "argmax", "-t", "1,x"], "qwq: -t/--threads: must be an integer, got x"),
        (["--op", "argmax", "-t", "9999"], "qwq: -t/--threads: must be at most 1024, got 9999"),
        (["--op", "argmax", "-r", "0"], "qwq: -r/--repeats: must be at least 1, got 0"),
        (["--op", "attention-int8", "--shape", "8", "-T", "9"], "qwq: -T/--tokens: 9 do not fit a context of 8"),
    ],
)
def test_wrong_uses_are_one_line(arguments, message, capsys):
    status, out, err = bench(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_without_the_core_one_line_says_so(capsys, monkeypatch):
    monkeypatch.setattr(core._ffi, "lib", None)
    status, out, err = bench(capsys, "--op", "argmax")
    assert (status, out) == (1, "")
    assert err == "qwq: core: is not built: install a C compiler, then qwq_ref again\n"


@pytest.mark.parametrize(
    ("problem", "status"), [(KeyboardInterrupt(), 130), (MemoryLimitError(None, None, "no room"), 1)]
)
def test_what_is_measured_is_printed_whatever_stops_it(problem, status, capsys, monkeypatch):
    calls, top = [], core.matmul

    def stop(x, w, **options):
        if len(x) == 2:
            raise problem
        calls.append(1)
        return top(x, w, **options)

    monkeypatch.setattr(core, "matmul", stop)
    ended, out, _ = bench(capsys, "--op", "matmul-q4", "--shape", "64x256", "-T", "1,2", "-t", "1", "-r", "1")
    assert ended == status
    assert len(calls) > 0
    assert [line.split()[4] for line in out.splitlines() if line.startswith("matmul")] == ["1"]


def test_a_slow_call_is_not_warmed_up(capsys, monkeypatch):
    monkeypatch.setattr(op_rows, "SLOW", 0)
    monkeypatch.setattr(op_rows, "LONGEST", 0)
    (row,) = rows_of(capsys, "--op", "argmax", "--shape", "100")["rows"]
    assert len(row["samples"]) == len(row["read_samples"]) == 1


def test_progress_is_for_terminals():
    command = [sys.executable, "-m", "qwq_ref", "bench", "--op", "argmax", "-r", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=True)
    assert done.stderr == ""
    assert "argmax" in done.stdout


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="the system has no huge pages")
def test_huge_pages_are_asked_for():
    """What the system gives depends on how its memory is broken up; that it is asked shows in the mapping's flags."""
    data = core.aligned(64 << 20)
    data[:] = 1
    share = measure.huge_pages(data)
    assert share is None or 0 <= share <= 1
    address, flags = data.ctypes.data + data.nbytes // 2, ""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        match = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if match:
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and line.startswith("VmFlags:"):
            flags = line
    assert "hg" in flags.split()
