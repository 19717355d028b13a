"""qwq doctor: facts of planted machines, arithmetic of its ceilings, and a table that agrees with what loads."""

import importlib
import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qwq_ref
from qwq_ref import core, footprint
from qwq_ref.bench import doctor, measure
from qwq_ref.cli import main
from qwq_ref.config import Config
from qwq_ref.engine import fit
from qwq_ref.engine.plan import model_bytes, step_bytes
from qwq_ref.engine.weights import pack_weights
from qwq_ref.errors import MemoryLimitError, UsageError
from qwq_ref.formats import Checkpoint, resolve
from qwq_ref.forms import FORMS
from qwq_ref.host import cpu as machine
from qwq_ref.host import memory
from tests.support.models import config_values, configs

needs_core = pytest.mark.skipif(not core.available(), reason="the C core is not built: there was no compiler")
BF16 = {"BF16": 0}
NANO = Config.from_file(resolve("qwq-nano") / "config.json")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Little is read, and not for long; and nobody's settings."""
    monkeypatch.setattr(measure, "rotation", lambda: 1 << 20)
    monkeypatch.setattr(doctor, "SPAN", 1e-4)
    monkeypatch.delenv("QWQ_ISA", raising=False)
    monkeypatch.delenv("NUMPY_MADVISE_HUGEPAGE", raising=False)


