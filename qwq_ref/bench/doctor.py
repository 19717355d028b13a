"""What this machine can do with a model, and what keeps it from doing better: the facts of `qwq doctor`.

All that is said of speed are ceilings: what memory and instructions allow, measured now. No program reaches them.
"""

from __future__ import annotations

import importlib
import math
import os
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, core, footprint
from ..config import Config
from ..core import ceilings
from ..engine import fit
from ..engine.plan import step_bytes
from ..errors import MemoryLimitError, UsageError
from ..footprint import human
from ..forms import FORMS, KV_FORMS
from ..host import cpu as machine
from ..host import memory
from . import measure
from .ops import peak_of

NAMES = {
    "avx2": "AVX2",
    "fma": "FMA",
    "f16c": "F16C",
    "avx512f": "AVX-512 F",
    "avx512dq": "AVX-512 DQ",
    "avx512bw": "AVX-512 BW",
    "avx512vl": "AVX-512 VL",
    "avx512_vnni": "AVX-512 VNNI",
}  # of core.FEATURES, those that are the processor's
ROOMY = 8_192  # positions that a reasoning model should have: with less, smaller weights are the better choice
SPARE = 256 << 20  # bytes that a recommended context leaves: what is available now may be less when it is tried
SAMPLES = 5  # of each ceiling, in turns; the best counts, for other work can only make it slower
SPAN = 0.05  # seconds of a sample


@dataclass(frozen=True)
class Asked:
    """A model to reckon with.

    name, run_as  what it was called, and what `qwq generate -m` would take
    stored        dtype -> bytes of its checkpoint, as far as is known
    packed        the weight forms that it holds packed; it has no others then
    """

    name: str
    run_as: str
    config: Config
    stored: Mapping[str, int]
    packed: Sequence[str] = ()


def examine(
    models: list[Asked], threads: int, isa: str | None, progress: Callable[[int], object] = lambda count: None
) -> dict[str, Any]:
    """All facts, as JSON has them; the speeds are measured meanwhile, unless a Ctrl-C ends that.

    isa       as for `core.chosen_isa`
    progress  see `measure_speed`

    Raises UsageError for an instruction set that cannot run.
    """
    instructions = facts_of_isa(isa)
    facts: dict[str, Any] = {
        "program": facts_of_program(),
        "cpu": facts_of_cpu(threads),
        "isa": instructions,
        "memory": facts_of_memory(),
        "speed": None,
        "interrupted": False,
    }
    speed = None
    if instructions is not None:
        try:
            speed = measure_speed(threads, instructions["chosen"], progress)
        except MemoryLimitError:
            pass
        except KeyboardInterrupt:
            facts["interrupted"] = True
    if speed is not None:
        facts["speed"] = asdict(speed) | {"reads": {str(n): rate for n, rate in speed.reads.items()}}
    available, caches = facts["memory"]["available"], facts["cpu"]["last_caches"] or measure.last_cache_bytes()
    given = (f" -t {threads}" if threads != memory.cpus() else "") + (f" --isa {isa}" if isa else "")
    facts["models"] = [facts_of_model(asked, available, speed, caches, given) for asked in models]
    facts["problems"] = problems(facts)
    return facts


def facts_of_model(asked: Asked, available: int, speed: Speed | None, caches: int, given: str = "") -> dict[str, Any]:
    """Which forms fit, what bounds their speed, and the command for the best of them: None where nothing fits.

    given  options that the command ends with
    """
    table = choices(asked.config, asked.stored, available, asked.packed)
    best = best_choice(asked.config, asked.stored, table, available, asked.packed)
    forms = list(dict.fromkeys(choice.weights for choice in table)) if core.available() else []
    command = None
    if best is not None:
        choice, context = best
        how = f"--weights {choice.weights} --kv {choice.kv} -c {context}"
        command = f"qwq generate -m {shlex.quote(asked.run_as)} {how}{given}"
    return {
        "model": asked.name,
        "positions": asked.config.positions,
        "choices": [asdict(choice) for choice in table],
        "limits": {form: asdict(limits(asked.config, form, speed, caches)) for form in forms},
        "best": None if best is None else {"weights": best[0].weights, "kv": best[0].kv, "context": best[1]},
        "command": command,
    }


# --- What there is ---------------------------------------------------------------------------------------------------


def facts_of_program() -> dict[str, Any]:
    """Versions, and whether the core is there; if not, why."""
    problem = None
    if not core.available():
        try:
            importlib.import_module("qwq_ref.core._core")
        except ModuleNotFoundError:
            pass
        except ImportError as error:  # such as a libgomp that was there when it was built
            problem = str(error)
        problem = f"cannot be loaded ({problem})" if problem else "is not built"
    versions = {"qwq_ref": __version__, "python": platform.python_version(), "numpy": np.__version__}
    return versions | {"core": core.available(), "core_problem": problem}


