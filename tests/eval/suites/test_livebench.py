"""LiveBench's tasks: each rule with answers that its definition decides."""

import json

import pytest

from qwq_ref.errors import SuiteError
from qwq_ref.eval.suites import open_suite

QUESTION = {"question_id": "a1", "category": "reasoning", "task": "spatial", "turns": ["?"], "ground_truth": "4"}
PLOT = "He wakes. He eats breakfast. He leaves the house. He returns"
# Task, reference -> [(answer, score)].
CASES = {
    ("math_comp", "C"): [("so CCCCC", 1), ("\\boxed{C}", 1), ("<solution>C</solution>", 1), ("C", 0), ("DDDDD", 0)],
    ("math_comp", "073"): [("The answer is 073", 1), ("073 " + "x" * 60, 0), ("73", 0)],
    ("olympiad", "2,3,1,4"): [
        ("Answer: 2,3,1,4", 1),
        ("Answer: 1\nAnswer: 2, 3, 4, 1", 0.5),
        ("\\boxed{2,3,1,4}", 1),
        ("thoughts\n2,3,1,4", 1),
        ("none", 0),
    ],
    ("zebra_puzzle", "green,2,rock-climbing"): [
        ("<solution>green, 2, rock climbing</solution>", 1),
        ("<solution>green, two, swimming</solution>", 1 / 3),
        ("so\ngreen, position 2, rock-climbing", 1),
        ("green", 0),
    ],
    ("zebra_puzzle", "cat"): [("it is ***Cat***", 1), ("***dog***", 0)],
    ("web_of_lies_v2", "yes, no, yes"): [
        ("**yes, no, yes**", 1),
        ("**Yes**, then **no** and **yes**", 1),
        ("<solution>yes, no, yes</solution>", 1),
        ("first no, no, no, and at last: yes, no, yes", 1),
        ("**yes, no, no**", 0),
        ("yes", 0),
    ],
    ("spatial", "4"): [("**4**", 1), ("**four**", 1), ("**4** and **a** **b** **c**", 0), ("4", 0)],
    ("spatial", "triangle"): [("**equilateral triangle**", 1), ("**circle square and a triangle**", 0)],
    ("typos", "We fix the text. It is good."): [("Sure:\nWe fix the text. It is good.", 1), ("We fix teh text.", 0)],
    ("connections", "a,b,c,d,e,f,g,h"): [
        ("<solution>d,c,b,a,h,g,f,e</solution>", 1),
        ("**a, b, c, d, e, f, g, x**", 0.5),
        ("a,b,c,d", 0),
    ],
    ("plot_unscrambling", PLOT): [
        (f"<PLOT_SUMMARY>{PLOT}", 1),
        ("He eats breakfast. He wakes. He leaves the house. He returns", 0.5),
    ],
    ("cta", "Birth Date"): [("birth date", 1), ("\\boxed{\\text{Birth-Date}}", 1), ("the birth date", 0)],
    ("AMPS_Hard", "7"): [("\\boxed{7}", 1), ("\\boxed{8}", 0)],
}


def suite_of(tmp_path, **changes):
    path = tmp_path / "question.jsonl"
    path.write_text(json.dumps(QUESTION | changes))
    return open_suite("livebench", str(path))


@pytest.mark.parametrize(("task", "gold"), CASES, ids=lambda part: part[:20])
def test_a_task(tmp_path, task, gold):
    judge = suite_of(tmp_path, task=task, ground_truth=gold).tasks[0].judge
    for answer, score in [*CASES[task, gold], ("", 0)]:
        verdict = judge(answer)
        assert verdict.correct == (score == 1), answer
        if hasattr(verdict, "parts"):
            assert verdict.parts["score"] == (pytest.approx(score), 1), answer


def test_instructions_give_half_a_point_for_their_share(tmp_path):
    changes = {
        **{"category": "instruction_following", "task": "paraphrase", "ground_truth": ""},
        "instruction_id_list": ["punctuation:no_comma", "startend:quotation"],
        "kwargs": [{}, {}],
    }
    judge = suite_of(tmp_path, **changes).tasks[0].judge
    assert judge('"so"').parts == {"score": (1, 1)}
    assert judge("so").parts == {"score": (0.25, 1)}
    assert judge("so, no").parts == {"score": (0, 1)}


def test_programs_run_in_the_sandbox(tmp_path):
    tests = json.dumps([{"input": "3\n", "output": "6\n", "testtype": "stdin"}])
    changes = {"category": "coding", "task": "LCB_generation", "public_test_cases": tests, "private_test_cases": "[]"}
    judge = suite_of(tmp_path, **changes).tasks[0].judge
    assert judge("```python\nprint(2 * int(input()))\n```").correct
    assert not judge("```python\nprint(7)\n```").correct


def test_categories_are_groups(tmp_path):
    assert [task.group for task in suite_of(tmp_path).tasks] == ["reasoning"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"task": "theory_of_mind"}, "line 1, task: has no exact scorer here; there are AMPS_Hard, "),
        ({"turns": ["a", "b"]}, "line 1, turns: must hold one text"),
        ({"turns": "a"}, "line 1, turns: must be a list of 1 or more texts"),
        ({"ground_truth": ""}, "line 1, ground_truth: must be a text"),
        ({"category": 3}, "line 1, category: must be a text, got 3"),
    ],
)
def test_broken_questions(tmp_path, changes, problem):
    with pytest.raises(SuiteError) as caught:
        suite_of(tmp_path, **changes)
    assert problem in str(caught.value)