def plant(root, files):
    """path -> text, under a root."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


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
    for cpu in range(8):
        core_of, socket = cpu % 4, cpu % 4 // 2
        files[f"{CPU}/cpu{cpu}/topology/thread_siblings_list"] = f"{core_of},{core_of + 4}\n"
        for index, (size, shared) in enumerate([("32K", core_of), ("1024K", core_of), ("24M", f"socket{socket}")]):
            files[f"{CPU}/cpu{cpu}/cache/index{index}/size"] = f"{size}\n"
            files[f"{CPU}/cpu{cpu}/cache/index{index}/shared_cpu_list"] = f"{shared}\n"
    return files


# --- what a machine says of itself -------------------------------------------------------------------------------


def test_a_planted_server(tmp_path):
    root = plant(tmp_path, server())
    assert machine.processors(root, set(range(8))) == machine.Processors(
        "Two of Them", 8, 8, None, 4, 2, 24 << 20, 48 << 20, 1.25
    )
    assert machine.processors(root, {2, 6}) == machine.Processors(
        "Two of Them", 8, 2, None, 1, 1, 24 << 20, 24 << 20, 1.25
    )
    assert machine.cpu_flags(root) == ["sse", "avx2", "fma", "f16c", "avx512f"]
    assert machine.memory_fields(root)["HugePages"] == 3
    assert machine.huge_page_mode(root) == "madvise"
    facts = doctor.facts_of_memory(root)
    assert facts == {
        "total": 1000 << 10,
        "available": 800 << 10,
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
    assert machine.cpu_quota(tmp_path) == quota
    assert doctor.facts_of_cpu(1, tmp_path)["quota"] == quota


def test_a_machine_that_says_nothing(tmp_path):
    found = machine.processors(tmp_path, {0, 1})
    assert (found.usable, found.online) == (2, os.cpu_count())
    assert (found.quota, found.cores, found.nodes, found.last_cache, found.last_caches, found.load) == (None,) * 6
    assert found.model
    assert machine.huge_page_mode(tmp_path) is None
    assert machine.cpu_flags(tmp_path) is None
    facts = doctor.facts_of_memory(tmp_path)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert facts.pop("available") == total
    assert set(facts.values()) == {None}


@settings(max_examples=settings.default.max_examples // 2)
@given(data=st.data())
def test_whatever_files_hold_nothing_breaks(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("machine")
    files = server() | {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "1 1"}
    words = st.text(st.sampled_from("0123456789-, \n:kKM[]max/.²\0"), max_size=12)
    for name in data.draw(st.lists(st.sampled_from(sorted(files)), min_size=1, max_size=8, unique=True)):
        files[name] = data.draw(words)
    plant(root, files)
    found = machine.processors(root, {0, 1, 5})
    assert found.usable == 3
    assert found.quota is None or found.quota >= 0
    doctor.facts_of_cpu(1, root, {0, 5})
    assert doctor.facts_of_memory(root)["available"] >= 0


@needs_core
def test_measuring_reads_more_than_all_last_caches_hold(tmp_path, monkeypatch):
    monkeypatch.undo()  # of measure.rotation
    many = machine.Processors("", 8, 8, None, 8, 1, 32 << 20, 12 * 32 << 20, None)
    monkeypatch.setattr(measure, "processors", lambda: many)
    assert measure.rotation() == 4 * 12 * 32 << 20
    assert measure.last_cache_bytes() == 32 << 20


# --- instruction sets --------------------------------------------------------------------------------------------


@needs_core
def test_features_are_those_of_the_system():
    bits = [getattr(core.lib, f"QWQ_HAS_{name.replace('avx512_', '').upper()}") for name in core.FEATURES[:8]]
    assert [*bits, core.lib.QWQ_KEEPS_YMM, core.lib.QWQ_KEEPS_ZMM] == [1 << i for i in range(len(core.FEATURES))]
    flags = machine.cpu_flags()
    if flags is None or "fpu" not in flags:
        pytest.skip("the system does not say what an x86-64 processor has")
    assert [name for name in core.features() if name in doctor.NAMES] == [n for n in doctor.NAMES if n in flags]


@needs_core
def test_an_instruction_set_runs_where_there_is_all_that_it_needs():
    have = set(core.features())
    assert core.isas() == [isa for isa in core.ISAS if set(core.needs(isa)) <= have]
    assert core.needs("scalar") == []
    assert core.needs("avx2") == ["avx2", "fma", "f16c", "ymm"]
    assert set(core.needs("avx512")) == set(core.FEATURES)
    for isa in (-1, 3, 1 << 30, -(1 << 31)):
        assert core.lib.qwq_isa_needs(isa) == -1
        assert not core.lib.qwq_isa_supported(isa)


ALL = list(core.FEATURES)


def pretend(monkeypatch, have):
    """The processor has these features, and no others."""
    for module in (core, core.isa):
        monkeypatch.setattr(module, "features", lambda: have)
        monkeypatch.setattr(module, "isas", lambda: [isa for isa in core.ISAS if set(core.needs(isa)) <= set(have)])


@needs_core
@pytest.mark.parametrize(
    ("lacks", "chosen", "why"),
    [
        ([], "avx512", "the best that this processor and its operating system can run"),
        (["avx512_vnni"], "avx2", "the processor lacks AVX-512 VNNI"),
        (["avx512bw", "avx512vl", "zmm"], "avx2", "the processor lacks AVX-512 BW, AVX-512 VL"),
        (["avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512_vnni", "zmm"], "avx2", "the processor lacks AVX-512"),
        (["zmm"], "avx2", "the operating system does not keep ZMM registers"),
        (["avx2", "avx512f"], "scalar", "the processor lacks AVX2"),
        (["fma", "f16c"], "scalar", "the processor lacks FMA, F16C"),
        (["ymm", "zmm"], "scalar", "the operating system does not keep YMM registers"),
    ],
)
def test_why_an_instruction_set_was_chosen(monkeypatch, lacks, chosen, why):
    have = [name for name in ALL if name not in lacks]
    pretend(monkeypatch, have)
    facts = doctor.facts_of_isa(None)
    assert (facts["chosen"], facts["why"], facts["forced_by"]) == (chosen, why, None)
    assert facts["can_run"][-1] == chosen
    if lacks:
        nxt = core.ISAS[core.ISAS.index(chosen) + 1]
        with pytest.raises(UsageError, match=f"^--isa: {nxt} cannot run here; scalar.* can: {why}$"):
            doctor.facts_of_isa(nxt)
        monkeypatch.setenv("QWQ_ISA", nxt)
        with pytest.raises(UsageError, match=f"^QWQ_ISA: {nxt} cannot run here"):
            doctor.facts_of_isa(None)


@needs_core
def test_another_processor(monkeypatch):
    pretend(monkeypatch, [])
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert doctor.facts_of_isa(None)["why"] == "there is no other for riscv64"


@needs_core
@pytest.mark.skipif(not core.available() or len(core.isas()) < 2, reason="only scalar code runs here")
def test_a_forced_instruction_set_says_so(capsys, monkeypatch):
    best = core.isas()[-1]
    monkeypatch.setenv("QWQ_ISA", "scalar")
    facts = report(capsys, "-m", "qwq-nano")
    assert facts["isa"]["why"] == f"forced by QWQ_ISA; {best} can run"
    assert facts["isa"]["chosen"] == facts["speed"]["isa"] == "scalar"
    assert facts["speed"]["peaks"] == {}
    assert {"problem": f"scalar is forced, where {best} can run", "advice": "unset QWQ_ISA"} in facts["problems"]
    facts = report(capsys, "-m", "qwq-nano", "--isa", best)
    assert facts["isa"]["why"] == "forced by --isa"
    assert not any("forced" in each["problem"] for each in facts["problems"])
    assert facts["models"][0]["command"].endswith(f" --isa {best}")
    monkeypatch.setenv("QWQ_ISA", "mmx")
    assert main(["doctor"]) == 2
    assert capsys.readouterr() == ("", f"qwq: QWQ_ISA: mmx cannot run here; {', '.join(core.isas())} can\n")


# --- what fits ---------------------------------------------------------------------------------------------------


def accepts(config, stored, form, kv, context, available):
    """Whether `load` would go on, and the context that it would make room for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "available_bytes", lambda: available)
        try:
            if not core.available():
                return fit.fitting_context(config, context, "m", fit.numpy_needs(config))
            forms = [form] if form else fit.candidates(stored)
            return fit.fitting_forms(config, forms, kv, context, "m")[2]
        except MemoryLimitError:
            return None


