"""AIME: problems of a competition, whose answers are integers from 0 to 999."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from ...files import StrPath
from ...tasks.verifiers import Verdict
from .data import Row, read_rows, unique
from .suite import Form, Suite, Task

_MESSAGE = "{}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
_MAX_TOKENS = 32768
_MOST = 999
# Published files of these problems spell their fields in several ways.
_PROBLEM, _ANSWER, _ID = (
    ("problem", "question", "Problem", "Question"),
    ("answer", "Answer"),
    ("id", "ID", "problem_idx"),
)


def aime(path: StrPath) -> Suite:
    """Return the suite of a file with a problem and its answer on each line. Raises SuiteError.

    The mean over several samples is its usual score (avg@k): ask with `-k`.
    """
    rows, digest = read_rows(path, "problems")
    tasks = [
        Task(f"aime/{name}", _MESSAGE.format(row.text(_there(row, _PROBLEM))), _judge(_gold(row)))
        for name, row in unique(rows, _name, "id").items()
    ]
    return Suite("aime", tasks, Form(), _MAX_TOKENS, {"data": digest})


def _there(row: Row, names: tuple[str, ...]) -> str:
    """Return the first of these names that the row has, or the first name."""
    return next((name for name in names if name in row.values), names[0])


def _name(row: Row) -> str:
    return str(row.values.get(_there(row, _ID), row.line))


def _gold(row: Row) -> int:
    name = _there(row, _ANSWER)
    value: Any = row.values.get(name)
    text = str(value).strip() if isinstance(value, str) or type(value) is int else ""
    if not re.fullmatch("[0-9]{1,3}", text):
        raise row.wrong(name, f"must be an integer from 0 to {_MOST}")
    return int(text)


def final_integer(answer: str) -> int | None:
    r"""Return the integer in the last \boxed{...} of an answer; without a box, its last integer."""
    _, box, behind = answer.rpartition("\\boxed{")
    if box:
        inside = re.sub(r"\\[,;! ]|[,\s$]|\\text(?:bf)?\{|\}.*", "", behind.partition("}")[0])
        return int(inside) if re.fullmatch("0*[0-9]{1,3}", inside) else None
    numbers = re.findall(r"(?<![\d.,])-?\d+(?![\d.]*\d)", answer)
    return int(numbers[-1]) if numbers and len(numbers[-1]) <= 6 else None


def _judge(gold: int) -> Callable[[str], Verdict]:
    def judge(answer: str) -> Verdict:
        started = time.perf_counter()
        found = final_integer(answer)
        why = "passed" if found == gold else "gives no integer" if found is None else f"gives {found}"
        return Verdict(found == gold, why, time.perf_counter() - started)

    return judge
