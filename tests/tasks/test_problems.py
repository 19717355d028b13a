"""Problems: answers and reasoning against oracles of this file's own, languages, and the split."""

import dataclasses
import itertools
import math
import operator
import re

import numpy as np
import pytest

from qwq_ref import tasks
from qwq_ref.eval import outputs
from qwq_ref.tasks.programs import run_rpn
from tests.support.problems import ALL, numbers, problems, value

FOLD = {"&": min, "|": max, "^": operator.ne}


FACTORS = {"h": 60, "min": 60, "m": 100, "kg": 1000}


def folded(bits):
    """0 and 1 with & | ^, from left to right."""
    result = int(bits[0])
    for sign, bit in zip(bits[1::2], bits[2::2], strict=True):
        result = int(FOLD[sign](result, int(bit)))
    return result


def right_answer(category, key, language):
    """Compute the answer from the key alone, by other means than the generators."""
    if category in ("mod", "gcd"):
        return str(operator.mod(*numbers(key)) if category == "mod" else math.gcd(*numbers(key)))
    if category in ("compare", "minmax"):
        return str((min if key.startswith("min") else max)(numbers(key)))
    if category.startswith("sort"):
        return ",".join(map(str, sorted(numbers(key))))
    if category.startswith("reverse"):
        return "".join(reversed(key))
    if category == "count":
        wanted, _, text = key.partition(" in ")
        return str(sum(digit == wanted for digit in text))
    if category == "parity":
        odd = sum(int(digit) for digit in key) % 2
        return {"en": ("even", "odd"), "zh": ("偶数", "奇数")}[language][odd]
    if category == "missing_operand":
        left, right = key.split("=")
        return str(next(x for x in range(200) if value(left.replace("x", str(x))) == int(right)))
    if category == "sequence":
        a, b, *_, last = numbers(key)
        return str(last + b - a)
    if category == "boolean":
        return str(folded(key))
    if category == "units":
        big, unit, small, _ = key.split()
        return str(int(big) * FACTORS[unit] + int(small))
    if category == "recall":
        if key.startswith("copy"):
            return key.split()[1]
        table, wanted = key.split()
        entries = dict(entry.split("=") for entry in table.split(","))
        return ",".join(entries[name] for name in wanted.split(","))
    return str(value(key))


def test_there_are_23_categories_and_eight_harder():
    assert len(set(tasks.CATEGORIES)) == 23
    assert len(set(ALL)) == 31


@pytest.mark.parametrize("category", ALL)
def test_reference_completions_pass_and_answer_rightly(category):
    for problem in problems(category):
        name, _, key = problem.key.partition(": ")
        assert name == problem.category == category
        reasoning, _, answer = tasks.completion(problem).partition("</think>")
        assert reasoning == problem.trace + "\n"
        assert problem.trace.split("\n")[-1] == {"en": "So ", "zh": "所以"}[problem.language] + problem.answer
        assert tasks.check(problem, answer)
        assert outputs.format_ok(tasks.completion(problem), ended=True)
        assert not outputs.language_switch(problem, tasks.completion(problem)), problem
        if category.startswith("countdown"):
            given_numbers, target = key.split()
            assert value(problem.answer) == int(target)
            assert sorted(numbers(problem.answer)) == numbers(given_numbers)
        elif category.startswith("rpn"):
            for x in (0, 1, 6, -3, 100):
                result = x
                for step in key.split():
                    operand = x if step[1:] == "x" else int(step[1:])
                    result = {"+": operator.add, "-": operator.sub, "*": operator.mul}[step[0]](result, operand)
                assert run_rpn(problem.answer, x) == result
        else:
            assert problem.answer == right_answer(category, key, problem.language)


@pytest.mark.parametrize("category", ALL)
def test_the_prompt_says_what_the_key_says(category):
    """Every number of the key is in the prompt: the problem that is asked is the one that is hashed."""
    for problem in problems(category, 100):
        key = problem.key.partition(": ")[2]
        assert sorted(numbers(key)) == sorted(numbers(problem.prompt)) or category == "rpn"
        assert sorted(re.findall(r"\d", key)) == sorted(re.findall(r"\d", problem.prompt))


CHAIN = re.compile(r"[-+*/0-9]+(=[-+*/0-9]+)+")


CLAIMS = {  # claims a trace makes at least, where it reasons by equations
    **{name: int(name[-1]) for name in ("addsub2", "add3", "add4", "add5", "sub3", "sub4", "sub5")},
    **{"product": 4, "product4": 8, "mod": 3, "gcd": 2, "missing_operand": 2, "sequence": 5, "units": 2},
    **{"countdown2": 1, "countdown3": 4, "countdown4": 3},
}


@pytest.mark.parametrize("category", CLAIMS)
def test_what_a_trace_claims_is_true(category):
    for problem in problems(category):
        claims = [part for line in problem.trace.split("\n") for part in line.split(",") if CHAIN.fullmatch(part)]
        assert len(claims) >= CLAIMS[category], problem.trace
        for claim in claims:
            first, *rest = map(value, claim.split("="))
            assert all(side == first for side in rest), claim


