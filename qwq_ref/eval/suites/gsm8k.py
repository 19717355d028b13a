r"""GSM8K: word problems of school mathematics, whose answer is one number (Cobbe et al. 2021, arXiv:2110.14168)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from decimal import Decimal

from ...files import StrPath
from ...tasks.verifiers import Verdict, mathematics
from .data import Row, read_rows
from .suite import Form, Scored, Suite, Task

_MESSAGE = "{}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
_MARK = "####"  # stands before the number of a worked answer
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
_MAX_TOKENS = 1024
_DIGITS = 60  # more than any number that is meant


def gsm8k(path: StrPath) -> Suite:
    """Return the suite of a file with `question` and `answer` on each line. Raises SuiteError."""
    mathematics.require_math_verify()
    rows, digest = read_rows(path, "problems")
    tasks = [Task(f"gsm8k/{row.line}", _MESSAGE.format(row.text("question")), _judge(_gold(row))) for row in rows]
    return Suite("gsm8k", tasks, Form(), _MAX_TOKENS, {"data": digest})


def _gold(row: Row) -> Decimal:
    _, mark, number = row.text("answer").rpartition(_MARK)
    found = _NUMBER.fullmatch(number.strip())
    if not mark or found is None:
        raise row.wrong("answer", f"must end with {_MARK} and a number")
    return _value(found[0])


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", ""))


def last_number(text: str) -> Decimal | None:
    r"""Return the last number of a text; if it has a \boxed{...} or a ####, the last number behind the last of them."""
    for mark in ("\\boxed{", _MARK):
        _, found, behind = text.rpartition(mark)
        if found:
            text = behind.partition("}")[0] if mark == "\\boxed{" else behind.partition("\n")[0]
            break
    numbers = _NUMBER.findall(text)
    return _value(numbers[-1]) if numbers and len(numbers[-1]) <= _DIGITS else None


def _judge(gold: Decimal) -> Callable[[str], Verdict]:
    """Return the judge of one problem: the last number equals the answer, or `mathematics` finds the answer equal."""

    def judge(answer: str) -> Verdict:
        started = time.perf_counter()
        exact = last_number(answer) == gold
        verdict = (
            Verdict(True, "passed", time.perf_counter() - started) if exact else mathematics.verify(f"{gold:f}", answer)
        )
        return Scored(verdict.correct, verdict.why, verdict.seconds, {"exact": (int(exact), 1)})

    return judge