@st.composite
def machines(draw):
    """A config, what its checkpoint holds, and memory near to what one of its forms needs with some context."""
    values = draw(configs()) | {"max_position_embeddings": draw(st.sampled_from([9, 300, 4096, 50_000]))}
    config = Config.from_dict(values)
    stored = draw(st.sampled_from([BF16, {"F32": 1}, {"BF16": 1, "F32": 1}]))
    form, kv = draw(st.sampled_from([*FORMS])), draw(st.sampled_from(["fp32", "int8"]))
    needs = fit.core_needs(config, form, kv) if core.available() else fit.numpy_needs(config)
    some = sum(needs(draw(st.integers(1, config.positions))).values())
    return config, stored, max(0, some + draw(st.integers(-5000, 5000)))


@settings(max_examples=settings.default.max_examples * 2)
@given(machines())
def test_the_table_says_what_load_would(planted):
    config, stored, available = planted
    table = doctor.choices(config, stored, available)
    if core.available():
        forms = [form for form in FORMS if form != "bf16" or stored == BF16]
        assert [(c.weights, c.kv) for c in table] == [(form, kv) for form in forms for kv in ("fp32", "int8")]
    for choice in table:
        loads = accepts(config, stored, choice.weights, choice.kv, None, available)
        assert (loads is not None) == (choice.missing_bytes == 0)
        assert loads is None or loads <= choice.largest_context
        enough = available + choice.missing_bytes
        assert accepts(config, stored, choice.weights, choice.kv, None, enough) is not None
        if choice.missing_bytes:
            assert accepts(config, stored, choice.weights, choice.kv, None, enough - 1) is None
        largest = choice.largest_context
        assert 0 <= largest <= config.positions
        if largest:
            assert accepts(config, stored, choice.weights, choice.kv, largest, available) == largest
        if largest < config.positions:
            assert accepts(config, stored, choice.weights, choice.kv, largest + 1, available) is None
        if core.available():
            assert choice.weight_bytes == model_bytes(config, choice.weights)


