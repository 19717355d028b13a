"""The problems that a model learns and is asked: answers and reasoning against oracles of this file's own, the checkers
against answers that are nearly right and against any text, the split, and what a small tokenizer makes of it all."""

import ast
import dataclasses
import itertools
import json
import math
import operator
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref.eval import metrics
from qwq_ref.tasks import author, programs, tasks
from qwq_ref.tasks import problems as problems_module
from qwq_ref.tasks.programs import evaluate, run_rpn
from qwq_ref.text import load_tokenizer
from qwq_ref.train.tokenizer import train_tokenizer

ALL = tasks.CATEGORIES + tasks.HARDER
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
FOLD = {"&": min, "|": max, "^": operator.ne}
FACTORS = {"h": 60, "min": 60, "m": 100, "kg": 1000}


def problems(category, count=300, seed=0):
    rng = np.random.default_rng([seed, ALL.index(category)])
    return [tasks.generate(category, rng) for _ in range(count)]


def value(expression):
    """Python's own reading of an expression, without running it; 07 is 7."""

    def of(node):
        if isinstance(node, ast.Constant):
            return Fraction(node.value)
        if isinstance(node, ast.UnaryOp):
            return -of(node.operand)
        return OPERATORS[type(node.op)](of(node.left), of(node.right))

    return of(ast.parse(re.sub(r"\b0+(?=\d)", "", expression), mode="eval").body)


def folded(bits):
    """0 and 1 with & | ^, from left to right."""
    result = int(bits[0])
    for sign, bit in zip(bits[1::2], bits[2::2], strict=True):
        result = int(FOLD[sign](result, int(bit)))
    return result


def numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def right_answer(category, key, language):
    """What a key alone says of the answer, by other means than the generators'."""
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
        assert metrics.format_ok(tasks.completion(problem), ended=True)
        assert not metrics.language_switch(problem, tasks.completion(problem)), problem
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
        line.split(":")[0].count(problem.key.split()[1]) + int(line.split(":")[1]) == int(problem.answer)
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
        metrics.format_ok(wrapped, ended=True)
        metrics.language_switch(problem, wrapped)
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
    "module", [tasks, author, problems_module, programs, metrics], ids=lambda module: module.__name__
)
def test_nothing_can_run_a_text(module):
    tree = ast.parse(Path(module.__file__).read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not names & {"eval", "exec", "compile", "__import__", "globals", "getattr", "open"}
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported <= {"itertools", "operator", "hashlib", "math", "re", "numpy"}


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
        assert metrics.language_switch(en, zh.prompt)  # so a prompt never leaves open which language to answer in


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


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    drawn = [problem for category in tasks.CATEGORIES for problem in problems(category, 131)]
    texts = [text for p in drawn for text in (p.prompt, *tasks.completion(p).split("</think>"))]
    folder = tmp_path_factory.mktemp("nano")
    (folder / "tokenizer.json").write_text(json.dumps(train_tokenizer(texts, 512)))
    return load_tokenizer(folder, 512)


def test_examples_are_short(tokenizer):
    means = []
    for category in tasks.CATEGORIES:
        lengths = []
        for problem in problems(category, 100, seed=1):
            prompt = f"<|im_start|>user\n{problem.prompt}<|im_end|>\n<|im_start|>assistant\n<think>\n"
            ids = tokenizer.encode(prompt + tasks.completion(problem) + "<|im_end|>", special=True)
            lengths.append(len(ids))
        means.append(np.mean(lengths))
        print(f"{category:16} mean {means[-1]:5.1f} max {max(lengths)}")
        assert max(lengths) <= 160, category
    print(f"mean of all {np.mean(means):.1f}")
    assert np.mean(means) <= 110


@pytest.mark.parametrize("category", ALL)
def test_no_reference_is_a_loop(tokenizer, category):
    for problem in problems(category):
        ids = tokenizer.encode(tasks.completion(problem), special=True)
        assert not metrics.is_loop(ids, ended=True), problem
        assert not metrics.is_loop(ids, ended=False), problem
        assert metrics.repetition(ids) <= 0.5


@pytest.mark.parametrize(
    ("text", "ended", "ok"),
    [
        ("So 5\n</think>\n\nThe answer is \\boxed{5}.", True, True),
        ("So 5\n</think>\n\nThe answer is \\boxed{5}.", False, False),
        ("So \\boxed{5}\n</think>\n\nThe answer is \\boxed{5}.", True, True),  # a box in the reasoning answers nothing
        ("So 5\n\nThe answer is \\boxed{5}.", True, False),
        ("So \\boxed{5}\n</think>\n\nThe answer is 5.", True, False),
        ("So 5\n</think></think>\n\nThe answer is \\boxed{5}.", True, False),
        ("So 5\n</think>\n\n\\boxed{5} or \\boxed{6}.", True, False),
        ("So 5\n</think>\n\n\\boxed{5", True, False),
        ("", True, False),
    ],
)
def test_format(text, ended, ok):
    assert metrics.format_ok(text, ended) is ok


def test_loops():
    rng = np.random.default_rng(0)
    varied = [int(identity) for identity in rng.integers(0, 500, 60)]
    assert not metrics.is_loop(varied, ended=False)
    assert not metrics.is_loop([], ended=False)
    for period in (1, 2, 7, 20, 64):
        cycle = [1000 + n for n in range(period)]
        repeated = varied + cycle * max(3, math.ceil(24 / period))
        assert metrics.periodic_tail(repeated)
        assert metrics.periodic_tail(repeated[:-1]) is (period == 7)  # the others are just long enough
        assert metrics.is_loop(repeated, ended=False)
        assert metrics.is_loop(varied[:10] + cycle * 100, ended=True)  # more than half repeats, even though it ended
    assert metrics.repetition([5] * 108) == pytest.approx(100 / 101)
    assert metrics.repetition(list(range(100))) == 0 == metrics.repetition([1, 2])


@pytest.mark.parametrize(
    ("language", "text", "switched"),
    [
        ("en", "So 5\n</think>\n\nThe answer is \\boxed{5}.", False),
        ("en", "So 所以5", True),
        ("en", "Step by step：", True),
        ("en", "\\boxed{奇数}", True),
        ("en", "naïve – café", False),
        ("zh", "所以5\n</think>\n\n答案是\\boxed{5}。<|im_end|>", False),
        ("zh", "所以x+ab=5", False),
        ("zh", "答案是\\boxed{odd}", False),
        ("zh", "7\\times 4, $\\text{max}$", False),
        ("zh", "So 5", False),
        ("zh", "Step 5", True),
        ("zh", "答案是 The \\boxed{5}", True),
    ],
)
def test_language_switches(language, text, switched):
    problem = tasks.generate("add3", np.random.default_rng(0), language)
    assert metrics.language_switch(problem, text) is switched


def test_wilson_intervals():
    assert metrics.wilson_interval(0, 0) == (0.0, 1.0)
    assert metrics.wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert metrics.wilson_interval(0, 2000)[0] == 0
    assert metrics.wilson_interval(2000, 2000) == pytest.approx((0.99808, 1.0), abs=1e-5)
    low, high = metrics.wilson_interval(970, 1000, z=0)
    assert low == high == pytest.approx(0.97)


def test_paired_intervals():
    """Published: complete response before and after a therapy, airways before and after a transplantation (Fagerland,
    Lydersen & Laake 2014). With no discordant pair, z^2 / (n + z^2) either way, which the formula gives by hand."""
    assert metrics.paired_interval(6, 16, 161) == pytest.approx((-0.1240, -0.0054), abs=5e-5)
    assert metrics.paired_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert metrics.paired_interval(0, 0, 10_000) == pytest.approx((-3.8416 / 10_003.8416, 3.8416 / 10_003.8416))
    assert metrics.paired_interval(0, 0, 0) == (-1.0, 1.0)
    assert metrics.paired_interval(5, 0, 5)[1] == pytest.approx(1)
    low, high = metrics.paired_interval(30, 10, 1000, z=1e-9)
    assert low == pytest.approx(high) == pytest.approx(0.02)


@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 10_000))
def test_a_paired_interval_holds_what_was_seen_and_turns_with_the_sign(lost, gained, others):
    n = lost + gained + others
    low, high = metrics.paired_interval(lost, gained, n)
    assert -1 <= low <= high <= 1
    if n:
        assert low <= (lost - gained) / n <= high
    assert (-high, -low) == pytest.approx(metrics.paired_interval(gained, lost, n), abs=1e-12)
    assert metrics.paired_interval(lost + 1, gained, n + 1)[1] >= high - 1e-12


@pytest.mark.parametrize(("lost", "gained", "n"), [(0.02, 0.01, 400), (0.004, 0.004, 2000), (0.3, 0.1, 50)])
def test_a_paired_interval_covers_at_its_level(lost, gained, n):
    """Of 4,000 samples: 95 % within what chance allows, and 2 % for a formula that is asymptotic."""
    rng = np.random.default_rng(n)
    counts = rng.multinomial(n, [lost, gained, 1 - lost - gained], 4000)
    found = [metrics.paired_interval(int(a), int(b), n) for a, b, _ in counts]
    covered = np.mean([low <= lost - gained <= high for low, high in found])
    assert 0.93 <= covered <= 0.97
