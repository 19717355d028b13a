"""LiveBench's JSONL: questions of several categories, each task with the rule by which it is scored (arXiv:2406.19314).

The rules follow the published scorers where these are exact. Some give a share of a point: it is the part "score", and
an answer is correct at a full point. A task whose published scorer is none of these is refused by its name.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from ...files import StrPath
from ...tasks.verifiers import Verdict, mathematics
from .data import Row, read_rows, unique
from .ifeval import judge_instructions
from .ifeval.instructions import checks_of
from .livecodebench import judge_tests
from .suite import Form, Scored, Suite, Task

_MAX_TOKENS = 8192
_NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_SHAPES = ("tetrahedra", "tetrahedron", "triangle", "square")
_TRUTHS = ("yes", "no", "unknown")

Rule = Callable[[str, str], float]  # the reference and an answer -> the share of a point


def livebench(path: StrPath) -> Suite:
    """Return the suite of a file of questions: question_id, category, task, turns, ground_truth. Raises SuiteError."""
    rows, digest = read_rows(path, "questions")
    tasks = []
    for name, row in unique(rows, lambda row: row.text("question_id"), "question_id").items():
        turns = row.texts("turns")
        if len(turns) != 1:
            raise row.wrong("turns", "must hold one text: conversations are not asked")
        tasks.append(Task(name, turns[0], _judge(row), row.text("category")))
    return Suite("livebench", tasks, Form(), _MAX_TOKENS, {"data": digest})


def _judge(row: Row) -> Callable[[str], Verdict]:
    if row.text("category") == "instruction_following":
        return _instructions(row)
    task = row.text("task")
    if task == "LCB_generation":
        return judge_tests(row)
    gold = row.text("ground_truth")
    if task == "AMPS_Hard":
        mathematics.require_math_verify()
        return lambda answer: mathematics.verify(gold, answer)
    if task == "math_comp":
        return _scored(_letter if re.fullmatch("[A-E]", gold) else _number, gold)
    if task not in _RULES:
        known = ", ".join(["AMPS_Hard", "LCB_generation", "math_comp", *_RULES])
        raise row.wrong("task", f"has no exact scorer here; there are {known}, and the category instruction_following")
    return _scored(_RULES[task], gold)


def _scored(rule: Rule, gold: str) -> Callable[[str], Scored]:
    def judge(answer: str) -> Scored:
        started = time.perf_counter()
        score = rule(gold, answer)
        why = "passed" if score == 1 else f"scores {score:.2f}"
        return Scored(score == 1, why, time.perf_counter() - started, {"score": (score, 1)})

    return judge


def _instructions(row: Row) -> Callable[[str], Scored]:
    """Half a point for all instructions together, and half for their share, each strict."""
    strict = judge_instructions(checks_of(row))

    def judge(answer: str) -> Scored:
        verdict = strict(answer)
        held, of = verdict.parts["strict instructions"]
        return Scored(verdict.correct, verdict.why, verdict.seconds, {"score": ((verdict.correct + held / of) / 2, 1)})

    return judge


def solution(answer: str) -> str | None:
    r"""Return the text between the last <solution> and </solution>, else in the last \boxed{...}."""
    found = re.findall(r"</?solution>(.*?)</solution>", answer, re.DOTALL)
    if found:
        return str(found[-1]).replace("\n", " ").strip()
    return boxed(answer)


def boxed(answer: str) -> str | None:
    r"""Return the content of the last \boxed{...}, without \text and braces."""
    _, found, behind = answer.replace("\\fbox{", "\\boxed{").rpartition("\\boxed{")
    if not found:
        return None
    depth = 1
    for end, character in enumerate(behind):
        depth += (character == "{") - (character == "}")
        if not depth:
            return re.sub(r"\\text(?:bf)?\{|[{}\\$]", "", behind[:end]).strip()
    return None


def _letter(gold: str, answer: str) -> float:
    """A letter that is repeated, as the prompt asks for, or stands in a box."""
    found = solution(answer)
    repeated = found is not None and bool(found) and set(found.upper()) == {gold}
    return float(gold * 4 in answer or repeated)


def _number(gold: str, answer: str) -> float:
    """Three digits at the end, as the prompt asks for."""
    return float(gold in answer[-50:])


def _edit_distance(a: Sequence[Any], b: Sequence[Any]) -> int:
    row: list[int] = [*range(len(b) + 1)]
    for i, left in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]


def _olympiad(gold: str, answer: str) -> float:
    """The numbers of expressions in order: 1 less the edit distance as a share of the longer list."""
    _, found, behind = answer.lower().rpartition("answer:")
    text = behind.strip().split("\n")[0] if found else boxed(answer) or answer.strip().rpartition("\n")[2]
    given = [int(number) for number in re.findall(r"\d{1,9}", text)]
    wanted = [int(number) for number in re.findall(r"\d{1,9}", gold)]
    return 1 - _edit_distance(given, wanted) / max(len(given), len(wanted), 1)


def _zebra(gold: str, answer: str) -> float:
    """Words between commas: half a point for all of them, and half for their share."""
    wanted = [word.strip().lower().replace("-", " ") for word in gold.split(",")]
    text = solution(answer)
    if text is None:
        bold = re.findall(r"\*\*\*(.*?)\*\*\*", answer)
        last = answer.strip().rpartition("\n")[2]
        text = bold[-1] if bold else last if last.count(",") == len(wanted) - 1 else ""
    given = [word.strip().lower().replace("-", " ").replace("position", "").strip() for word in text.split(",")]
    given = [str(_NUMBERS.index(w)) if w in _NUMBERS and len(wanted) > 1 else w for w in given]
    right = sum(bool(w) and w in g for w, g in zip(wanted, given, strict=False))
    return ((right == len(wanted)) + right / len(wanted)) / 2


def _web_of_lies(gold: str, answer: str) -> float:
    """Three of yes, no and unknown: in a solution, in bold, or the last such list."""
    text = solution(answer)
    if text is None:
        bold = [word for part in re.findall(r"\*\*(.*?)\*\*", answer) for word in re.findall(r"\w+", part.lower())]
        said = [word for word in bold if word in _TRUTHS][-3:]
        if not said:
            one = "(?:yes|no|unknown)"
            said = (re.findall(rf"\b{one}, {one}, {one}\b", answer.lower()) or [""])[-1:]
        text = ", ".join(said)
    return float([*re.findall(r"\w+", text.lower())] == [*re.findall(r"\w+", gold.lower())])


def _spatial(gold: str, answer: str) -> float:
    """One of the last three texts in bold, where a number may be a word."""
    wanted = gold.strip().lower()
    for text in re.findall(r"\*\*([^*]+)\*\*", answer)[-3:]:
        word = text.strip().lower()
        if word == wanted or (word in _NUMBERS and str(_NUMBERS.index(word)) == wanted):
            return 1.0
        # "two tetrahedra" is the answer, and "circle square triangle" is none
        if wanted in _SHAPES and wanted in word and len(word) < 2 * len(wanted) + 5:
            return 1.0
    return 0.0


def _typos(gold: str, answer: str) -> float:
    """The corrected text, anywhere in the answer; line ends do not count."""
    return float(gold in " ".join(filter(None, answer.split("\n"))))


def _connections(gold: str, answer: str) -> float:
    """Groups of four words: the share of the groups that are there."""
    text = solution(answer)
    candidates = [text] if text is not None else re.findall(r"\*\*(.*?)\*\*", answer.replace("\n", ""))
    wanted = _groups(gold)
    return max((sum(group in _groups(one) for group in wanted) / len(wanted) for one in candidates), default=0.0)


def _groups(text: str) -> list[set[str]]:
    words = [word.strip().lower() for word in text.split(",")]
    return [set(words[at : at + 4]) for at in range(0, len(words), 4)]


def _plot(gold: str, answer: str) -> float:
    """Sentences in order: 1 less the edit distance of their order as a share of their number."""
    text = answer.partition("<PLOT_SUMMARY>")[2] or answer
    wanted, given = ([s.strip() for s in each.split(".") if s.strip()] for each in (gold, text[: 1 << 16]))
    order = []
    for sentence in wanted:
        if near := difflib.get_close_matches(sentence, given, n=1, cutoff=0.0):
            order.append(given.index(near[0]))
    return 1 - _edit_distance([*range(len(wanted))], order) / max(len(wanted), 1)


def _cta(gold: str, answer: str) -> float:
    """The name of a column; case and punctuation do not count."""
    return float(re.sub(r"\W", "", gold.lower()) == re.sub(r"\W", "", (boxed(answer) or answer).lower()))


_RULES: dict[str, Rule] = {
    "olympiad": _olympiad,
    "zebra_puzzle": _zebra,
    "web_of_lies_v2": _web_of_lies,
    "web_of_lies_v3": _web_of_lies,
    "spatial": _spatial,
    "typos": _typos,
    "connections": _connections,
    "plot_unscrambling": _plot,
    "cta": _cta,
}
