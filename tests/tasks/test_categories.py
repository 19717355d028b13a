"""Verifiers: answers that are right in another form, answers that are nearly right, and any text."""

import ast
import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref import tasks
from qwq_ref.eval import outputs
from qwq_ref.tasks import author, exercises, programs, verifiers
from qwq_ref.tasks import problems as problems_module
from qwq_ref.tasks.programs import evaluate, run_rpn
from qwq_ref.tasks.verifiers import categories
from tests.support.problems import ALL, numbers, problems, value


def nearly(answer):
    """Wrong answers close to a right one: no digits, one digit off, two swapped, one lost, one more."""
    yield ""
    yield answer[:-1]
    yield answer + "1"
    yield answer + "+0"
    for place, digit in enumerate(answer):
        if digit.isdecimal():
            yield answer[:place] + str((int(digit) + 1) % 10) + answer[place + 1 :]
        if digit.isdecimal() and answer[place + 1 : place + 2].isdecimal() and digit != answer[place + 1]:
            yield answer[:place] + answer[place + 1] + digit + answer[place + 2 :]


@pytest.mark.parametrize("category", ALL)
def test_a_verdict_gives_the_reason(category):
    problem = problems(category)[0]
    right = problem.answer if problem.is_talk else f"\\boxed{{{problem.answer}}}"
    for text, why in ((right, "passed"), ("\\boxed{-}", "wrong answer"), ("", "there is no closed box")):
        verdict = categories.verify(problem, text)
        assert verdict.correct == tasks.check(problem, text) == (text == right)
        assert verdict.why == ("wrong answer" if problem.is_talk and text != right else why)
        assert 0 <= verdict.seconds < 1


@pytest.mark.parametrize("category", ALL)
def test_nearly_right_answers_fail(category):
    for problem in problems(category):
        for wrong in nearly(problem.answer):
            assert not tasks.check(problem, f"The answer is \\boxed{{{wrong}}}."), (problem, wrong)
            assert not tasks.check(problem, f"\\boxed{{{problem.answer}}} or \\boxed{{{wrong}}}"), (problem, wrong)
            assert tasks.check(problem, f"\\boxed{{{wrong}}}, no: \\boxed{{{problem.answer}}}")
        for text in ("", problem.answer, f"\\boxed{{{problem.answer}", f"boxed{{{problem.answer}}}"):
            assert not tasks.check(problem, text)
        assert not tasks.check(problem, f"\\boxed{{{problem.answer}}} \\boxed{{")


def test_parity_is_answered_in_the_problems_language():
    for problem in problems("parity", 50):
        other = {"odd": "奇数", "even": "偶数", "奇数": "odd", "偶数": "even"}[problem.answer]
        assert not tasks.check(problem, f"\\boxed{{{other}}}")


def with_answer(category, answer):
    return dataclasses.replace(problems(category, 1)[0], answer=answer)


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        (
            "(7*4)+5",
            ["7*4+5", "5+4*7", " ( 4 * 7 ) + 5 ", "5+(7*4)"],
            ["33", "28+5", "7*4+5+7-7", "7*(4+5)", "7*4+5=33"],
        ),
        ("(7-4)*5", ["5*(7-4)"], ["5*7-5*4", "7-4*5", "(7-4)5", "-(4-7)*5", "5*(+7-4)"]),
    ],
)
def test_any_expression_of_the_same_numbers_that_makes_the_target_is_right(answer, right, wrong):
    problem = with_answer("countdown3", answer)
    assert all(tasks.check(problem, f"\\boxed{{{text}}}") for text in right)
    assert not any(tasks.check(problem, f"\\boxed{{{text}}}") for text in wrong)


def test_any_program_that_computes_the_same_is_right():
    problem = with_answer("rpn", "x 3 + 2 *")
    for program in ("2 x 3 + *", "x 2 * 6 +", "x x + 6 +", "3 x + 3 x + +", " x\t3 +\n2 * "):
        assert tasks.check(problem, f"\\boxed{{{program}}}"), program
    for program in ("x 3 2 * +", "x 3 +", "x 3 + 2", "3 + 2 *", "x3+2*", "x 3 + 2 * x", "import os", "x 3 + 2 **"):
        assert not tasks.check(problem, f"\\boxed{{{program}}}"), program


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "(", ")", "()", "1+", "+1", "1 2", "1//2", "2**3", "1.5", "٣+١", "１+２", "1_0", "0x10", "9" * 7),
        *("(" * 60 + "1" + ")" * 60, "((((((((( 1 )))))))))", "1+" * 40 + "1", "*".join(["999999"] * 3), "a", "\ud800"),
    ],
)
def test_what_is_no_expression_within_bounds(text):
    assert evaluate(text) is None
    assert run_rpn(text, 2) is None


def test_rpn_within_bounds():
    assert run_rpn("x x * x * x * x *", 1000) is None
    assert run_rpn("x " * 20 + "+ " * 19, 1) == 20
    assert run_rpn("x " * 30 + "+ " * 29, 1) is None
    assert run_rpn("7 x -", 9) == -2


EXPRESSIONS = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", "*", " - "]), inner).map("".join)
        | inner.map(lambda text: f"({text})")
    ),
    max_leaves=6,
)


@given(EXPRESSIONS)
def test_expressions_are_read_as_python_reads_them(text):
    result = evaluate(text)
    if result is None:
        assert len(text) > 80 or text.count("(") > 8 or abs(value(text)) > 10**6
    else:
        assert result == (value(text), sorted(numbers(text)))


PIECES = st.sampled_from(["\\boxed{", "}", "(", ")", "+", "-", "*", "x ", "7", "12", " ", "</think>", "\n", "因", "\0"])


ANY_TEXT = st.text() | st.lists(PIECES, max_size=200).map("".join) | st.binary().map(lambda b: b.decode("latin-1"))


@given(st.sampled_from(ALL), ANY_TEXT, st.integers(0, 99))
def test_no_text_makes_a_checker_or_a_metric_raise(category, text, seed):
    problem = problems(category, 1, seed)[0]
    for wrapped in (text, f"\\boxed{{{text}}}"):
        passed = tasks.check(problem, wrapped)
        if passed and not category.startswith(("countdown", "rpn")):
            assert problem.answer in wrapped
        outputs.format_ok(wrapped, ended=True)
        outputs.language_switch(problem, wrapped)
    evaluate(text)
    run_rpn(text, seed)


def test_reading_takes_no_longer_for_longer_texts():
    """Ten million characters of anything are refused unread."""
    problem = problems("countdown3", 1)[0]
    for text in ("(" * 10**7, "1" * 10**7, "1+" * 5_000_000):
        assert evaluate(text) is None
        assert run_rpn(text, 1) is None
        assert not tasks.check(problem, f"\\boxed{{{text}}}")


@pytest.mark.parametrize(
    "module", [author, exercises, problems_module, programs, verifiers, outputs], ids=lambda module: module.__name__
)
def test_nothing_can_run_a_text(module):
    tree = ast.parse(Path(module.__file__).read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not names & {"eval", "exec", "compile", "__import__", "globals", "getattr", "open"}
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported <= {"itertools", "operator", "hashlib", "math", "re", "numpy"}
