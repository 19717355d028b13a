"""LiveCodeBench: problems of programming contests by date, with public and private tests (arXiv:2403.07974)."""

from __future__ import annotations

import base64
import binascii
import datetime
import io
import json
import pickle
import zlib
from collections.abc import Callable
from typing import Any, Never

from ...errors import UsageError
from ...files import StrPath
from ...sandbox import require_containment
from ...tasks.verifiers import Verdict, code
from .data import Row, read_rows, unique
from .program import definitions
from .suite import Form, Suite, Task

_MAX_TOKENS = 16384
_MOST = 1 << 28  # bytes of the tests of one problem, unpacked
_STREAMS = "Write a Python program that reads standard input and prints the answer to standard output."
_METHOD = "Complete this Python code:\n```python\n{}\n```"
_BLOCK = "Give the whole program in one block of Python code."
_STARS = ("typing", "collections", "itertools", "functools", "heapq", "bisect", "math")
# What a solution may use without an import, as on the sites of the contests.
_PRELUDE = "".join(f"from {module} import *\n" for module in _STARS)
_PRELUDE += "import sys, math, heapq, bisect, itertools, functools, collections, string, re\n"


def livecodebench(path: StrPath, start: str | None = None, end: str | None = None) -> Suite:
    """Return the suite of a file in the format of code_generation_lite.

    start, end  the first and the last date of a contest, as 2024-10-01; None: no limit

    Raises UsageError for a date, SuiteError for a bad file, and for one without a problem between the dates.
    """
    first, last = _date(start, "from"), _date(end, "to")
    rows, digest = read_rows(path, "problems")
    tasks = []
    for name, row in unique(rows, lambda row: row.text("question_id"), "question_id").items():
        if (first or datetime.date.min) <= _held(row) <= (last or datetime.date.max):
            tasks.append(Task(name, _prompt(row), judge_tests(row), row.text("difficulty", "")))
    if not tasks:
        raise UsageError(path, "from" if start else "to", f"no problem lies between {start or '-'} and {end or '-'}")
    facts = {"data": digest, "from": start, "to": end}
    return Suite("livecodebench", tasks, Form(), _MAX_TOKENS, facts)


def _date(text: str | None, option: str) -> datetime.date | None:
    try:
        return None if text is None else datetime.date.fromisoformat(text)
    except ValueError:
        raise UsageError(None, option, f"must be a date such as 2024-10-01, got {text!r:.40}") from None


def _held(row: Row) -> datetime.date:
    try:
        return datetime.datetime.fromisoformat(row.text("contest_date")).date()
    except ValueError:
        raise row.wrong("contest_date", "must be a date such as 2024-10-01T00:00:00") from None


def _prompt(row: Row) -> str:
    """Return the question, and what to write. The words are ours: published figures come from others."""
    starter = row.text("starter_code", "")
    how = _METHOD.format(starter) if starter.strip() else _STREAMS
    return f"{row.text('question_content')}\n\n{how}\n{_BLOCK}"


class _TextOnly(pickle.Unpickler):
    """Reads a pickle of plain values: it can name no function."""

    def find_class(self, module: str, name: str) -> Never:
        raise pickle.UnpicklingError(f"names {module}.{name}")


def read_tests(row: Row, name: str) -> list[dict[str, Any]]:
    """Return the tests in a field: JSON, or its pickle, packed with zlib and written in base64. Raises SuiteError."""
    text = row.text(name, "[]")
    try:
        if not text.lstrip().startswith("["):
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(base64.b64decode(text, validate=True), _MOST)
            if unpacker.unconsumed_tail or not unpacker.eof:
                raise row.wrong(name, "is cut off, or unpacks to more than is allowed")
            text = _TextOnly(io.BytesIO(data)).load()
        tests = json.loads(text)
    except (binascii.Error, zlib.error, ValueError, TypeError, RecursionError) as problem:
        raise row.wrong(name, f"cannot be read ({problem!s:.80})") from None
    except Exception as problem:  # a broken pickle can raise anything
        raise row.wrong(name, f"cannot be read ({type(problem).__name__})") from None
    if not isinstance(tests, list):
        raise row.wrong(name, "must hold a list of tests")
    for test in tests:
        texts = isinstance(test, dict) and all(isinstance(test.get(key), str) for key in ("input", "output"))
        if not texts or test.get("testtype") not in ("stdin", "functional"):
            raise row.wrong(name, "must hold tests with input, output, and the testtype stdin or functional")
    return tests


def judge_tests(row: Row) -> Callable[[str], Verdict]:
    """Return the judge of one problem: all public and private tests must pass."""
    require_containment()
    tests = read_tests(row, "public_test_cases") + read_tests(row, "private_test_cases")
    if not tests:
        raise row.wrong("public_test_cases", "there are no tests")
    if len({test["testtype"] for test in tests}) > 1:
        raise row.wrong("public_test_cases", "mixes tests of stdin and of functions")
    if tests[0]["testtype"] == "stdin":
        cases = [(test["input"], test["output"]) for test in tests]
        return lambda answer: code.verify_streams(_PRELUDE + code.extract_code(answer), cases)
    return _judge_function(row, tests)


def _judge_function(row: Row, tests: list[dict[str, Any]]) -> Callable[[str], Verdict]:
    """Return the judge of a problem whose answer is a method of a class Solution."""
    try:
        name = json.loads(row.text("metadata"))["func_name"]
        cases = [
            ([json.loads(line) for line in test["input"].split("\n") if line.strip()], json.loads(test["output"]))
            for test in tests
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise row.wrong("metadata", f"does not name the function, or a test is no JSON ({problem!s:.80})") from None
    if not isinstance(name, str) or not name.isidentifier():
        raise row.wrong("metadata", "names no function")
    checks = "".join(f"    assert _same(candidate(*{given!r}), {wanted!r})\n" for given, wanted in cases)
    tests_ = f"{_SAME}\n\ndef check(candidate):\n{checks}"
    call = f"\n\ndef _solve(*given):\n    return Solution().{name}(*given)\n"

    def judge(answer: str) -> Verdict:
        program = definitions(code.extract_code(answer))
        return code.verify_function(f"{_PRELUDE}{program}{call}", "_solve", tests_)

    return judge


# Tuples count as the lists that JSON has.
_SAME = """
def _same(found, wanted):
    if isinstance(wanted, list):
        return isinstance(found, (list, tuple)) and len(found) == len(wanted) and all(map(_same, found, wanted))
    return found == wanted
"""
