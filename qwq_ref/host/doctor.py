"""Facts about this machine and program, and advice: the part of `qwq doctor` that needs no model.

Facts are dictionaries, as `qwq doctor --json` prints them. `cli.doctor` adds speeds and models.
"""

from __future__ import annotations

import importlib
import math
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, core, sandbox
from ..errors import UsageError
from ..footprint import human
from . import cpu, limits, memory
from .system import ROOT

REGISTERS = ("ymm", "zmm")  # of core.FEATURES: kept by the operating system, and no instructions


def instructions() -> list[str]:
    """Return the processor features that a rung may need, by their names in /proc/cpuinfo.

    Without the core, nobody knows its list: these are the ones that its rungs have needed so far.
    """
    known = [name for name in core.FEATURES if name not in REGISTERS]
    return known or ["avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512_vnni"]


def label(feature: str) -> str:
    """Return how people write a feature: "AVX-512 BW" for avx512bw, "AVX-VNNI" for avx_vnni."""
    wide = re.fullmatch(r"avx512_?(\w+)", feature)
    return f"AVX-512 {wide[1].upper()}" if wide else feature.upper().replace("_", "-")


def program_facts() -> dict[str, Any]:
    """Return versions, whether the core is there, and if not, the reason."""
    versions = {"qwq_ref": __version__, "python": platform.python_version(), "numpy": np.__version__}
    return versions | {"core": core.available(), "core_problem": core_problem()}


def core_problem() -> str | None:
    """Return why there is no C core: "is not built", or the error of loading it; None where it is there."""
    if core.available():
        return None
    try:
        importlib.import_module("qwq_ref.core._core")
    except ModuleNotFoundError:
        pass
    except ImportError as error:  # such as a libgomp that was there when it was built
        return f"cannot be loaded ({error})"
    return "is not built"


def engine_summary() -> str:
    """Return what computes, in a few words: "core avx512, 2 threads". Raises CoreError for an impossible QWQ_ISA."""
    problem = core_problem()
    if problem is not None:
        return "no core: NumPy" if problem == "is not built" else f"the core {problem}: NumPy"
    threads = limits.cpus()
    return f"core {core.chosen_isa()}, {threads} thread{'s' * (threads > 1)}"


def cpu_facts(threads: int, root: Path = ROOT, usable: set[int] | None = None) -> dict[str, Any]:
    """Return the processors, and which `instructions` they have, from the core, or else from the system."""
    have = core.features() if core.available() else cpu.cpu_flags(root)
    features = None if have is None else {name: name in have for name in instructions()}
    return asdict(cpu.processors(root, usable)) | {"threads": threads, "features": features}


def memory_facts(root: Path = ROOT) -> dict[str, Any]:
    """Return bytes of memory.

    limit            the tightest limit on this process, such as that of a control group: its name, and its bytes
    group_available  the bytes that this limit leaves; both are None without one
    """
    fields = memory.fields(root)
    tightest = next(iter(memory.limits(root)), None)
    swap = fields["SwapTotal"] - fields["SwapFree"] if {"SwapTotal", "SwapFree"} <= set(fields) else None
    return {
        "total": fields.get("MemTotal"),
        "available": memory.available_bytes(root),
        "limit": None if tightest is None else {"name": tightest.name, "maximum": tightest.maximum},
        "group_available": None if tightest is None else tightest.left,
        "swap_used": swap,
        "huge_page_mode": memory.huge_page_mode(root),
    }


def sandbox_facts() -> dict[str, Any]:
    """Return what contains the programs of models here.

    containment  "bubblewrap" or "namespaces"; None where neither works, and no such program runs
    problems     why the ones before it do not work, by name
    """
    found = sandbox.containment()
    before = sandbox.WAYS[: sandbox.WAYS.index(found)] if found else sandbox.WAYS
    return {"containment": found, "problems": {way: sandbox.problem(way) for way in before}}


def isa_facts(asked: str | None) -> dict[str, Any] | None:
    """Return the instruction set that runs, and the reason: an option, QWQ_ISA, or the best. None without the core.

    Raises UsageError for one that cannot run.
    """
    if not core.available():
        return None
    forced_by = "--isa" if asked else "QWQ_ISA" if os.environ.get("QWQ_ISA") else None
    can_run = core.isas()
    try:
        chosen = core.chosen_isa(asked)
    except core.CoreError as error:
        wanted = asked or os.environ["QWQ_ISA"]
        why = f": {_lack(wanted)}" if wanted in core.ISAS else ""
        raise UsageError(None, forced_by, f"{error.problem}{why}") from None
    if forced_by:
        why = f"forced by {forced_by}" + ("" if chosen == can_run[-1] else f"; {can_run[-1]} can run")
    elif chosen == core.ISAS[-1]:
        why = "the best that this processor and its operating system can run"
    else:
        why = _lack(core.ISAS[core.ISAS.index(chosen) + 1])
    return {"chosen": chosen, "forced_by": forced_by, "why": why, "can_run": can_run}


