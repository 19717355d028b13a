"""`qwq doctor`: what this machine can run of a model, how fast, and what to change. It downloads configs at most."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..config import Config
from ..errors import MemoryLimitError
from ..footprint import human
from ..forms import FILE, AnyForm, FileForm
from ..host.limits import cpus
from ..host.memory import is_of_process
from ..tables import Table, definitions
from .ending import kept
from .options import DEFAULT_MODEL, MODELS, set_threads
from .progress import progress_bar
from .screen import show
from .streams import require_output
from .values import threads

if TYPE_CHECKING:
    from ..bench.speed import Speed

_REAL = ("qwq-32b", "Qwen/QwQ-32B")  # the shipped config, and the hub id of its weights
_GIVEN = {"always": "given always", "madvise": "given on request", "never": "never given"}  # by `huge_page_mode`


@dataclass(frozen=True)
class Asked:
    """A model to examine.

    name, run_as    as the user called it, and as `qwq generate -m` takes it
    stored, packed  as for `engine.fit.available_forms`
    kept            the form of a quantised file
    """

    name: str
    run_as: str
    config: Config
    stored: Mapping[str, int]
    packed: Sequence[str] = ()
    kept: FileForm | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = f"a config.json, {MODELS}, qwq-32b; default: qwq-32b and {DEFAULT_MODEL}"
    parser.add_argument("-m", "--model", action="append", help=what.replace(" (the default)", ""))
    parser.add_argument("-t", "--threads", type=threads, metavar="N", help="threads; default: one for each usable CPU")
    parser.add_argument("--isa", metavar="NAME", help="instruction set, such as avx2; default: QWQ_ISA, or the fastest")
    parser.add_argument("--offline", action="store_true", help="fetch no config of the hub")
    parser.add_argument("--json", action="store_true", help="print JSON, with exact numbers")


def run(options: argparse.Namespace) -> int:
    require_output()
    set_threads(1)  # BLAS has no part in this
    models = [_read(name, options.offline) for name in options.model or (_REAL[0], DEFAULT_MODEL)]
    from ..bench.speed import SAMPLES

    with progress_bar("measuring", SAMPLES, "rounds") as progress:
        facts = examine(models, options.threads or cpus(), options.isa, progress)
    print(json.dumps(facts, indent=1, allow_nan=False)) if options.json else show(page(facts))
    sys.stdout.flush()
    if facts["interrupted"]:
        with kept(lambda: "the speed of the machine was not measured"):
            raise KeyboardInterrupt
    return 0 if any(model["best"] for model in facts["models"]) else 1


def _read(name: str, offline: bool) -> Asked:
    from .models import find

    found = find(name, offline)
    if not found.dtypes and not found.packed:  # Qwen2 models are published in bfloat16
        unknown = name if "/" in name and not os.path.lexists(name) else "FOLDER_OR_HUB_ID"
        run_as = _REAL[1] if name == _REAL[0] else unknown
        return Asked(name, run_as, found.config, {"BF16": 0})
    run_as = str(found.path) if name.endswith(".json") else name
    return Asked(name, run_as, found.config, found.dtypes, tuple(found.packed), found.kept)


# --- The facts: of the machine, its speed, and each model ------------------------------------------------------------


def examine(
    models: list[Asked], threads: int, isa: str | None, progress: Callable[[int], object] = lambda count: None
) -> dict[str, Any]:
    """Return all facts, as JSON has them. Speeds are measured meanwhile, unless Ctrl-C ends that.

    isa       as for `core.chosen_isa`
    progress  as for `bench.speed.measure_speed`

    Raises UsageError for an instruction set that cannot run.
    """
    from ..bench.measure import last_cache_bytes
    from ..bench.speed import measure_speed
    from ..host import doctor

    instructions = doctor.isa_facts(isa)
    facts: dict[str, Any] = {
        "program": doctor.program_facts(),
        "cpu": doctor.cpu_facts(threads),
        "isa": instructions,
        "memory": doctor.memory_facts(),
        "sandbox": doctor.sandbox_facts(),
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
    available, caches = facts["memory"]["available"], facts["cpu"]["last_caches"] or last_cache_bytes()
    given = (f" -t {threads}" if threads != cpus() else "") + (f" --isa {isa}" if isa else "")
    facts["models"] = [model_facts(asked, available, speed, caches, given) for asked in models]
    facts["problems"] = doctor.problems(facts)
    return facts


def model_facts(asked: Asked, available: int, speed: Speed | None, caches: int, given: str = "") -> dict[str, Any]:
    """Return the forms that fit, the bounds on their speed, and the command for the best; None where nothing fits.

    available  bytes of memory
    caches     bytes of all last caches
    given      options that the command ends with
    """
    from .. import core
    from ..bench.speed import limits
    from ..engine.choices import best_choice, choices

    table = choices(asked.config, asked.stored, available, asked.packed, asked.kept)
    best = best_choice(asked.config, asked.stored, table, available, asked.packed, asked.kept)
    names = list(dict.fromkeys(choice.weights for choice in table)) if core.available() else []
    forms: dict[str, AnyForm] = {name: asked.kept if name == FILE and asked.kept else name for name in names}
    command = None
    if best is not None:
        choice, context = best
        how = f"--weights {choice.weights} --kv {choice.kv} -c {context}"
        command = f"qwq generate -m {shlex.quote(asked.run_as)} {how}{given}"
    return {
        "model": asked.name,
        "positions": asked.config.positions,
        "choices": [asdict(choice) for choice in table],
        "limits": {name: asdict(limits(asked.config, form, speed, caches)) for name, form in forms.items()},
        "best": None if best is None else {"weights": best[0].weights, "kv": best[0].kv, "context": best[1]},
        "command": command,
    }


# --- The page --------------------------------------------------------------------------------------------------------


def page(facts: dict[str, Any]) -> str:
    """Return the facts for people."""
    isa = facts["isa"]
    rows = [
        ("program", _program(facts["program"])),
        ("CPU", _cpu(facts["cpu"])),
        ("features", _features(facts["cpu"]["features"])),
        ("kernels", "needs the C core" if isa is None else f"{isa['chosen']}: {isa['why']}"),
        ("memory", _memory(facts["memory"])),
        ("huge pages", _huge_pages(facts["memory"], facts["speed"])),
        *_speed(facts),
        ("sandbox", _sandbox(facts["sandbox"])),
    ]
    lines = [definitions(rows)]
    for model in facts["models"]:
        lines += ["", *_model(model)]
    limits = [limit for model in facts["models"] for limit in model["limits"].values()]
    if any(limit["output"] for limit in limits):
        lines += ["", "Tokens/s are upper limits for an empty context: memory and instructions allow no more."]
        if any(limit["cached"] for limit in limits):
            lines.append("* The processor's caches hold these weights, so the speed of memory is no limit.")
    found = facts["problems"]
    lines += ["", "Problems:" if found else "No problems were found."]
    return "\n".join([*lines, *(f"- {each['problem']} -> {each['advice']}" for each in found)])


def _program(facts: dict[str, Any]) -> str:
    core = "is built" if facts["core"] else facts["core_problem"]
    return f"qwq_ref {facts['qwq_ref']}, Python {facts['python']}, NumPy {facts['numpy']}; the C core {core}"


def _cpu(facts: dict[str, Any]) -> str:
    usable, cores = facts["usable"], facts["cores"]
    parts = [f"{facts['model']}: {usable} of {facts['online']} CPUs may be used"]
    if facts["quota"] is not None:
        parts.append(f"for the time of {facts['quota']:g} (a control group's quota)")
    parts.append("cores unknown" if cores is None else _plural(cores, "core"))
    parts.append("NUMA unknown" if facts["nodes"] is None else _plural(facts["nodes"], "NUMA node"))
    cache = facts["last_cache"]
    parts.append("cache unknown" if cache is None else f"last-level cache {_short(cache)}")
    return ", ".join(parts)


def _features(facts: dict[str, bool] | None) -> str:
    from ..host.doctor import label

    if facts is None:
        return "unknown"
    wide = "AVX-512 "
    texts = []
    for has in (True, False):
        names = [label(name) for name in facts if facts[name] == has]
        parts = [name for name in names if not name.startswith(wide)]
        more = [name.removeprefix(wide) for name in names if name.startswith(wide)]
        texts.append(", ".join(parts + ([wide + " ".join(more)] if more else [])))
    return f"{texts[0] or 'none'}; lacks {texts[1]}" if texts[1] else texts[0]


def _memory(facts: dict[str, Any]) -> str:
    total = "of an unknown total" if facts["total"] is None else f"of {human(facts['total'])}"
    text = f"{human(facts['available'])} {total} available now"
    if facts["group_available"] is not None and facts["group_available"] <= facts["available"]:
        name = facts["limit"]["name"]
        what = name if is_of_process(name) else f"a control group ({name})"
        text += f", which {what} limits to {human(facts['limit']['maximum'])}"
    swap = facts["swap_used"]
    if swap is None:
        return f"{text}; swap unknown"
    return f"{text}; " + (f"{human(swap)} of swap in use" if swap else "no swap in use")


def _huge_pages(memory: dict[str, Any], speed: dict[str, Any] | None) -> str:
    mode = memory["huge_page_mode"]
    given = "unknown when the system gives them" if mode is None else f"{_GIVEN.get(mode, 'given')} ({mode})"
    share = None if speed is None else speed["huge_pages"]
    return f"{given}; " + ("not measured" if share is None else f"{share:.0%} of a test array lies on them")


def _sandbox(facts: dict[str, Any]) -> str:
    reasons = "; ".join(f"{way}: {reason}" for way, reason in facts["problems"].items())
    if facts["containment"] is None:
        return f"none, so programs that models write do not run ({reasons})"
    return f"{facts['containment']}, for programs that models write" + (f" ({reasons})" if reasons else "")


def _speed(facts: dict[str, Any]) -> list[tuple[str, str]]:
    speed = facts["speed"]
    if speed is None:
        why = "interrupted" if facts["interrupted"] else "too little memory" if facts["isa"] else "needs the C core"
        return [("speed", f"not measured: {why}")]
    reads = ", ".join(f"{rate / 1e9:.1f} GB/s on {_plural(int(n), 'thread')}" for n, rate in speed["reads"].items())
    on = f"on {_plural(speed['threads'], 'thread')}"
    products = [f"{rate / 1e9:.1f} billion multiply-adds/s {on}, by {name}" for name, rate in speed["peaks"].items()]
    products = products or ["no upper limit is known for scalar code"]
    return [("reading", reads), *zip(["products", *[""] * len(products)], products, strict=False)]


def _model(facts: dict[str, Any]) -> list[str]:
    """Return a table: weight forms are its rows, cache forms its columns."""
    kvs = list(dict.fromkeys(choice["kv"] for choice in facts["choices"]))
    headings = ["weights", "memory", *(f"KV {kv}" for kv in kvs), "output", "prompt"]
    table = Table(headings, "<" + ">" * (len(headings) - 1))
    lines = []
    for weights in dict.fromkeys(choice["weights"] for choice in facts["choices"]):
        row = [choice for choice in facts["choices"] if choice["weights"] == weights]
        cells = [
            f"needs {_short(choice['missing_bytes'])} more"
            if choice["missing_bytes"]
            else f"{choice['largest_context']:,}"
            for choice in row
        ]
        limit = facts["limits"].get(weights)
        speeds = ["-", "-"] if limit is None else [_rate(limit["output"]), _rate(limit["prompt"])]
        if limit and limit["cached"] and limit["output"]:
            speeds[0] += "*"
        lines.append([weights, human(row[0]["weight_bytes"]), *cells, *speeds])
    return [
        f"{facts['model']}: the context that fits in memory now, of {facts['positions']:,} positions; tokens/s at most",
        table.text(lines),
        f"to run: {facts['command']}" if facts["command"] else "nothing fits",
    ]


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _short(size: int) -> str:
    """Return bytes for people, with about three digits."""
    value, unit = (size / 2**30, "GiB") if size >= 2**30 / 10 else (size / 2**20, "MiB")
    return f"{value:,.{0 if value >= 100 or value == int(value) else 1}f} {unit}"
