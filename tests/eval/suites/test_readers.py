"""Files of problems, made here in the published formats: what is asked, what is correct, and what is refused."""

import base64
import gzip
import json
import pickle
import zlib
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref.errors import FileError, QwqError, SuiteError, UsageError
from qwq_ref.eval.suites import NAMES, open_suite
from qwq_ref.eval.suites.aime import final_integer
from qwq_ref.eval.suites.gsm8k import last_number
from qwq_ref.eval.suites.jsonl import judge_choice
from qwq_ref.eval.suites.program import definitions

HUMANEVAL = {
    "task_id": "Toy/0",
    "prompt": 'import math\n\n\ndef half(x):\n    return x / 2\n\n\ndef area(r):\n    """The area of a circle."""\n',
    "entry_point": "area",
    "test": "def check(candidate):\n    assert abs(candidate(2) - 4 * math.pi) < 1e-9\n    assert area(1) < half(9)\n",
}
STREAMS = {
    "question_id": "1873_A",
    "question_content": "Print the sum of two numbers.",
    "contest_date": "2024-10-05T00:00:00",
    "difficulty": "easy",
    "starter_code": "",
    "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]),
    "metadata": "{}",
}
PRIVATE = [{"input": "20 22", "output": "42", "testtype": "stdin"}]
METHOD = STREAMS | {
    "question_id": "2777",
    "starter_code": "class Solution:\n    def pairs(self, xs: List[int], k: int) -> List[List[int]]:\n        ",
    "public_test_cases": json.dumps([{"input": "[3, 4]\n2", "output": "[[3, 2], [4, 2]]", "testtype": "functional"}]),
    "metadata": json.dumps({"func_name": "pairs"}),
}