@settings(max_examples=settings.default.max_examples * 2)
@given(machines())
def test_the_best_choice_is_the_most_exact_with_room_and_loads(planted):
    config, stored, available = planted
    table = doctor.choices(config, stored, available)
    order = [("fp32", "fp32")]
    if core.available():
        own = "bf16" if stored == BF16 else "fp32"
        order = [(own, "fp32"), (own, "int8"), ("q8", "int8"), ("q4", "int8")]
    spared = available - min(doctor.SPARE, available // 16)
    rooms = {}  # of what loads: the whole context, or as many pieces of a prompt as leave something
    for pair in order:
        if accepts(config, stored, *pair, None, available) is not None:
            pieces = [config.positions, *range(config.positions // 256 * 256, 0, -256)]
            rooms[pair] = next((n for n in pieces if accepts(config, stored, *pair, n, spared)), min(pieces[0], 256))
    best = doctor.best_choice(config, stored, table, available)
    if not rooms:
        assert best is None
        return
    choice, context = best
    enough = [pair for pair, room in rooms.items() if room >= min(config.positions, doctor.ROOMY)]
    assert (choice.weights, choice.kv) == (enough[0] if enough else max(rooms, key=rooms.get))
    assert context == rooms[choice.weights, choice.kv]
    assert accepts(config, stored, choice.weights, choice.kv, context, available) == context
    assert choice in table


@needs_core
@pytest.mark.parametrize(("form", "kv"), [("bf16", "fp32"), ("q8", "int8"), ("q4", "fp32")])
def test_a_real_model_loads_with_what_the_table_says_and_not_with_more(monkeypatch, form, kv):
    available = sum(fit.core_needs(NANO, form, kv)(700).values())
    (choice,) = [c for c in doctor.choices(NANO, BF16, available) if (c.weights, c.kv) == (form, kv)]
    assert 700 <= choice.largest_context < 1024
    monkeypatch.setattr(memory, "available_bytes", lambda: available)
    model = qwq_ref.load("qwq-nano", weights=form, kv=kv, context=choice.largest_context)
    assert (model.context, model.backend.form, model.backend.kv) == (choice.largest_context, form, kv)
    with pytest.raises(MemoryLimitError):
        qwq_ref.load("qwq-nano", weights=form, kv=kv, context=choice.largest_context + 1)


@needs_core
def test_qwq_32b_on_machines_of_several_sizes():
    config = Config.from_file(resolve("qwq-32b") / "config.json")

    def best(size):
        found = doctor.best_choice(config, BF16, doctor.choices(config, BF16, int(size * 2**30)), int(size * 2**30))
        return found and (found[0].weights, found[0].kv, found[1])

    assert [best(size) for size in (16, 32, 48, 128)] == [
        None,
        ("q4", "int8", 40_960),
        ("q8", "int8", 40_960),
        ("bf16", "fp32", 40_960),
    ]
    form, kv, context = best(18.4)  # less than is good, and yet the most that there is
    assert (form, kv) == ("q4", "int8")
    assert 1024 <= context < doctor.ROOMY
    assert next(c for c in doctor.choices(config, BF16, 16 << 30) if c.weights == "q4").missing_bytes > 1 << 30


# --- ceilings ----------------------------------------------------------------------------------------------------


@needs_core
@pytest.mark.parametrize("form", FORMS)
def test_a_step_reads_all_that_is_packed_but_of_the_embedding_a_row(form):
    with Checkpoint.open(resolve("qwq-nano")) as checkpoint:
        packed = pack_weights(NANO, checkpoint, form, 1)
    linear = [w.packed for layer in packed.layers for w in (layer.qkv, layer.o, layer.gate_up, layer.down)]
    vectors = [v for layer in packed.layers for v in (layer.input_norm, layer.qkv_bias, layer.post_norm)]
    held = sum(a.nbytes for a in [*linear, *vectors, packed.norm, packed.head.packed])
    assert step_bytes(NANO, form) == held + packed.embedding[0].nbytes
    assert model_bytes(NANO, form) == held + packed.embedding.nbytes


@pytest.mark.parametrize("tied", [True, False])
def test_a_token_of_a_prompt_needs_no_head(tied):
    config = Config.from_dict(config_values(tie_word_embeddings=tied))
    layer = (config.H + 2 * config.K) * config.E * config.D + config.D * config.H * config.E + 3 * config.F * config.D
    assert footprint.flops_per_token(config, 0, head=False) == 2 * config.L * layer
    assert footprint.flops_per_token(config, 0) == 2 * (config.L * layer + config.V * config.D)
    assert footprint.flops_per_token(config, 7) - footprint.flops_per_token(config, 0) == 4 * 7 * 2 * 80


@needs_core
def test_the_ceiling_is_what_takes_longer():
    names = {form: measure.ceilings.instructions(doctor.peak_of(core.FORMATS[form]), core.isas()[-1]) for form in FORMS}
    reads, peaks = {1: 1e9, 2: 2e9}, dict.fromkeys(names.values(), 5e9)
    speed = doctor.Speed(core.isas()[-1], 2, reads, peaks, None)
    config = Config.from_file(resolve("qwq-32b") / "config.json")
    for form in FORMS:
        found = doctor.limits(config, form, speed, 32 << 20)
        assert not found.cached
        assert found.output == min(2e9 / step_bytes(config, form), 5e9 / (footprint.flops_per_token(config, 0) / 2))
        assert found.prompt == 5e9 / (footprint.flops_per_token(config, 0, head=False) / 2)
        held = doctor.limits(NANO, form, speed, 32 << 20)
        assert held.cached
        assert held.output == 5e9 / (footprint.flops_per_token(NANO, 0) / 2)
    assert doctor.limits(config, "q4", speed, 32 << 20).output != doctor.limits(config, "fp32", speed, 32 << 20).output
    scalar = doctor.limits(config, "q4", doctor.Speed("scalar", 2, reads, {}, None), 32 << 20)
    assert (scalar.output, scalar.prompt) == (2e9 / step_bytes(config, "q4"), None)
    assert doctor.limits(NANO, "q4", doctor.Speed("scalar", 2, reads, {}, None), 32 << 20).output is None
    assert doctor.limits(config, "q4", None, 32 << 20).output is None


@needs_core
@pytest.mark.parametrize("isa", core.isas() if core.available() else [])
def test_all_threads_and_every_instruction_are_measured(isa):
    rounds = []
    speed = doctor.measure_speed(3, isa, rounds.append)
    assert rounds == [1] * doctor.SAMPLES
    assert set(speed.reads) == {1, 3}
    wanted = {measure.ceilings.instructions(doctor.peak_of(core.FORMATS[form]), isa) for form in FORMS}
    assert set(speed.peaks) == (set() if isa == "scalar" else wanted)
    assert all(rate > 0 for rate in [*speed.reads.values(), *speed.peaks.values()])


# --- the command -------------------------------------------------------------------------------------------------


def report(capsys, *arguments, status=0):
    assert main(["doctor", *arguments, "--json"]) == status
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no number of JSON"))


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    return [value] if isinstance(value, int | float) else []


@needs_core
def test_json(capsys):
    facts = report(capsys, "-t", "2")
    assert list(facts) == ["program", "cpu", "isa", "memory", "speed", "interrupted", "models", "problems"]
    assert list(facts["program"]) == ["qwq_ref", "python", "numpy", "core", "core_problem"]
    processors = ["model", "online", "usable", "quota", "cores", "nodes", "last_cache", "last_caches", "load"]
    assert list(facts["cpu"]) == [*processors, "threads", "features"]
    assert list(facts["cpu"]["features"]) == [*doctor.NAMES]
    assert list(facts["isa"]) == ["chosen", "forced_by", "why", "can_run"]
    assert list(facts["memory"]) == ["total", "available", "group_available", "swap_used", "huge_page_mode"]
    assert list(facts["speed"]) == ["isa", "threads", "reads", "peaks", "huge_pages"]
    assert list(facts["speed"]["reads"]) == ["1", "2"]
    assert [model["model"] for model in facts["models"]] == ["qwq-32b", "qwq-nano"]
    for model in facts["models"]:
        assert list(model) == ["model", "positions", "choices", "limits", "best", "command"]
        for choice in model["choices"]:
            assert list(choice) == ["weights", "kv", "weight_bytes", "largest_context", "missing_bytes"]
        assert list(model["limits"]) == [*FORMS]
        for limit in model["limits"].values():
            assert list(limit) == ["step_bytes", "step_macs", "prompt_macs", "cached", "output", "prompt"]
    assert all(list(problem) == ["problem", "advice"] for problem in facts["problems"])
    assert all(math.isfinite(number) and number >= 0 for number in numbers(facts))
    assert len(numbers(facts)) > 100
    assert facts["program"]["qwq_ref"] == qwq_ref.__version__
    assert facts["program"]["numpy"] == np.__version__
    assert facts["cpu"]["usable"] == memory.cpus()


def test_the_screen(capsys):
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0].startswith("program     qwq_ref ")
    assert sum("at most" in line for line in lines) == 2
    assert all(len(line) <= 80 for line in lines if line.startswith(("weights", *FORMS)))
    assert all(line.isprintable() and len(line) <= 140 for line in lines)
    assert sum(line.startswith(tuple(FORMS)) for line in lines) == (8 if core.available() else 2)
    assert any(line.startswith("to run: qwq generate -m qwq-nano --weights ") for line in lines)
    assert len(lines) <= 40


def test_the_command_that_it_gives_is_one_that_runs(capsys, tmp_path):
    facts = report(capsys, "-m", "qwq-nano")
    command = shlex.split(facts["models"][0]["command"])
    assert command[:2] == ["qwq", "generate"]
    assert main([*command[1:], "What is 1+1?", "-n", "3", "--seed", "1"]) == 0
    capsys.readouterr()
    folder = tmp_path / "a name with 'quotes'"
    folder.mkdir()
    for file in resolve("qwq-nano").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    facts = report(capsys, "-m", str(folder), "-t", str(memory.cpus() + 1))
    command = shlex.split(facts["models"][0]["command"])
    assert command[3] == str(folder)
    assert command[-2:] == ["-t", str(memory.cpus() + 1)]
    facts = report(capsys, "-m", str(folder / "config.json"))
    assert "-m FOLDER_OR_HUB_ID " in facts["models"][0]["command"]


def test_a_model_that_nothing_can_run(capsys, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda root=None: 4 << 30)
    facts = report(capsys, "-m", "qwq-32b", status=1)
    (model,) = facts["models"]
    assert (model["best"], model["command"]) == (None, None)
    missing = min(choice["missing_bytes"] for choice in model["choices"])
    assert facts["problems"][0 if core.available() else 1] == {
        "problem": f"qwq-32b does not fit in any form: {footprint.human(missing)} are missing",
        "advice": "free memory, or take a smaller model",
    }
    assert main(["doctor", "-m", "qwq-32b"]) == 1
    assert "nothing fits" in capsys.readouterr().out
    assert main(["doctor", "-m", "qwq-32b", "-m", "qwq-nano"]) == 0


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["-t", "0"], 2, "threads: must be at least 1, got 0"),
        (["-t", "1025"], 2, "threads: must be at most 1024, got 1025"),
        (["-m", "nobody/nothing"], 1, "nobody/nothing: is not a folder, .* offline, so it was not downloaded"),
        (["-m", "/nowhere/config.json"], 1, "/nowhere/config.json: "),
        (["-m", "/nowhere"], 1, "/nowhere: "),
    ],
)
def test_wrong_uses_are_one_line(capsys, arguments, status, message):
    assert main(["doctor", *arguments]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert re.match(f"qwq: {message}", err), err


def test_without_the_core(capsys, monkeypatch):
    monkeypatch.setattr("qwq_ref.core._ffi.lib", None)
    monkeypatch.setattr(memory, "available_bytes", lambda root=None: 4 << 30)
    facts = report(capsys)
    assert facts["program"]["core"] is False
    assert facts["program"]["core_problem"] == "is not built"
    assert (facts["isa"], facts["speed"]) == (None, None)
    flags = machine.cpu_flags()
    assert facts["cpu"]["features"] == (None if flags is None else {name: name in flags for name in doctor.NAMES})
    first, second = facts["problems"][:2]
    assert first["problem"].startswith("the C core is not built, and NumPy is slow")
    assert first["advice"].endswith("pip install --force-reinstall --no-deps .")
    assert second["problem"].startswith("qwq-32b does not fit in any form")
    real, nano = facts["models"]
    assert [(c["weights"], c["kv"]) for c in nano["choices"]] == [("fp32", "fp32")]
    assert real["best"] is None
    assert nano["command"] == "qwq generate -m qwq-nano --weights fp32 --kv fp32 -c 1024"
    assert main([*shlex.split(nano["command"])[1:], "What is 1+1?", "-n", "2", "--seed", "1"]) == 0
    capsys.readouterr()
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "the C core is not built\n" in out
    assert "speed       not measured: needs the C core\n" in out


def test_a_core_that_cannot_be_loaded_says_why(monkeypatch):
    monkeypatch.setattr("qwq_ref.core._ffi.lib", None)
    for error, said in (
        (ImportError("libgomp.so.1: no such file"), "cannot be loaded (libgomp.so.1: no such file)"),
        (ModuleNotFoundError("No module named 'qwq_ref.core._core'"), "is not built"),
    ):

        def fail(name, error=error):
            raise error

        monkeypatch.setattr(importlib, "import_module", fail)
        assert doctor.facts_of_program()["core_problem"] == said


@needs_core
def test_ctrl_c_keeps_what_is_known(capsys, monkeypatch):
    def stop(self, *arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure.Ceilings, "read", stop)
    assert main(["doctor", "-m", "qwq-nano"]) == 130
    out = capsys.readouterr().out
    assert "speed       not measured: interrupted" in out
    assert "to run: qwq generate" in out
    assert main(["doctor", "-m", "qwq-nano", "--json"]) == 130
    facts = json.loads(capsys.readouterr().out)
    assert facts["interrupted"] is True
    assert facts["speed"] is None


@needs_core
def test_too_little_memory_to_measure(capsys, monkeypatch):
    monkeypatch.setattr(measure, "rotation", lambda: 1 << 60)
    facts = report(capsys, "-m", "qwq-nano")
    assert facts["speed"] is None
    assert facts["models"][0]["limits"]["q4"]["output"] is None
    assert main(["doctor", "-m", "qwq-nano"]) == 0
    assert "speed       not measured: too little memory" in capsys.readouterr().out


# --- problems ----------------------------------------------------------------------------------------------------


def healthy():
    """Facts in which nothing is wrong."""
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
        ("cpu", {"quota": 1.5}, "control groups stop 4 threads after the time of 1.5 CPUs", "-t 1"),
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
    facts["memory"]["group_available"] = 100
    (found,) = doctor.problems(facts)
    assert found["advice"] == "raise the control group's memory limit"


@needs_core
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
def test_an_array_without_huge_pages_is_seen(monkeypatch):
    """NumPy reads its variable when it is imported: a process of its own."""
    if machine.huge_page_mode() != "madvise" or not Path("/proc/self/smaps").exists():
        pytest.skip("huge pages here are not for those who ask")
    command = [sys.executable, "-m", "qwq_ref", "doctor", "-m", "qwq-nano", "--json", "-t", "1"]
    env = os.environ | {"NUMPY_MADVISE_HUGEPAGE": "0"}
    facts = json.loads(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    assert facts["speed"]["huge_pages"] == 0
    assert [each["advice"] for each in facts["problems"] if "huge pages" in each["problem"]] == [
        "unset NUMPY_MADVISE_HUGEPAGE"
    ]
