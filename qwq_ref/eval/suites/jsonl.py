"""Problems in a file of one's own: a prompt on each line, and what decides its answer. See docs/eval.md.

| field | meaning |
|---|---|
| `prompt` | the user's message |
| `answer` | a text or a number: `mathematics` compares it with the answer |
| `tests`, `entry_point` | a program that defines `check(candidate)`, and the name of the function to write |
| `cases` | pairs of a standard input and the output for it |
| `choices`, `answer` | texts of the choices, and the letter of the correct one, from A on |
| `id`, `group` | optional: a name, and a category with a score of its own |
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ...files import StrPath
from ...sandbox import require_containment
from ...tasks.verifiers import Verdict, code, mathematics
from .data import Row, read_rows, unique
from .program import definitions
from .suite import Form, Suite, Task

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ASKS = "Answer with the letter of the correct choice, within \\boxed{}."
_NAMED = re.compile(r"(?i:answer|choice)(?i: is)?\W*([A-Z])\b(?!')")  # answer is (C), answer: C
_ALONE = re.compile(r"\A\W*([A-Za-z])\W*\Z")
_KINDS = ("tests", "cases", "choices", "answer")


def jsonl(path: StrPath) -> Suite:
    """Return the suite of a file. Raises SuiteError."""
    rows, digest = read_rows(path, "problems")
    tasks = []
    for name, row in unique(rows, lambda row: row.text("id", str(row.line)), "id").items():
        prompt, judge = _read(row)
        tasks.append(Task(name, prompt, judge, row.text("group", "")))
    return Suite(Path(path).stem, tasks, Form(), facts={"data": digest})


def _read(row: Row) -> tuple[str, Callable[[str], Verdict]]:
    """Return the prompt and the judge of a line."""
    kinds = [kind for kind in _KINDS if kind in row.values]
    prompt = row.text("prompt")
    if "tests" in kinds or "cases" in kinds:
        require_containment()
    match kinds:
        case ["tests"]:
            return prompt, _tests(row)
        case ["cases"]:
            return prompt, _cases(row)
        case ["choices", "answer"]:
            return _choices(row, prompt)
        case ["answer"]:
            gold = row.values["answer"]
            if type(gold) is bool or not isinstance(gold, str | int | float) or not str(gold).strip():
                raise row.wrong("answer", "must be a text or a number")
            mathematics.require_math_verify()
            return prompt, lambda answer: mathematics.verify(str(gold), answer)
    raise row.wrong("answer" if not kinds else kinds[-1], "needs one of: answer, tests, cases, choices with answer")


def _tests(row: Row) -> Callable[[str], Verdict]:
    name, tests = row.text("entry_point"), row.text("tests")
    if not name.isidentifier():
        raise row.wrong("entry_point", "must be the name of a function")
    return lambda answer: code.verify_function(definitions(code.extract_code(answer, name)), name, tests)


def _cases(row: Row) -> Callable[[str], Verdict]:
    cases = row.values["cases"]
    pairs = isinstance(cases, list) and all(isinstance(each, list) and len(each) == 2 for each in cases)
    if not pairs or not cases or not all(isinstance(text, str) for each in cases for text in each):
        raise row.wrong("cases", "must be a list of pairs of texts: a standard input, and the output for it")
    streams = [(given, wanted) for given, wanted in cases]
    return lambda answer: code.verify_streams(code.extract_code(answer), streams)


def _choices(row: Row, prompt: str) -> tuple[str, Callable[[str], Verdict]]:
    choices, gold = row.texts("choices", 2), row.text("answer").strip().upper()
    letters = _LETTERS[: len(choices)]
    if len(choices) > len(_LETTERS) or len(gold) != 1 or gold not in letters:
        raise row.wrong("answer", f"must be a letter from A to {letters[-1]}")
    return ask_choice(prompt, choices), lambda answer: judge_choice(answer, gold, letters)


def ask_choice(prompt: str, choices: Sequence[str]) -> str:
    """Return a prompt with its choices, each behind its letter from A on."""
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=False))
    return f"{prompt}\n{listed}\n{_ASKS}"


def judge_choice(answer: str, gold: str, letters: str) -> Verdict:
    r"""Return whether an answer chooses a letter: in its last \boxed{...}, else as its last letter on its own."""
    started = time.perf_counter()
    _, box, behind = answer.rpartition("\\boxed{")
    if box:
        inside = re.sub(r"\\text(?:bf)?\{|[{}().\s]", "", behind.partition("}")[0] or "")
        found = inside.upper() if len(inside) == 1 else ""
    else:
        named = _NAMED.findall(answer) or _ALONE.findall(answer)
        found = named[-1].upper() if named else ""
    why = "passed" if found == gold else f"chooses {found}" if found and found in letters else "chooses no letter"
    return Verdict(found == gold, why, time.perf_counter() - started)