def packed(value):
    """Private tests, as published."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(value)))).decode()


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def fenced(code):
    return f"Here it is:\n```python\n{code}\n```\nIt is fast."


def judged(suite, answer, task=0):
    return suite.tasks[task].judge(answer)


# --- HumanEval --------------------------------------------------------------------------------------------------------


def test_humaneval_asks_in_four_forms(tmp_path):
    path = tmp_path / "toy.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(HUMANEVAL).encode()))
    suite = open_suite("humaneval", str(path))
    assert suite.form.begun.endswith("passes corresponding tests:\n```python\n")
    assert suite.tasks[0].prompt.endswith(f"block:\n```\n{HUMANEVAL['prompt'].strip()}\n```\n")
    assert "\n```\n" in suite.form.stop
    qwen = open_suite("humaneval", str(path), form="qwen")
    assert qwen.form.system.startswith("You are an intelligent programming assistant")
    assert qwen.tasks[0].prompt.startswith("Can you complete the following Python function?\n```python\nimport math")
    raw = open_suite("humaneval", str(path), form="raw")
    assert (raw.form.raw, raw.tasks[0].prompt) == (True, HUMANEVAL["prompt"])
    assert not open_suite("humaneval", str(path), form="chat").form.begun
    with pytest.raises(UsageError, match=r"form: must be one of .* got evalplu \(did you mean evalplus\?\)"):
        open_suite("humaneval", str(path), form="evalplu")


BODY = "def area(r):\n    return math.pi * r ** 2"


@pytest.mark.parametrize(
    ("answer", "correct"),
    [
        (fenced(f"import math\n{BODY}"), True),
        (fenced(BODY), True),  # the imports and helpers of the problem are given
        (f"```python\n{BODY}", True),  # a stop string cut the fence
        (fenced(f"{BODY}\n\nassert area(1) == 3\nprint(area(2))"), True),  # a wrong example of the model
        (f"```python\n{BODY}\n\nprint(area(", True),  # cut off by a limit, behind the function
        (fenced("def area(r):\n    return 3 * r ** 2"), False),
        (fenced("def surface(r):\n    return math.pi * r ** 2"), False),
        ("I do not know.", False),
        ("", False),
    ],
)
def test_humaneval_judges(tmp_path, answer, correct):
    verdict = judged(open_suite("humaneval", write(tmp_path / "toy.jsonl", HUMANEVAL)), answer)
    assert verdict.correct is correct, verdict
    assert "\n" not in verdict.why


def test_humaneval_goes_on_with_the_prompt(tmp_path):
    suite = open_suite("humaneval", write(tmp_path / "toy.jsonl", HUMANEVAL), form="raw")
    assert judged(suite, "    return math.pi * r ** 2").correct
    assert not judged(suite, "    return r").correct


def test_humaneval_has_its_own_problems():
    suite = open_suite("humaneval")
    assert len(suite.tasks) == 164
    assert suite.tasks[53].id == "HumanEval/53"
    verdict = judged(suite, "```python\ndef add(x, y):\n    return x + y\n", 53)
    assert verdict.correct, verdict


def test_definitions_leave_examples_out():
    program = "import os\n\nX = 3\n\n@cache\ndef f():\n    return X\n\nprint(f())\nassert f() == 4\n"
    assert definitions(program) == "import os\n\nX = 3\n\n@cache\ndef f():\n    return X"
    assert definitions("def f():\n    return 1\n\nf(") == "def f():\n    return 1"
    assert definitions("no program (") == "no program ("
    assert definitions("") == ""
    assert definitions("print(1)") == "print(1)"


@given(st.text(st.sampled_from("def f():\n return 1x='\"([#\\@\x00"), max_size=60))
def test_definitions_take_any_text(text):
    assert isinstance(definitions(text), str)


# --- GSM8K ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so $1,234.50 in all.", "1234.50"),
        ("#### 42", "42"),
        ("It is \\boxed{18} dollars, not 20.", "18"),
        ("\\boxed{3} and then \\boxed{-7\\%}", "-7"),
        ("5 + 6 = 11", "11"),
        ("the answer is 20.", "20"),
        ("half: .5", ".5"),
        ("none at all", None),
        ("\\boxed{}", None),
        ("9" * 61, None),
    ],
)
def test_the_last_number(text, number):
    assert last_number(text) == (None if number is None else Decimal(number))


def test_gsm8k(tmp_path):
    rows = [
        {"question": "Two plus two?", "answer": "It is 2+2=<<2+2=4>>4.\n#### 4"},
        {"question": "How much?", "answer": "#### 1,250"},
    ]
    suite = open_suite("gsm8k", write(tmp_path / "test.jsonl", *rows))
    assert suite.tasks[0].prompt.startswith("Two plus two?\nPlease reason step by step")
    assert [task.id for task in suite.tasks] == ["gsm8k/1", "gsm8k/2"]
    right, wrong = judged(suite, "2 + 2 = 4, so \\boxed{4}"), judged(suite, "It is 5.")
    assert (right.correct, right.parts, wrong.correct) == (True, {"exact": (1, 1)}, False)
    assert judged(suite, "\\boxed{1250.00}", 1).correct
    assert not judged(suite, "", 1).correct


@pytest.mark.shared
def test_all_of_gsm8k_can_be_read(shared_data):
    suite = open_suite("gsm8k", str(shared_data / "gsm8k/test.jsonl"))
    assert len(suite.tasks) == 1319
    assert suite.tasks[0].prompt.startswith("Janet’s ducks lay 16 eggs per day.")
    assert judged(suite, "#### 18").correct


# --- AIME -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so \\boxed{073}", 73),
        ("\\boxed{0}", 0),
        ("\\boxed{999}", 999),
        ("\\boxed{1000}", None),
        ("\\boxed{12.5}", None),
        ("\\boxed{x}", None),
        ("\\boxed{ 204 } and no 7", 204),
        ("\\boxed{\\text{33}}", 33),
        ("The answer is 116.", 116),
        ("It is -5", -5),
        ("pi is 3.14", None),
        ("", None),
    ],
)
def test_the_final_integer(text, number):
    assert final_integer(text) == number


@pytest.mark.parametrize(
    "row",
    [
        {"id": 60, "problem": "Every morning ...", "answer": "204", "year": "2024"},
        {"ID": "2024-I-1", "Problem": "Every morning ...", "Answer": 204},
        {"problem_idx": 1, "problem": "Every morning ...", "answer": 204},
        {"question": "Every morning ...", "answer": " 204 "},
    ],
)
def test_aime_in_the_spellings_of_its_files(tmp_path, row):
    suite = open_suite("aime", write(tmp_path / "aime.jsonl", row))
    assert suite.tasks[0].prompt.startswith("Every morning ...\nPlease reason")
    assert judged(suite, "\\boxed{204}").correct
    assert judged(suite, "\\boxed{205}").why == "gives 205"


# --- LiveCodeBench ----------------------------------------------------------------------------------------------------

SUM = "a, b = map(int, input().split())\nprint(a + b)"


@pytest.mark.parametrize("private", [packed(PRIVATE), json.dumps(PRIVATE)])
def test_livecodebench_runs_public_and_private_tests(tmp_path, private):
    path = write(tmp_path / "lcb.jsonl", STREAMS | {"private_test_cases": private})
    suite = open_suite("livecodebench", path)
    assert "standard input" in suite.tasks[0].prompt
    assert judged(suite, fenced(SUM)).correct
    assert judged(suite, fenced("print(3)")).why.startswith("case 2 of 2: wrong answer")
    assert suite.tasks[0].group == "easy"


def test_livecodebench_calls_methods(tmp_path):
    suite = open_suite("livecodebench", write(tmp_path / "lcb.jsonl", METHOD))
    assert "class Solution" in suite.tasks[0].prompt
    solution = "class Solution:\n    def pairs(self, xs: List[int], k: int):\n        return [{} for x in xs]"
    assert judged(suite, fenced(solution.format("[x, k]"))).correct
    assert judged(suite, fenced(solution.format("(x, k)"))).correct  # JSON has no tuples
    assert not judged(suite, fenced(solution.format("[k, x]"))).correct
    assert not judged(suite, fenced("def pairs(xs, k): return [[x, k] for x in xs]")).correct


def test_livecodebench_has_a_window_of_dates(tmp_path):
    rows = [STREAMS | {"question_id": f"q{m}", "contest_date": f"2024-{m:02}-01T00:00:00"} for m in range(1, 10)]
    path = write(tmp_path / "lcb.jsonl", *rows)
    suite = open_suite("livecodebench", path, start="2024-03-01", end="2024-05-01")
    assert [task.id for task in suite.tasks] == ["q3", "q4", "q5"]
    assert (suite.facts["from"], suite.facts["to"]) == ("2024-03-01", "2024-05-01")
    assert len(open_suite("livecodebench", path, end="2024-05-31").tasks) == 5
    with pytest.raises(UsageError, match="no problem lies between 2025-01-01 and -"):
        open_suite("livecodebench", path, start="2025-01-01")
    with pytest.raises(UsageError, match=r"^from: must be a date such as 2024-10-01, got 'May'"):
        open_suite("livecodebench", path, start="May")


class Calls:
    def __reduce__(self):
        return print, ("called",)


def test_a_pickle_that_calls_is_refused(tmp_path, capsys):
    hostile = base64.b64encode(zlib.compress(pickle.dumps(Calls()))).decode()
    with pytest.raises(SuiteError, match="line 1, private_test_cases: cannot be read"):
        open_suite("livecodebench", write(tmp_path / "lcb.jsonl", STREAMS | {"private_test_cases": hostile}))
    assert capsys.readouterr().out == ""


# --- A file of one's own ----------------------------------------------------------------------------------------------

OWN = [
    {"prompt": "2 + 2?", "answer": 4, "group": "sums", "id": "first"},
    {"prompt": "Write double(x).", "entry_point": "double", "tests": "def check(f):\n    assert f(3) == 6"},
    {"prompt": "Add.", "cases": [["1 2", "3"], ["5 5", "10"]]},
    {"prompt": "Which is a fruit?", "choices": ["stone", "apple", "cloud"], "answer": "B"},
]


def test_a_file_of_ones_own(tmp_path):
    suite = open_suite(write(tmp_path / "mine.jsonl", *OWN))
    assert suite.name == "mine"
    assert [(task.id, task.group) for task in suite.tasks] == [("first", "sums"), ("2", ""), ("3", ""), ("4", "")]
    assert "A. stone\nB. apple\nC. cloud\n" in suite.tasks[3].prompt
    right = ["\\boxed{4}", fenced("def double(x):\n    return 2 * x"), fenced(SUM), "\\boxed{B}"]
    wrong = ["\\boxed{5}", fenced("def double(x):\n    return x"), fenced("print(3)"), "\\boxed{C}"]
    assert [judged(suite, answer, i).correct for i, answer in enumerate(right)] == [True] * 4
    assert [judged(suite, answer, i).correct for i, answer in enumerate(wrong)] == [False] * 4


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("\\boxed{B}", "B"),
        ("\\boxed{(b)}", "B"),
        ("\\boxed{\\text{B}}", "B"),
        ("B", "B"),
        ("**B.**", "B"),
        ("The answer is B, since A is no fruit.", "B"),
        ("Answer: (C)\nNo, answer: B", "B"),
        ("A bee is an animal", None),
        ("\\boxed{AB}", None),
        ("", None),
    ],
)
def test_choices(answer, found):
    assert judge_choice(answer, "B", "ABC").correct is (found == "B")


# --- What is refused --------------------------------------------------------------------------------------------------

REFUSED = [
    ("humaneval", HUMANEVAL | {"entry_point": "no"}, "line 1, entry_point: is not defined in the prompt, got 'no'"),
    ("humaneval", HUMANEVAL | {"test": None}, "line 1, test: must be a text, got None"),
    ("gsm8k", {"question": "?", "answer": "4"}, "line 1, answer: must end with #### and a number, got '4'"),
    ("gsm8k", {"question": "?", "answer": "#### four"}, "line 1, answer: must end with"),
    ("gsm8k", {"question": "\ud800", "answer": "#### 4"}, "line 1, question: holds half a character"),
    ("gsm8k", {"answer": "#### 4"}, "line 1, question: must be a text"),
    ("aime", {"problem": "?", "answer": 1000}, "line 1, answer: must be an integer from 0 to 999, got 1000"),
    ("aime", {"problem": "?", "answer": True}, "line 1, answer: must be an integer from 0 to 999, got True"),
    ("aime", {"problem": "?"}, "line 1, answer: must be an integer from 0 to 999"),
    ("livecodebench", STREAMS | {"contest_date": "soon"}, "line 1, contest_date: must be a date such as"),
    ("livecodebench", STREAMS | {"public_test_cases": "[]"}, "line 1, public_test_cases: there are no tests"),
    ("livecodebench", STREAMS | {"public_test_cases": "[3]"}, "line 1, public_test_cases: must hold tests with"),
    ("livecodebench", STREAMS | {"private_test_cases": "!"}, "line 1, private_test_cases: cannot be read"),
    ("livecodebench", METHOD | {"metadata": "{}"}, "line 1, metadata: does not name the function"),
    ("livecodebench", METHOD | {"metadata": '{"func_name": "a b"}'}, "line 1, metadata: names no function"),
    ("mine.jsonl", {"prompt": "?"}, "line 1, answer: needs one of: answer, tests, cases, choices with answer"),
    ("mine.jsonl", {"prompt": "?", "answer": 3, "cases": []}, "line 1, answer: needs one of"),
    ("mine.jsonl", {"prompt": "?", "cases": [["1"]]}, "line 1, cases: must be a list of pairs of texts"),
    (
        "mine.jsonl",
        {"prompt": "?", "choices": ["x", "y"], "answer": "C"},
        "line 1, answer: must be a letter from A to B",
    ),
    ("mine.jsonl", {"prompt": "?", "choices": ["x"], "answer": "A"}, "line 1, choices: must be a list of 2 or more"),
    ("mine.jsonl", {"prompt": "?", "answer": [1]}, "line 1, answer: must be a text or a number"),
    ("mine.jsonl", {"prompt": "?", "tests": "x", "entry_point": "a b"}, "line 1, entry_point: must be the name of"),
]


@pytest.mark.parametrize(("name", "row", "problem"), REFUSED, ids=[problem for *_, problem in REFUSED])
def test_a_broken_field_is_named(tmp_path, name, row, problem):
    path = write(tmp_path / "mine.jsonl", row)
    with pytest.raises(SuiteError) as caught:
        open_suite(path) if name == "mine.jsonl" else open_suite(name, path)
    assert str(caught.value).startswith(f"{path}: {problem}")
    assert "\n" not in str(caught.value)


FILES = [
    (b"", "holds no problems"),
    (b"\n \n", "holds no problems"),
    (b'{"prompt": "?", "answer": 1}\n{"prompt"', "line 2: is not JSON"),
    (b"[1]\n", "line 1: must hold a JSON object, not a list"),
    (b'{"prompt": "?", "prompt": 1}\n', "line 1, prompt: appears twice"),
    (b'{"prompt": "\xff"}', "line 1: is not UTF-8"),
    (b'{"id": "a", "prompt": "?", "answer": 1}\n' * 2, "line 2, id: is that of line 1, too, got 'a'"),
    (gzip.compress(b'{"prompt": "?"}')[:-9], "is cut off: it is not all of a file of gzip"),
    (b"\x1f\x8b rubbish", "is not gzip"),
]


@pytest.mark.parametrize(("data", "problem"), FILES, ids=[problem for _, problem in FILES])
def test_a_broken_file_is_named(tmp_path, data, problem):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(data)
    with pytest.raises(SuiteError) as caught:
        open_suite(str(path))
    assert str(caught.value).startswith(f"{path}: {problem}")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileError, match=r"gone\.jsonl: is not there: it should hold problems"):
        open_suite(str(tmp_path / "gone.jsonl"))
    with pytest.raises(QwqError, match=r"is a folder|is not a regular file|directory"):
        open_suite("gsm8k", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("humanevil", {}, "suite: there is no 'humanevil' (did you mean humaneval?); there are humaneval, gsm8k, "),
        ("gsm8k", {}, "data: is missing: name the file with the problems of gsm8k"),
        ("gsm8k", {"data": "x", "form": "raw"}, "form: has no effect on the suite gsm8k"),
        ("aime", {"data": "x", "start": "2024-01-01"}, "start: has no effect on the suite aime"),
        ("mine.jsonl", {"data": "x"}, "data: does not go together with a file as the suite"),
    ],
)
def test_options_that_do_not_fit(name, options, problem):
    with pytest.raises(UsageError) as caught:
        open_suite(name, **options)
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_any_bytes_give_a_suite_or_an_error_of_one_line(name, data, tmp_path_factory):
    whole = json.dumps(HUMANEVAL | STREAMS | {"question": "?", "answer": "#### 4", "problem": "?", "turns": ["?"]})
    cut, put = data.draw(st.integers(0, len(whole))), data.draw(st.binary(max_size=6))
    path = tmp_path_factory.getbasetemp() / f"any-{name}"
    path.write_bytes(whole[:cut].encode() + put + whole[data.draw(st.integers(cut, len(whole))) :].encode())
    problem = None
    try:
        assert open_suite(name, **{"lean" if name == "generated" else "data": str(path)}).tasks
    except QwqError as caught:
        problem = str(caught)
    assert problem is None or (problem.startswith(str(path)) and "\n" not in problem)
