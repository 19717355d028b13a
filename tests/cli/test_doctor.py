"""`qwq doctor`: the JSON, the screen, the recommended command, and machines with problems."""

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

import qwq_ref
from qwq_ref import core, footprint, sandbox
from qwq_ref.bench import measure
from qwq_ref.bench import speed as speeds
from qwq_ref.cli import doctor, main
from qwq_ref.formats import resolve
from qwq_ref.forms import FORMS
from qwq_ref.host import cpu, memory
from qwq_ref.host import doctor as host_doctor
from qwq_ref.host.doctor import instructions
from qwq_ref.host.limits import cpus
from qwq_ref.sandbox import ways

needs_core = pytest.mark.skipif(not core.available(), reason="the C core is not built: there was no compiler")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Read little memory, for a short time."""
    monkeypatch.setattr(measure, "rotation", lambda: 1 << 20)
    monkeypatch.setattr(speeds, "SPAN", 1e-4)
    monkeypatch.delenv("QWQ_ISA", raising=False)
    monkeypatch.delenv("NUMPY_MADVISE_HUGEPAGE", raising=False)


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
    assert list(facts) == ["program", "cpu", "isa", "memory", "sandbox", "speed", "interrupted", "models", "problems"]
    assert list(facts["program"]) == ["qwq_ref", "python", "numpy", "core", "core_problem"]
    processors = ["model", "online", "usable", "quota", "cores", "nodes", "last_cache", "last_caches", "load"]
    assert list(facts["cpu"]) == [*processors, "threads", "features"]
    assert list(facts["cpu"]["features"]) == instructions()
    assert list(facts["isa"]) == ["chosen", "forced_by", "why", "can_run"]
    assert list(facts["memory"]) == ["total", "available", "limit", "group_available", "swap_used", "huge_page_mode"]
    assert list(facts["sandbox"]) == ["containment", "problems"]
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
    assert facts["cpu"]["usable"] == cpus()


@pytest.mark.parametrize(
    ("working", "wanted"),
    [
        (["bubblewrap", "namespaces"], "bubblewrap, for programs that models write"),
        (["namespaces"], "namespaces, for programs that models write (bubblewrap: not here)"),
        ([], "none, so programs that models write do not run (bubblewrap: not here; namespaces: not here)"),
    ],
)
def test_the_sandbox(monkeypatch, working, wanted):
    monkeypatch.setattr(ways, "problem", lambda way: None if way in working else "not here")
    monkeypatch.setattr(sandbox, "problem", ways.problem)
    assert doctor._sandbox(host_doctor.sandbox_facts()) == wanted


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
    facts = report(capsys, "-m", str(folder), "-t", str(cpus() + 1))
    command = shlex.split(facts["models"][0]["command"])
    assert command[3] == str(folder)
    assert command[-2:] == ["-t", str(cpus() + 1)]
    facts = report(capsys, "-m", str(folder / "config.json"))
    assert "-m FOLDER_OR_HUB_ID " in facts["models"][0]["command"]


@needs_core
def test_packed_weights_are_advised_in_their_own_forms(capsys, tmp_path, monkeypatch):
    """By their folder, by its config.json, and by a file; each command runs."""
    for form in ("q8", "q4"):
        assert main(["convert", "-m", "qwq-nano", str(tmp_path / "nano"), "--weights", form]) == 0
    capsys.readouterr()
    for name, run_as, forms in (
        ("nano", "nano", ["q8", "q4"]),
        ("nano/config.json", "nano", ["q8", "q4"]),
        ("nano/packed-q4.safetensors", "nano/packed-q4.safetensors", ["q4"]),
    ):
        (model,) = report(capsys, "-m", str(tmp_path / name))["models"]
        assert list(model["limits"]) == forms
        command = shlex.split(model["command"])
        assert command[2:6] == ["-m", str(tmp_path / run_as), "--weights", forms[0]]
        assert main([*command[1:], "What is 1+1?", "-n", "2", "--seed", "1"]) == 0
        capsys.readouterr()
    monkeypatch.chdir(tmp_path / "nano")
    (model,) = report(capsys, "-m", "config.json")["models"]
    assert model["command"].startswith("qwq generate -m . --weights q8 ")


def test_the_limits_of_a_container_are_named(capsys, monkeypatch):
    limit = memory.Limit("memory.max", 4 << 30, 1 << 30)
    monkeypatch.setattr(memory, "limits", lambda root=None: [limit])
    monkeypatch.setattr(cpu, "cpu_quota", lambda root=None: 0.5)
    assert main(["doctor", "-m", "qwq-nano", "-t", "3"]) == 0
    out = capsys.readouterr().out
    assert ", for the time of 0.5 (a control group's quota), " in out
    assert "available now, which a control group (memory.max) limits to 4.00 GiB; " in out
    assert "- control groups stop 3 threads after the time of 0.5 CPUs -> -t 1\n" in out
    monkeypatch.setattr(memory, "limits", lambda root=None: [memory.Limit("ulimit -v", 4 << 30, 1 << 30)])
    assert main(["doctor", "-m", "qwq-nano", "-t", "1"]) == 0
    assert "available now, which ulimit -v limits to 4.00 GiB; " in capsys.readouterr().out
    facts = report(capsys, "-m", "qwq-nano")
    assert facts["memory"]["limit"] == {"name": "ulimit -v", "maximum": 4 << 30}
    assert facts["memory"]["group_available"] == facts["memory"]["available"] == 3 << 30


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
        (["-t", "0"], 2, "-t/--threads: must be at least 1, got 0"),
        (["-t", "1025"], 2, "-t/--threads: must be at most 1024, got 1025"),
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
    flags = cpu.cpu_flags()
    assert facts["cpu"]["features"] == (None if flags is None else {name: name in flags for name in instructions()})
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


@needs_core
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
def test_an_array_without_huge_pages_is_seen(monkeypatch):
    """NumPy reads its variable at import, so the test needs a process of its own."""
    if memory.huge_page_mode() != "madvise" or not Path("/proc/self/smaps").exists():
        pytest.skip("huge pages here are not for those who ask")
    command = [sys.executable, "-m", "qwq_ref", "doctor", "-m", "qwq-nano", "--json", "-t", "1"]
    env = os.environ | {"NUMPY_MADVISE_HUGEPAGE": "0"}
    facts = json.loads(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    assert facts["speed"]["huge_pages"] == 0
    assert [each["advice"] for each in facts["problems"] if "huge pages" in each["problem"]] == [
        "unset NUMPY_MADVISE_HUGEPAGE"
    ]