@pytest.mark.parametrize("category", ["addsub2", "add3", "add4", "add5", "sub3", "sub4", "sub5", "product", "product4"])
def test_a_column_result_grows_digit_by_digit_to_the_answer(category):
    """The digits after the last comma are those of the answer, lowest first, one more on each line."""
    for problem in problems(category):
        results = [line.rsplit(",", 1)[1] for line in problem.trace.split("\n") if "," in line]
        answer = problem.answer.zfill(len(results))
        assert results == [answer[-length:] for length in range(1, len(results) + 1)]


@pytest.mark.parametrize("category", ["add3", "add4", "sub3", "sub4", "product", "mod"])
def test_what_is_carried_is_what_the_line_before_says(category):
    for problem in problems(category):
        lines = [line for line in problem.trace.split("\n") if line.count("=") >= 1]
        for before, after in itertools.pairwise(lines):
            if category == "mod":
                assert after[0] == before[-1]
                continue
            carried = int(before.rsplit("=", 1)[1][0])
            said = int(re.search(r"[-+](\d)=[^=]*$", after)[1])
            assert said == (1 - carried if category.startswith("sub") else carried)


def lines_of(problem):
    return problem.trace.split("\n")[1:-1]


INVARIANTS = {
    "chain_sum": lambda problem, line: str(value(line)) == problem.answer,
    "chain_sum9": lambda problem, line: str(value(line)) == problem.answer,
    "boolean": lambda problem, line: str(folded(line)) == problem.answer,
    "minmax": lambda problem, line: str((max if ": max" in problem.key else min)(numbers(line))) == problem.answer,
    "sort": lambda problem, line: sorted(numbers(line)) == numbers(problem.answer),
    "sort6": lambda problem, line: sorted(numbers(line)) == numbers(problem.answer),
    "reverse": lambda problem, line: "".join(reversed(line.split(":")[0])) + line.split(":")[1] == problem.answer,
    "reverse9": lambda problem, line: "".join(reversed(line.split(":")[0])) + line.split(":")[1] == problem.answer,
    "count": lambda problem, line: (
        line.split(":")[0][1:].count(problem.key.split()[1]) + int(line.split(",")[1]) == int(problem.answer)
        and ("=" in line) == (line[0] == problem.key.split()[1])
    ),
    "parity": lambda problem, line: (
        sum(map(int, line.replace(":", ""))) % 2 == (problem.answer in ("odd", "奇数"))  # of what is left and so far
    ),
    "compare": lambda problem, line: line[1] == "=<>"[(line[0] < line[2]) + 2 * (line[0] > line[2])],
    "recall": lambda problem, line: line in problem.key,
    "rpn": lambda problem, line: line.split(": ")[1] in problem.answer,
    "rpn5": lambda problem, line: line.split(": ")[1] in problem.answer,
}


@pytest.mark.parametrize("category", INVARIANTS)
def test_every_line_of_a_reduction_keeps_its_answer(category):
    for problem in problems(category):
        for line in lines_of(problem):
            assert INVARIANTS[category](problem, line), problem.trace


def test_every_category_has_its_reasoning_checked():
    assert set(CLAIMS) | set(INVARIANTS) == set(ALL)


@pytest.mark.parametrize("category", ALL)
def test_a_seed_decides_all_and_the_language_only_the_words(category):
    assert problems(category, 20) == problems(category, 20)
    for seed in range(20):
        drawn = tasks.generate(category, np.random.default_rng(seed))
        en, zh = (tasks.generate(category, np.random.default_rng(seed), language) for language in ("en", "zh"))
        assert drawn in (en, zh)
        assert en.key == zh.key
        assert en.prompt != zh.prompt
        assert en.trace != zh.trace
        assert outputs.language_switch(en, zh.prompt)  # so a prompt never leaves open which language to answer in


@pytest.mark.parametrize("category", ALL)
def test_there_are_many_problems_in_both_languages_and_a_tenth_are_tests(category):
    drawn = problems(category, 4000)
    assert len({problem.key for problem in drawn}) >= 1000
    assert 0.45 < np.mean([problem.language == "zh" for problem in drawn]) < 0.55
    assert 0.06 < np.mean([tasks.split(problem) == "test" for problem in drawn]) < 0.14
    rng = np.random.default_rng(0)
    assert {tasks.split(tasks.sample(category, rng, "test")) for _ in range(5)} == {"test"}
    assert {tasks.split(tasks.sample(category, rng, "train")) for _ in range(5)} == {"train"}


@pytest.mark.parametrize(
    ("key", "part"), [("add3: 120+824", "train"), ("add3: 100+108", "test"), ("gcd: 39,57", "train")]
)
def test_the_split_is_the_same_for_ever(key, part):
    assert tasks.split(dataclasses.replace(problems("add3", 1)[0], key=key)) == part


def test_an_operation_that_commutes_is_one_problem_either_way():
    """a+b in one part of the split and b+a in the other would be a test that was trained on."""
    asked = [numbers(problem.prompt) for problem in problems("add3")]
    assert any(a > b for a, b in asked)
    assert [numbers(problem.key)[1:] for problem in problems("add3")] == [sorted(pair) for pair in asked]
