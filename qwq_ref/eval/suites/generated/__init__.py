"""The generated suite: problems made from a seed, in categories with judges of their own. It needs no data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import count
from random import Random

from ....errors import UsageError
from ....files import StrPath
from ....sandbox import require_containment
from ..suite import Form, Suite, Task
from . import algorithms, families, optimisation, proofs, science

EACH = 25  # problems of a category
SEED = 0
_NO_LEAN = "the proofs are left out: --lean names the programs of Lean"
_Maker = Callable[[str, int, str], Task]  # takes the task's name, its number, and what seeds it


def generated(data: StrPath | None = None, lean: StrPath | None = None, *, each: int = EACH, seed: int = SEED) -> Suite:
    """Return the suite: `each` problems of a category, in turns, so that the first N are shared out, too.

    data  must be None
    lean  a JSON file with the programs of Lean: see `proofs.read_tools`. None: there are no proofs
    seed  decides the problems, and the inputs that judge them

    Raises UsageError, SandboxError without a sandbox, and SuiteError for a bad file.
    """
    if data is not None:
        raise UsageError(None, "data", "has no effect on the suite generated")
    makers: dict[str, _Maker] = {"algorithms": _algorithm, "optimisation": _optimisation, "science": _science}
    if lean is not None:
        makers["proofs"] = _prover(lean)
    require_containment()  # before any answer: without one, no program would run
    columns = [_distinct(name, maker, each, seed) for name, maker in makers.items()]
    tasks = [task for row in zip(*columns, strict=True) for task in row]
    digest = hashlib.sha256("\0".join(task.prompt for task in tasks).encode()).hexdigest()
    facts = {"problem seed": seed, "problems": digest}
    return Suite("generated", tasks, Form(), facts=facts, note="" if lean is not None else _NO_LEAN)


def _distinct(category: str, maker: _Maker, each: int, seed: int) -> list[Task]:
    """Return tasks with different prompts: the families in turns, each drawn until it is new."""
    found: dict[str, Task] = {}
    for number in range(each):
        for attempt in count():
            try:
                task = maker(f"{category}/{number:02}", number, f"{seed}/{category}/{number}/{attempt}")
            except science.TooAlikeError:
                continue
            if task.prompt not in found:
                found[task.prompt] = task
                break
    return list(found.values())


def _algorithm(name: str, number: int, seed: str) -> Task:
    random = Random(seed)
    problem = algorithms.FAMILIES[number % len(algorithms.FAMILIES)](random)
    return algorithms.task(name, "algorithms", problem, random)


def _optimisation(name: str, number: int, seed: str) -> Task:
    pair = families.FAMILIES[number % len(families.FAMILIES)](Random(seed))
    return optimisation.task(name, "optimisation", pair, seed)


def _science(name: str, number: int, seed: str) -> Task:
    random = Random(seed)
    question = science.FAMILIES[number % len(science.FAMILIES)](random)
    return science.task(name, "science", question, random)


def _prover(lean: StrPath) -> _Maker:
    tools = proofs.read_tools(lean)

    def proof(name: str, number: int, seed: str) -> Task:
        theorem = proofs.FAMILIES[number % len(proofs.FAMILIES)](Random(seed))
        return proofs.task(name, "proofs", theorem, tools)

    return proof
