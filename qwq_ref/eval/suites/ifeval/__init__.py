"""IFEval: prompts with instructions that a program can check (Zhou et al. 2023, arXiv:2311.07911).

instructions  the 25 checkers
language      the language of a text
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ....files import StrPath
from ..data import Row, read_rows, unique
from ..suite import Form, Scored, Suite, Task
from .instructions import Check, checks_of

__all__ = ["ifeval", "judge_instructions", "loose_forms"]
_MAX_TOKENS = 2048


def ifeval(path: StrPath) -> Suite:
    """Return the suite of a file in the format of IFEval's input_data.jsonl: key, prompt, instruction_id_list, kwargs.

    Raises SuiteError.
    """
    rows, digest = read_rows(path, "prompts")
    tasks = [
        Task(f"ifeval/{name}", row.text("prompt"), judge_instructions(checks_of(row)))
        for name, row in unique(rows, _key, "key").items()
    ]
    return Suite("ifeval", tasks, Form(), _MAX_TOKENS, {"data": digest})


def _key(row: Row) -> str:
    key = row.values.get("key")
    if type(key) is not int and not (isinstance(key, str) and key):
        raise row.wrong("key", "must be a number or a text")
    return str(key)


def judge_instructions(checks: list[tuple[str, Check]]) -> Callable[[str], Scored]:
    """Return the judge of one prompt. It is correct if every instruction holds (strict accuracy of prompts).

    Its parts are the other three published accuracies: strict by instruction, and loose by prompt and by instruction.
    """

    def judge(answer: str) -> Scored:
        started = time.perf_counter()
        strict = [holds(check, [answer]) for _, check in checks]
        loose = [holds(check, loose_forms(answer)) for _, check in checks]
        broken = [name for (name, _), held in zip(checks, strict, strict=True) if not held]
        parts = {
            "strict instructions": (sum(strict), len(checks)),
            "loose": (int(all(loose)), 1),
            "loose instructions": (sum(loose), len(checks)),
        }
        why = "passed" if not broken else f"does not hold: {', '.join(broken)}"
        return Scored(not broken, why, time.perf_counter() - started, parts)

    return judge


def holds(check: Check, forms: list[str]) -> bool:
    """Return whether an instruction holds in one of these forms of an answer: never in an empty one."""
    return any(bool(form.strip()) and check(form) for form in forms)


def loose_forms(answer: str) -> list[str]:
    """Return the answer, and the forms that the loose accuracy accepts too.

    They are the answer without its first line, its last line, or both, and each of these four without asterisks.
    """
    lines = answer.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return [form for each in (answer, *cut) for form in (each, each.replace("*", ""))]