def facts_of_cpu(threads: int, root: Path = machine.ROOT, usable: set[int] | None = None) -> dict[str, Any]:
    """Processors, and which of `NAMES` they have: by the core where it is built, else as the system says."""
    have = core.features() if core.available() else machine.cpu_flags(root)
    features = None if have is None else {name: name in have for name in NAMES}
    return asdict(machine.processors(root, usable)) | {"threads": threads, "features": features}


def facts_of_memory(root: Path = machine.ROOT) -> dict[str, Any]:
    """Bytes; `group_available` is what control groups leave, None where none has a limit."""
    fields = machine.memory_fields(root)
    swap = fields["SwapTotal"] - fields["SwapFree"] if {"SwapTotal", "SwapFree"} <= set(fields) else None
    return {
        "total": fields.get("MemTotal"),
        "available": memory.available_bytes(root),
        "group_available": min(memory.group_limits(root), default=None),
        "swap_used": swap,
        "huge_page_mode": machine.huge_page_mode(root),
    }


def facts_of_isa(asked: str | None) -> dict[str, Any] | None:
    """The instruction set that runs, and why: `asked` by an option, QWQ_ISA, or the best. None without the core.

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
    """Why an instruction set cannot run."""
    have = core.features()
    missing = [name for name in core.needs(isa) if name not in have]
    instructions = [NAMES[name] for name in missing if name in NAMES]
    if instructions == [name for name in NAMES.values() if name.startswith("AVX-512")]:
        instructions = ["AVX-512"]
    if not have and platform.machine() not in ("x86_64", "AMD64"):
        return f"there is no other for {platform.machine() or 'this processor'}"
    if instructions:
        return f"the processor lacks {', '.join(instructions)}"
    return f"the operating system does not keep {' and '.join(missing).upper()} registers"


# --- What it can do --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """
    isa, threads      that were measured
    reads             number of threads -> bytes of memory read per second
    peaks             instructions -> multiply-accumulates per second, on all threads
    huge_pages        the share of what was read that lies on huge pages; None where the system does not say
    """

    isa: str
    threads: int
    reads: dict[int, float]
    peaks: dict[str, float]
    huge_pages: float | None


def measure_speed(threads: int, isa: str, progress: Callable[[int], object] = lambda count: None) -> Speed:
    """The machine's ceilings, in a second or two. `progress` hears of each of SAMPLES rounds.

    Raises MemoryLimitError where there is too little memory to read from.
    """
    memory.require({"data": measure.rotation()}, "measuring")
    best = measure.Ceilings()
    share = measure.huge_pages(best.data)
    kinds = [peak_of(core.FORMATS[form.matrix]) for form in FORMS.values()]
    named = {ceilings.instructions(kind, isa): kind for kind in kinds if ceilings.products(kind, isa)}
    reads: dict[int, float] = {}
    peaks: dict[str, float] = {}
    for _ in range(SAMPLES):
        for n in sorted({1, threads}):
            reads[n] = max(reads.get(n, 0.0), best.read(n, SPAN))
        for name, kind in named.items():
            peaks[name] = max(peaks.get(name, 0.0), best.peak(kind, isa, threads, SPAN) or 0.0)
        progress(1)
    return Speed(isa, threads, reads, peaks, share)


@dataclass(frozen=True)
class Choice:
    """A form of weights and of the cache.

    weight_bytes     that it holds
    largest_context  that fits now; 0 if none does
    missing_bytes    of memory, for the least context that a model is loaded with; 0 where it fits
    """

    weights: str
    kv: str
    weight_bytes: int
    largest_context: int
    missing_bytes: int


def choices(config: Config, stored: Mapping[str, int], available: int, packed: Sequence[str] = ()) -> list[Choice]:
    """All that `engine.model.load` can be asked for; the most exact weights first, then the most exact cache.

    `stored` as in `fit.candidates`: bf16 is for a checkpoint of nothing else.
    """
    pairs = [] if packed else [("fp32", "fp32")]
    if core.available():
        pairs = [(form, kv) for form in fit.available_forms(stored, packed) for kv in KV_FORMS]
    table = []
    for form, kv in pairs:
        needs = _needs(config, form, kv)
        least = needs(fit.least_context(config))
        missing = max(0, sum(least.values()) - available)
        largest = fit.largest_context(config, needs, available)
        table.append(Choice(form, kv, least["weights"], largest, missing))
    return table


def best_choice(
    config: Config, stored: Mapping[str, int], table: list[Choice], available: int, packed: Sequence[str] = ()
) -> tuple[Choice, int] | None:
    """Of `choices`, the most exact that leaves room to reason, with a context; else the one with the most room.

    None: nothing fits.
    """
    sensible = [("fp32", "fp32")]
    if core.available():
        sensible = []
        for form in fit.candidates(stored, packed):
            sensible += [(form, kv) for kv in KV_FORMS if kv == FORMS[form].kv or FORMS[form].floats]
    ordered = sorted(
        (choice for choice in table if (choice.weights, choice.kv) in sensible and not choice.missing_bytes),
        key=lambda choice: sensible.index((choice.weights, choice.kv)),
    )
    least, roomy = fit.least_context(config), min(config.positions, ROOMY)
    rooms = []
    for choice in ordered:
        needs = _needs(config, choice.weights, choice.kv)
        room = fit.largest_context(config, needs, available - min(SPARE, available // 16))
        if room < config.positions:
            room = room // least * least
        rooms.append((choice, max(room, least)))
    return next((pair for pair in rooms if pair[1] >= roomy), max(rooms, key=lambda pair: pair[1], default=None))


def _needs(config: Config, form: str, kv: str) -> fit.Needs:
    return fit.core_needs(config, form, kv) if core.available() else fit.numpy_needs(config)


@dataclass(frozen=True)
class Limits:
    """What bounds a model's speed with weights in a form.

    step_bytes, step_macs  that decoding a token reads and multiplies, behind an empty context
    prompt_macs            of a token of a prompt
    cached                 whether the last caches hold what is read, so that memory is no limit
    output, prompt         tokens per second at most; None where it is not known
    """

    step_bytes: int
    step_macs: int
    prompt_macs: int
    cached: bool
    output: float | None
    prompt: float | None


def limits(config: Config, form: str, speed: Speed | None, caches: int) -> Limits:
    """From the ceilings, if they are measured. `caches`: bytes of all last caches."""
    read = step_bytes(config, form)
    step_macs = footprint.flops_per_token(config, 0) // 2
    prompt_macs = footprint.flops_per_token(config, 0, head=False) // 2
    cached = read < 2 * caches  # what is read once more may partly be there still
    if speed is None:
        return Limits(read, step_macs, prompt_macs, cached, None, None)
    instructions = ceilings.instructions(peak_of(core.FORMATS[FORMS[form].matrix]), speed.isa) if speed.peaks else ""
    peak = speed.peaks.get(instructions)
    seconds = [] if cached else [read / speed.reads[speed.threads]]
    seconds += [step_macs / peak] if peak else []
    output = 1 / max(seconds) if seconds else None
    return Limits(read, step_macs, prompt_macs, cached, output, peak / prompt_macs if peak else None)


# --- What to change --------------------------------------------------------------------------------------------------


def problems(facts: Mapping[str, Any]) -> list[dict[str, str]]:
    """What was found, and what to do about it: {"problem", "advice"} of the other facts, the worst first."""
    found = [
        *_core_problems(facts),
        *_memory_problems(facts["memory"], facts["speed"], facts["models"]),
        *_thread_problems(facts["cpu"], facts["speed"]),
    ]
    return [{"problem": problem, "advice": advice} for problem, advice in found]


def _core_problems(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    program, isa = facts["program"], facts["isa"]
    if not program["core"]:
        why = f"the C core {program['core_problem']}, and NumPy is slow, with fp32 weights only"
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
    for model in models:
        missing = min((choice["missing_bytes"] for choice in model["choices"]), default=0)
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
        found.append((swap, "end other programs: of a model that is swapped, each token waits for the disk"))
    return found


def _thread_problems(facts: Mapping[str, Any], speed: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The tightest of what bounds useful threads; others' work; memory that is near to some processors only."""
    found = []
    threads, quota, cores = facts["threads"], facts["quota"], facts["cores"]
    usable = facts["usable"]
    bounds = [(usable, f"{threads} threads share {usable} CPU{'s' * (usable > 1)}")]
    if cores is not None and cores < facts["usable"]:
        bounds.append((cores, f"{threads} threads share {cores} cores: more threads than cores rarely help"))
    if quota is not None:
        whole = max(1, math.floor(quota))
        bounds.append((whole, f"control groups stop {threads} threads after the time of {quota:g} CPUs"))
    most, why = min(bounds)
    if threads > most:
        found.append((why, f"-t {most}"))
    load, busy = facts["load"], "so other programs are at work, and speeds could be higher"
    if speed is not None and load is not None and load > facts["online"] / 2:
        found.append((f"the load is {load:g} on {facts['online']} CPUs, {busy}", "end them, or ask again later"))
    elif speed is not None and speed["reads"][str(speed["threads"])] < 0.9 * speed["reads"]["1"]:
        found.append((f"{threads} threads read more slowly than one, {busy}", "end them, or ask again later"))
    if (facts["nodes"] or 1) > 1:
        why = f"{facts['nodes']} NUMA nodes, and a model may lie in one of them"
        found.append((why, "compare numactl --interleave=all qwq doctor with numactl -N 0 -m 0 qwq doctor"))
    return found
