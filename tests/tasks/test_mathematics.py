"""The verifier of mathematics: equal answers in other forms, wrong ones, and texts that are no answer."""

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref.tasks.verifiers import mathematics
from qwq_ref.tasks.verifiers.mathematics import Box, boxes, verify
from tests.support.processes import ends


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("72", "72"),
        ("72", " 72.0 "),
        ("1000", "1{,}000"),
        ("1,000", "1000"),
        ("\\frac{1}{2}", "0.5"),
        ("0.5", "\\dfrac12"),
        ("\\frac{\\sqrt{3}}{2}", "\\sqrt{3}/2"),
        ("x^2+1", "1 + x^2"),
        ("5", "x = 5"),
        ("18", "\\$18"),
        ("18", "18\\text{ dollars}"),
        ("90", "90^\\circ"),
        ("\\{1,2\\}", "\\{2, 1\\}"),
        ("(1, 2)", "\\left( 1, 2 \\right)"),
        ("-1", "−1"),
        ("$27$", "27"),
        ("\\text{east}", "East"),
        ("north east", "\\textbf{north east}"),
        ("2^{10}", "1024"),
        ("\\boxed{7}", "7"),
    ],
)
def test_equal_answers(gold, answer):
    verdict = verify(gold, f"So the answer is \\boxed{{{answer}}}.")
    assert (verdict.correct, verdict.why) == (True, "passed")


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("72", "73"),
        ("72", "-72"),
        ("\\frac{1}{2}", "0.6"),
        ("x^2", "x^3"),
        ("east", "seat"),
        ("(1,2)", "(2,1)"),
        ("5", "x"),
    ],
)
def test_wrong_answers(gold, answer):
    verdict = verify(gold, f"\\boxed{{{answer}}}")
    assert (verdict.correct, verdict.why) == (False, f"wrong answer in the box: {answer} instead of {gold}")


@pytest.mark.parametrize(
    ("completion", "why"),
    [
        ("", "there is no box"),
        ("The answer is 5.", "there is no box"),
        ("\\boxed{}", "the box is empty"),
        ("\\boxed{5", "the last box is not closed"),
        ("\\boxed{5} or \\boxed{\\frac{1}{2}", "the last box is not closed"),
        ("\\boxed{5} or \\boxed{6}", "wrong answer in the last of 2 boxes, which differ: 6 instead of 5"),
        ("\\boxed{6} and \\boxed{6}", "wrong answer in the box: 6 instead of 5"),
        ("<think>\\boxed{5}", "there is no box"),
        ("<think>\\boxed{5}</think>", "there is no box"),
        ("\\boxed{5}</think> It is 5.", "there is no box"),
        ("\\boxed{" + "1+" * 600 + "1}", "the answer has more than 1,000 characters"),
        ("\\boxed{\\frac}", "wrong answer in the box: \\frac instead"),
        ("\\boxed{\\\\}", "wrong answer"),
    ],
)
def test_completions_that_are_no_answer(completion, why):
    verdict = verify("5", completion)
    assert not verdict.correct
    assert verdict.why.startswith(why), verdict.why


def test_the_last_box_decides():
    assert verify("5", "\\boxed{6}, no: \\boxed{5}").correct
    assert verify("5", "<think>\\boxed{6}</think>\\boxed{ 5 }").correct
    assert verify("5", "\\boxed{1, and then \\boxed{5}").correct


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\\boxed{\\frac{1}{2}}", ["\\frac{1}{2}"]),
        ("\\boxed {5}", ["5"]),
        ("\\boxed{a\\}b}", ["a\\}b"]),
        ("\\boxed{\\boxed{3}} \\boxed{4}", ["\\boxed{3}", "4"]),
        ("\\boxed{1} \\boxed{2", ["1", None]),
        ("\\boxed{1 \\boxed{2}", [None, "2"]),
        ("}} \\boxed{1}", ["1"]),
        ("\\boxed 5 boxed{5} \\fbox{5}", []),
    ],
)
def test_boxes_by_brackets(text, found):
    assert boxes(text) == [Box(each) for each in found]


@given(st.text(alphabet="\\{}boxed 5"))
def test_boxes_of_any_text(text):
    for box in boxes(text + "\\boxed{5}")[-1:]:
        assert box.content is None or "5" in box.content


def test_many_boxes_take_no_time():
    began = time.monotonic()
    assert len(boxes("\\boxed{" * 200_000)) == 200_000
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "answer",
    [
        "10^{10^{10}}",
        "9^{9^{9^{9^9}}}",
        "(10^{9})!",
        "\\sum_{n=1}^{10^{12}} \\frac{1}{n^3}",
        "\\int_0^1 x^{x^{x^{x}}} dx",
        "(" * 400 + "1" + ")" * 400,
        "\\frac{" * 150 + "1" + "}{2}" * 150,
        "x^{" * 200 + "2" + "}" * 200,
        "(a+b+c+d+e+f)^{500}",
        "__import__('os').system('true')",
        "\\text{" + "a" * 900 + "}",
        "\x00\ud800",
        "\\begin{pmatrix} 1 & 2 \\\\ 3",
    ],
)
def test_an_endless_or_strange_expression_is_a_verdict(answer):
    began = time.monotonic()
    verdict = verify("5", f"\\boxed{{{answer}}}", seconds=1)
    assert not verdict.correct
    assert verdict.why.isprintable()
    assert time.monotonic() - began < 60
    assert verify("5", "\\boxed{5}").correct


def test_an_answer_is_not_run_as_python(tmp_path):
    sign = tmp_path / "ran"
    answer = f"__import__('pathlib').Path('{sign}').touch()"
    assert not verify("5", f"\\boxed{{{answer}}}", seconds=5).correct
    assert not sign.exists()


def test_an_endless_expression_says_so(monkeypatch):
    monkeypatch.setattr(mathematics, "_PATIENCE", 60.0)  # so the worker's own timer ends it
    began = time.monotonic()
    assert verify("5", "\\boxed{(10^{9})!}", seconds=1).why in (
        "the answer takes more than 1 seconds",
        "the answer needs more than 536,870,912 bytes of memory",
    )
    assert time.monotonic() - began < 40


def test_a_worker_serves_one_text_after_another_and_is_replaced():
    assert verify("5", "\\boxed{5}").correct
    worker = mathematics._idle[-1]
    assert verify("5", "\\boxed{4}").why.startswith("wrong")
    assert mathematics._idle[-1] is worker
    os.kill(worker._process.pid, signal.SIGKILL)
    assert ends(worker._process.pid)
    assert verify("5", "\\boxed{5}").correct
    assert mathematics._idle[-1] is not worker


def test_threads_have_workers_of_their_own():
    with ThreadPoolExecutor(3) as pool:
        verdicts = list(pool.map(lambda n: verify("5", f"\\boxed{{{n}}}"), [5, 6, 7, 5, 5, 6]))
    assert [verdict.correct for verdict in verdicts] == [True, False, False, True, True, False]
    workers = list(mathematics._idle)
    mathematics._end_all()
    assert all(ends(worker._process.pid) for worker in workers)


def test_without_math_verify_the_verdict_names_the_extra(monkeypatch):
    monkeypatch.setattr(mathematics.importlib.util, "find_spec", lambda name: None)
    verdict = verify("5", "\\boxed{5}")
    why = "not judged: mathematics needs math-verify: pip install 'qwq_ref[eval]'"
    assert (verdict.correct, verdict.why) == (False, why)


def test_importing_it_imports_no_sympy():
    assert "qwq_ref.tasks.verifiers.mathematics" in sys.modules
    assert "math_verify" not in sys.modules
