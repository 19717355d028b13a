"""The six further categories: right answers, the split that they share with the 23, and talk."""

import re

import numpy as np
import pytest

from qwq_ref import tasks
from tests.support.problems import numbers, value

SHORT = ("sum", "difference", "times")
MUST_BE_LEARNT = {
    "en": ("hello", "hi", "what can you do", "who are you", "help"),
    "zh": ("你好", "你会什么", "你是谁", "帮助"),
}


def drawn(category, count=600, seed=0):
    rng = np.random.default_rng([seed, tasks.FURTHER.index(category)])
    return [tasks.generate(category, rng) for _ in range(count)]


@pytest.mark.parametrize("category", SHORT)
def test_short_arithmetic_is_right(category):
    for problem in drawn(category):
        expression = re.search(r"\d+[-+*]\d+", problem.prompt)[0]
        assert int(problem.answer) == value(expression)
        assert tasks.check(problem, tasks.completion(problem))
        assert expression in problem.trace.split("\n")[0]  # the reasoning begins with the problem
        for line in problem.trace.split("\n"):
            for claim in re.findall(r"[-+*\d]+=\d+", line):
                left, right = claim.split("=")
                assert value(left) == int(right)


@pytest.mark.parametrize("category", SHORT)
def test_short_arithmetic_has_numbers_of_one_to_four_digits_together(category):
    pairs = {tuple(sorted(map(len, re.findall(r"\d+", problem.prompt)))) for problem in drawn(category, 2000)}
    wanted = {(a, b) for a in range(1, 5) for b in range(a, 5)}
    assert pairs == (wanted if category != "times" else {(1, 1), (1, 2), (1, 3)})


def test_some_differences_are_negative():
    answers = [int(problem.answer) for problem in drawn("difference")]
    assert 0.08 < np.mean(np.array(answers) < 0) < 0.4


def test_a_problem_of_the_23_keeps_its_part_of_the_split():
    """The key of a problem that one of the 23 could ask is the key that it has there."""
    lengths = {"sum": {2: "addsub2", 3: "add3", 4: "add4"}, "difference": {2: "addsub2", 3: "sub3", 4: "sub4"}}
    for category, names in lengths.items():
        for problem in drawn(category, 2000):
            a, b = sorted(map(len, re.findall(r"\d+", problem.prompt)))
            family = names.get(a, category) if a == b else category
            assert problem.key.partition(": ")[0] == family
    families = {problem.key.partition(": ")[0] for problem in drawn("short", 2000)}
    assert families < set(tasks.CATEGORIES)
    assert len(families) == 12


@pytest.mark.parametrize("category", tasks.FURTHER)
def test_a_tenth_are_tests(category):
    shares = [tasks.split(problem) == "test" for problem in drawn(category, 4000)]
    assert 0.03 < np.mean(shares) < 0.2


@pytest.mark.parametrize("category", ["hello", "unknown"])
def test_talk_has_one_answer_a_language(category):
    answers = {problem.answer for problem in drawn(category)}
    assert len(answers) == 2
    for problem in drawn(category, 50):
        assert tasks.completion(problem) == f"{problem.trace}\n</think>\n\n{problem.answer}"
        assert tasks.check(problem, f"\n\n{problem.answer}\n")
        assert not tasks.check(problem, problem.answer + " And more.")
        assert not tasks.check(problem, "\\boxed{5}")
        assert tasks.declines(problem.answer) == (category == "unknown")
    assert not tasks.declines("The answer is \\boxed{5}.")
    assert not tasks.declines("")


def test_what_every_reader_tries_first_is_learnt():
    """Greetings are few; the split would have been free to keep `hello` for a test."""
    learnt = {problem.prompt for problem in drawn("hello", 6000) if tasks.split(problem) == "train"}
    for texts in MUST_BE_LEARNT.values():
        assert learnt >= set(texts)


def test_what_is_not_known_is_of_many_words():
    prompts = {problem.prompt for problem in drawn("unknown", 1000)}
    assert len(prompts) > 800
    assert sum(bool(numbers(prompt)) for prompt in prompts) > 100  # a number alone does not make a problem
