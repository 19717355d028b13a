"""The facts and the advice of `qwq doctor` that need no model: instruction sets, the core, problems."""

import importlib

import pytest

from qwq_ref import core
from qwq_ref.errors import UsageError
from qwq_ref.host import cpu, doctor

needs_core = pytest.mark.skipif(not core.available(), reason="the C core is not built: there was no compiler")
ALL = list(core.FEATURES)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    monkeypatch.delenv("QWQ_ISA", raising=False)
    monkeypatch.delenv("NUMPY_MADVISE_HUGEPAGE", raising=False)


def pretend(monkeypatch, have):
    """Let the processor have these features, and no others."""
    for module in (core, core.isa):
        monkeypatch.setattr(module, "features", lambda: have)
        monkeypatch.setattr(module, "isas", lambda: [isa for isa in core.ISAS if set(core.needs(isa)) <= set(have)])


@needs_core
def test_features_are_those_of_the_system():
    flags = cpu.cpu_flags()
    if flags is None or "fpu" not in flags:
        pytest.skip("the system does not say what an x86-64 processor has")
    ours = doctor.instructions()
    assert [name for name in core.features() if name in ours] == [name for name in ours if name in flags]


@needs_core
def test_an_instruction_set_runs_where_there_is_all_that_it_needs():
    have = set(core.features())
    assert core.isas() == [isa for isa in core.ISAS if set(core.needs(isa)) <= have]
    assert core.needs("scalar") == []
    assert core.needs("avx2") == ["avx2", "fma", "f16c", "ymm"]
    assert core.needs("avx2-vnni") == ["avx2", "fma", "f16c", "avx_vnni", "ymm"]
    wide = {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512_vnni", "zmm"}
    assert set(core.needs("avx512")) == {*core.needs("avx2"), *wide}
    for isa in (-1, len(core.ISAS), 1 << 30, -(1 << 31)):
        assert core.lib.qwq_isa_needs(isa) == -1
        assert not core.lib.qwq_isa_supported(isa)


@needs_core
@pytest.mark.parametrize(
    ("lacks", "chosen", "why"),
    [
        ([], core.ISAS[-1] if core.ISAS else "", "the best that this processor and its operating system can run"),
        (["avx512_vnni"], "avx2-vnni", "the processor lacks AVX-512 VNNI"),
        (["avx512_vnni", "avx_vnni"], "avx2", "the processor lacks AVX-VNNI"),
        (["avx512bw", "avx512vl", "zmm"], "avx2-vnni", "the processor lacks AVX-512 BW, AVX-512 VL"),
        (
            ["avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512_vnni", "zmm"],
            "avx2-vnni",
            "the processor lacks AVX-512",
        ),
        (["zmm"], "avx2-vnni", "the operating system does not keep ZMM registers"),
        (["avx2", "avx512f"], "scalar", "the processor lacks AVX2"),
        (["fma", "f16c"], "scalar", "the processor lacks FMA, F16C"),
        (["ymm", "zmm"], "scalar", "the operating system does not keep YMM registers"),
    ],
)
def test_why_an_instruction_set_was_chosen(monkeypatch, lacks, chosen, why):
    have = [name for name in ALL if name not in lacks]
    pretend(monkeypatch, have)
    facts = doctor.isa_facts(None)
    assert (facts["chosen"], facts["why"], facts["forced_by"]) == (chosen, why, None)
    assert facts["can_run"][-1] == chosen
    if lacks:
        nxt = core.ISAS[core.ISAS.index(chosen) + 1]
        with pytest.raises(UsageError, match=f"^--isa: {nxt} cannot run here; scalar.* can: {why}$"):
            doctor.isa_facts(nxt)
        monkeypatch.setenv("QWQ_ISA", nxt)
        with pytest.raises(UsageError, match=f"^QWQ_ISA: {nxt} cannot run here"):
            doctor.isa_facts(None)


def test_features_have_the_names_that_people_write():
    names = ("fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16")
    assert [doctor.label(name) for name in names] == [
        "FMA", "AVX2", "AVX-VNNI", "AVX-512 F", "AVX-512 VNNI", "AVX-512 BF16",
    ]  # fmt: skip


@needs_core
def test_the_list_without_the_core_is_that_of_the_core(monkeypatch):
    known = doctor.instructions()
    monkeypatch.setattr(core, "FEATURES", ())
    assert set(doctor.instructions()) <= set(known)


@needs_core
def test_another_processor(monkeypatch):
    pretend(monkeypatch, [])
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert doctor.isa_facts(None)["why"] == "there is no other for riscv64"


def test_a_core_that_cannot_be_loaded_says_why(monkeypatch):
    monkeypatch.setattr("qwq_ref.core._ffi.lib", None)
    for error, said in (
        (ImportError("libgomp.so.1: no such file"), "cannot be loaded (libgomp.so.1: no such file)"),
        (ModuleNotFoundError("No module named 'qwq_ref.core._core'"), "is not built"),
    ):

        def fail(name, error=error):
            raise error

        monkeypatch.setattr(importlib, "import_module", fail)
        assert doctor.program_facts()["core_problem"] == said


def healthy():
    """Return the facts of a machine without problems."""
    return {
        "program": {"core": True, "core_problem": None},
        "isa": {"chosen": "avx2", "forced_by": None, "why": "", "can_run": ["scalar", "avx2"]},
        "cpu": {"threads": 4, "usable": 8, "online": 16, "quota": 4.0, "cores": 4, "nodes": 1, "load": 8.0},
        "memory": {"available": 100, "group_available": None, "swap_used": 0, "huge_page_mode": "madvise"},
        "speed": {"threads": 4, "reads": {"1": 1.0, "4": 0.95}, "peaks": {}, "huge_pages": 0.5},
        "models": [{"model": "m", "choices": [{"missing_bytes": 5 << 30}, {"missing_bytes": 0}]}],
    }


def test_a_healthy_machine_has_no_problems():
    assert doctor.problems(healthy()) == []
    unknown = healthy()
    unknown["cpu"] |= dict.fromkeys(("quota", "cores", "nodes", "load"))
    unknown["memory"] |= dict.fromkeys(("swap_used", "huge_page_mode"))
    unknown["speed"] = None
    assert doctor.problems(unknown) == []


@pytest.mark.parametrize(
    ("part", "change", "problem", "advice"),
    [
        ("cpu", {"threads": 9, "cores": 8}, "9 threads share 8 CPUs", "-t 4"),
        ("cpu", {"threads": 9, "cores": 8, "quota": None}, "9 threads share 8 CPUs", "-t 8"),
        ("cpu", {"threads": 5, "quota": None}, "5 threads share 4 cores", "-t 4"),
        ("cpu", {"quota": 1.5}, "control groups stop 4 threads after the time of 1.5 CPUs", "-t 2"),
        ("cpu", {"quota": 0.25}, "control groups stop 4 threads after the time of 0.25 CPUs", "-t 1"),
        ("cpu", {"nodes": 2}, "2 NUMA nodes, ", "compare numactl --interleave=all qwq doctor"),
        ("cpu", {"load": 8.5}, "the load is 8.5 on 16 CPUs, so other programs", "end them"),
        (
            "speed",
            {"reads": {"1": 1.0, "4": 0.8}},
            "4 threads read more slowly than one, so other programs",
            "end them",
        ),
        ("memory", {"swap_used": 1 << 30}, "1.00 GiB of memory are swapped out", "end other programs"),
        ("memory", {"huge_page_mode": "never"}, "no huge pages", "echo madvise | sudo tee /sys/"),
        ("speed", {"huge_pages": 0.04}, "4% of an array is on huge pages", "echo 1 | sudo tee /proc/sys/vm/compact"),
        ("isa", {"forced_by": "--isa", "chosen": "scalar"}, "scalar is forced, where avx2 can run", "leave out --isa"),
        (
            "program",
            {"core": False, "core_problem": "is not built"},
            "the C core is not built, and NumPy",
            "with GCC or Clang, ",
        ),
    ],
)
def test_each_problem_is_found_alone(part, change, problem, advice):
    facts = healthy()
    facts[part] |= change
    (found,) = doctor.problems(facts)
    if "9 threads" in problem and advice == "-t 4":  # the tightest bound is what is said
        problem = "control groups stop 9 threads"
    assert found["problem"].startswith(problem)
    assert found["advice"].startswith(advice)
    assert len(found["problem"] + found["advice"]) <= 145


def test_a_control_group_that_is_too_small_is_named():
    facts = healthy()
    facts["models"][0]["choices"] = [{"missing_bytes": 5 << 30}, {"missing_bytes": 3 << 30}]
    (found,) = doctor.problems(facts)
    assert found["problem"] == "m does not fit in any form: 3.00 GiB are missing"
    assert found["advice"] == "free memory, or take a smaller model"
    facts["memory"] |= {"group_available": 100, "limit": {"name": "memory.max", "maximum": 200}}
    (found,) = doctor.problems(facts)
    assert found["advice"] == "raise the control group's memory limit"
    for limit in ("ulimit -v", "ulimit -d"):
        facts["memory"]["limit"]["name"] = limit
        (found,) = doctor.problems(facts)
        assert found["advice"] == f"raise the limit of {limit}"
