"""Proofs: theorems of Lean 4 about numbers, logic and lists, without Mathlib.

`lean.verify` judges, with the user's own Lean: see docs/verifiers.md. No Lean was there when this was written, so no
theorem has been proved in it. Tests evaluate each statement in Python for small values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

from ....errors import SuiteError
from ....files import StrPath, parse_json, read_file
from ....tasks.verifiers import Verdict, lean
from ....tasks.verifiers.extract import answer as behind_reasoning
from ....tasks.verifiers.extract import extract_code
from ..suite import Task

_MOST = 1 << 20  # bytes of a file that names tools
_BLOCK = re.compile(r"^```lean4? *\n(.*?)^```", re.DOTALL | re.MULTILINE | re.IGNORECASE)
_NAME = "it_holds"
_FIELDS = ("repl", "comparator", "project", "folders", "variables")


def read_tools(path: StrPath) -> lean.Tools:
    """Read the programs of Lean from a JSON file with the fields of `lean.Tools`. Raises SuiteError."""
    values = parse_json(read_file(Path(path), _MOST, SuiteError), path, SuiteError)
    for name in values:
        if name not in _FIELDS:
            raise SuiteError(path, name, f"is none of {', '.join(_FIELDS)}")
    project = values.get("project")
    if project is not None and not isinstance(project, str):
        raise SuiteError(path, "project", "must be a text")
    variables = values.get("variables", {})
    if not isinstance(variables, dict) or not all(isinstance(value, str) for value in variables.values()):
        raise SuiteError(path, "variables", "must be an object of texts")
    repl, comparator = _texts(path, values, "repl", 1), _texts(path, values, "comparator", 1)
    return lean.Tools(repl, comparator, project, _texts(path, values, "folders", 0), variables)


def _texts(path: StrPath, values: Mapping[str, Any], name: str, least: int) -> tuple[str, ...]:
    found = values.get(name, [])
    if not isinstance(found, list) or len(found) < least or not all(isinstance(each, str) for each in found):
        raise SuiteError(path, name, f"must be a list of {'one or more ' if least else ''}texts")
    return tuple(found)


def task(identity: str, group: str, theorem: str, tools: lean.Tools) -> Task:
    """Return the task of a theorem: what follows its name, up to `:=`."""
    statement = f"theorem {_NAME} {theorem} := by\n  sorry\n"
    prompt = (
        f"Prove this theorem in Lean 4, without Mathlib:\n\n```lean\n{statement}```\n\nAnswer with the whole theorem "
        "and its proof in one Lean code block. Do not use sorry, and no new axioms."
    )

    def judge(answer: str) -> Verdict:
        return lean.verify(statement, proof_in(answer), tools, theorems=[_NAME])

    return Task(identity, prompt, judge, group)


def proof_in(completion: str) -> str:
    """Return the last Lean block of a completion; without any, what `extract_code` finds."""
    blocks = _BLOCK.findall(behind_reasoning(completion))
    return blocks[-1] if blocks else extract_code(completion)


# --- Families: each returns what follows a theorem's name -------------------------------------------------------------


def product(random: Random) -> str:
    a, b = random.randint(2, 9), random.randint(2, 9)
    return f"(n m : Nat) : {a} * (n + {b} * m) = {a * b} * m + {a} * n"


def even(random: Random) -> str:
    a, b = random.randint(1, 9), random.randint(2, 9)
    return f"(n : Nat) : ({b} * n + {a} * {b}) % {b} = 0"


def bound(random: Random) -> str:
    a, b = random.randint(1, 50), random.randint(2, 9)
    return f"(n m : Nat) (h : n < m) : {b} * n + {a} < {b} * m + {a}"


def implication(random: Random) -> str:
    one, other = random.choice([("∧", "∨"), ("∨", "∧")])
    p, q, r = random.sample("pqr", 3)
    return f"(p q r : Prop) : {p} {one} ({q} {other} {r}) → ({p} {one} {q}) {other} ({p} {one} {r})"


def contraposition(random: Random) -> str:
    p, q, r = random.sample("pqr", 3)
    return f"(p q r : Prop) : ({p} → {q} → {r}) → ({p} ∧ ¬{r}) → ¬{q}"


def lengths(random: Random) -> str:
    a, b = random.randint(1, 9), random.randint(1, 9)
    return f"(xs ys : List Nat) : ({a} :: xs ++ {b} :: ys).length = ys.length + xs.length + 2"


def mapped(random: Random) -> str:
    a, b = random.randint(1, 9), random.randint(1, 9)
    return f"(xs : List Nat) : (xs.map (fun x => x + {a})).map (fun x => x + {b}) = xs.map (fun x => x + {a + b})"


def backwards(random: Random) -> str:
    a, b = random.randint(1, 9), random.randint(1, 9)
    return f"(xs : List Nat) : (xs ++ [{a}, {b}]).reverse = {b} :: {a} :: xs.reverse"


FAMILIES: tuple[Callable[[Random], str], ...] = (
    *(product, implication, lengths, even),
    *(contraposition, mapped, bound, backwards),
)