def _lack(isa: str) -> str:
    """Return why an instruction set cannot run."""
    have = core.features()
    missing = [name for name in core.needs(isa) if name not in have]
    lacking = [label(name) for name in missing if name not in REGISTERS]
    wide = [label(name) for name in core.needs(isa) if name.startswith("avx512")]
    if wide and set(wide) <= set(lacking):
        lacking = [*(name for name in lacking if name not in wide), "AVX-512"]
    if not have and platform.machine() not in ("x86_64", "AMD64"):
        return f"there is no other for {platform.machine() or 'this processor'}"
    if lacking:
        return f"the processor lacks {', '.join(lacking)}"
    return f"the operating system does not keep {' and '.join(missing).upper()} registers"


# --- Advice ----------------------------------------------------------------------------------------------------------


def problems(facts: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the problems in all facts of `qwq doctor`, the worst first: {"problem", "advice"}.

    facts  "program", "cpu", "isa", "memory" as above; "speed" and "models" as `cli.doctor` makes them
    """
    found = [
        *_core_problems(facts),
        *_memory_problems(facts["memory"], facts["speed"], facts["models"]),
        *_thread_problems(facts["cpu"], facts["speed"]),
    ]
    return [{"problem": problem, "advice": advice} for problem, advice in found]


def _core_problems(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    program, isa = facts["program"], facts["isa"]
    if not program["core"]:
        why = f"the C core {program['core_problem']}, and NumPy is slow, in fp32 only"
        return [(why, "with GCC or Clang, in the sources: pip install --force-reinstall --no-deps .")]
    if isa["forced_by"] and isa["chosen"] != isa["can_run"][-1]:
        way = "unset QWQ_ISA" if isa["forced_by"] == "QWQ_ISA" else "leave out --isa"
        return [(f"{isa['chosen']} is forced, where {isa['can_run'][-1]} can run", way)]
    return []


def _memory_problems(
    facts: Mapping[str, Any], speed: Mapping[str, Any] | None, models: list[dict[str, Any]]
) -> list[tuple[str, str]]:
    found = []
    groups = facts["group_available"] is not None and facts["group_available"] <= facts["available"]
    more = "raise the control group's memory limit" if groups else "free memory, or take a smaller model"
    if groups and memory.is_of_process(facts["limit"]["name"]):
        more = f"raise the limit of {facts['limit']['name']}"
    for model in models:
        if not model["choices"]:
            problem = f"{model['model']} holds packed weights, which only the C core reads"
            found.append((problem, "build the C core, as above"))
            continue
        missing = min(choice["missing_bytes"] for choice in model["choices"])
        if missing:
            found.append((f"{model['model']} does not fit in any form: {human(missing)} are missing", more))
    share = None if speed is None else speed["huge_pages"]
    mode = facts["huge_page_mode"]
    if mode == "never":
        way = "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
        found.append(("no huge pages, so reading is slower", way))
    elif mode is not None and share is not None and share < 0.5:
        unset = os.environ.get("NUMPY_MADVISE_HUGEPAGE") == "0"
        way = "unset NUMPY_MADVISE_HUGEPAGE" if unset else "echo 1 | sudo tee /proc/sys/vm/compact_memory"
        found.append((f"{share:.0%} of an array is on huge pages, so reading is slower", way))
    if facts["swap_used"]:
        swap = f"{human(facts['swap_used'])} of memory are swapped out"
        found.append((swap, "end other programs: each token of a swapped model waits for the disk"))
    return found


def _thread_problems(facts: Mapping[str, Any], speed: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return the tightest bound on useful threads, other programs at work, and distant memory."""
    found = []
    threads, quota, cores = facts["threads"], facts["quota"], facts["cores"]
    usable = facts["usable"]
    bounds = [(usable, f"{threads} threads share {usable} CPU{'s' * (usable > 1)}")]
    if cores is not None and cores < facts["usable"]:
        bounds.append((cores, f"{threads} threads share {cores} cores: more threads than cores rarely help"))
    if quota is not None:
        whole = max(1, math.ceil(quota))
        bounds.append((whole, f"control groups stop {threads} threads after the time of {quota:g} CPUs"))
    most, why = min(bounds)
    if threads > most:
        found.append((why, f"-t {most}"))
    load, busy = facts["load"], "so other programs make the measured speeds lower"
    later = "end them, or run qwq doctor again later"
    if speed is not None and load is not None and load > facts["online"] / 2:
        found.append((f"the load is {load:g} on {facts['online']} CPUs, {busy}", later))
    elif speed is not None and speed["reads"][str(speed["threads"])] < 0.9 * speed["reads"]["1"]:
        found.append((f"{threads} threads read more slowly than one, {busy}", later))
    if (facts["nodes"] or 1) > 1:
        why = f"{facts['nodes']} NUMA nodes, and a model may lie in one of them"
        found.append((why, "compare numactl --interleave=all qwq doctor with numactl -N 0 -m 0 qwq doctor"))
    return found
