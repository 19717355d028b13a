"""The generated suite: our solutions against slow searches, fast functions against slow ones, and the judges."""

import dataclasses
import itertools
import json
import math
import re
from random import Random

import numpy as np
import pytest

from qwq_ref.errors import SuiteError, UsageError
from qwq_ref.eval.suites import open_suite
from qwq_ref.eval.suites.generated import algorithms, families, generated, optimisation, proofs, science
from qwq_ref.tasks.verifiers import Verdict, lean

# The problems of seed 0, with proofs. A change of problems must be meant: figures of before no longer compare.
DIGEST = "31a8a6f715d32d0428bc41573be21aaa541373088b3e077a1c23c876dc7d685e"


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return generated(lean=tools_file(tmp_path_factory.mktemp("lean")))


def tools_file(folder, **changes):
    path = folder / "tools.json"
    path.write_text(json.dumps({"repl": ["repl"], "comparator": ["lake", "comparator"]} | changes))
    return path


def by_name(family):
    return family.__name__


# --- The suite --------------------------------------------------------------------------------------------------------


def test_the_same_seed_makes_the_same_problems(suite, tmp_path):
    again = generated(lean=tools_file(tmp_path))
    assert [task.prompt for task in again.tasks] == [task.prompt for task in suite.tasks]
    assert suite.facts == again.facts == {"problem seed": 0, "problems": DIGEST}
    assert generated(each=3, seed=1).facts["problems"] != generated(each=3).facts["problems"]


def test_categories_take_turns(suite):
    groups = [task.group for task in suite.tasks]
    assert groups == ["algorithms", "optimisation", "science", "proofs"] * 25
    assert len({task.id for task in suite.tasks}) == len({task.prompt for task in suite.tasks}) == 100
    assert suite.note == ""


def test_proofs_need_a_checker():
    suite = open_suite("generated")
    assert {task.group for task in suite.tasks} == {"algorithms", "optimisation", "science"}
    assert suite.note.startswith("the proofs are left out")
    with pytest.raises(UsageError, match="data: has no effect on the suite generated"):
        open_suite("generated", "x.json")


# --- Algorithms: the same result by search, or straight from the definition -------------------------------------------


def subsequence(values, strict, falls):
    def rises(part):
        return all((b < a if falls else a < b) or (not strict and a == b) for a, b in itertools.pairwise(part))

    parts = [part for size in range(len(values) + 1) for part in itertools.combinations(values, size)]
    return max(len(part) for part in parts if rises(part))


def edit_distance(source, target, insert, delete, replace):
    if not source or not target:
        return len(source) * delete + len(target) * insert
    costs = {"insert": insert, "delete": delete, "replace": replace}
    return min(
        edit_distance(source[1:], target[1:], **costs) + (replace if source[0] != target[0] else 0),
        edit_distance(source[1:], target, **costs) + delete,
        edit_distance(source, target[1:], **costs) + insert,
    )


def path(grid, side, corner):
    free = {(r, c) for r, row in enumerate(grid) for c, cell in enumerate(row) if cell == "."}
    cost = {place: 0 if place == (0, 0) else math.inf for place in free}
    for _ in free:
        for r, c in free:
            for other in free:
                apart = (abs(r - other[0]), abs(c - other[1]))
                price = side if sum(apart) == 1 else corner if corner and apart == (1, 1) else math.inf
                cost[other] = min(cost[other], cost[r, c] + price)
    found = cost.get((len(grid) - 1, len(grid[0]) - 1), math.inf) if (0, 0) in free else math.inf
    return -1 if found == math.inf else found


def coins(values, total, fewest, modulus):
    counts = itertools.product(*[range(total // value + 1) for value in values])
    fits = [sum(each) for each in counts if sum(n * value for n, value in zip(each, values, strict=True)) == total]
    return min(fits, default=-1) if fewest else len(fits) % modulus


def intervals(pairs, gap):
    joined = [tuple(pair) for pair in pairs]
    for one, other in itertools.combinations(range(len(joined)), 2):
        (a, b), (c, d) = joined[one], joined[other]
        if a <= d + gap and c <= b + gap:
            rest = [pair for place, pair in enumerate(joined) if place not in (one, other)]
            return intervals([*rest, (min(a, c), max(b, d))], gap)
    return [list(pair) for pair in sorted(joined)]


def inversions(values, factor):
    return sum(a > factor * b for a, b in itertools.combinations(values, 2))


def order(count, pairs, greatest):
    orders = itertools.permutations(range(count))
    fits = [list(each) for each in orders if all(each.index(a) < each.index(b) for a, b in pairs)]
    return (max if greatest else min)(fits, default=[])


def brackets(text, empty, wild):
    for choice in itertools.product(*[["(", ")", *[""] * empty] if letter == wild else letter for letter in text]):
        filled = "".join(choice)
        while "()" in filled:
            filled = filled.replace("()", "")
        if not filled:
            return True
    return False


def runs(text, least, first):
    coded = lambda run: f"{len(run[0])}{run[1]}" if first else f"{run[1]}{len(run[0])}"  # noqa: E731
    return re.sub(rf"(.)\1{{{least - 1},}}", coded, text)


def base(number, base):
    """The shortest text of digits that has the value."""
    for size in itertools.count(1):
        for digits in itertools.product(range(-base), repeat=size):
            if sum(digit * base**place for place, digit in enumerate(reversed(digits))) == number:
                return "".join(map(str, digits))


def cache(keys, refreshed, slots):
    """A key hits if fewer than `slots` others were used since (refreshed), or came in since its own coming."""
    came, hits = [], 0
    for place, key in enumerate(keys):
        if refreshed:
            last = max((i for i in range(place) if keys[i] == key), default=None)
            hit = last is not None and len(set(keys[last + 1 : place])) < slots
        else:
            hit = key in came[-slots:]
            came += [] if hit else [key]
        hits += hit
    return hits


def regions(grid, diagonal, largest):
    label = {(r, c): (r, c) for r, row in enumerate(grid) for c, cell in enumerate(row) if cell == "."}
    for _ in range(len(label)):
        for one, other in itertools.product(label, label):
            apart = (abs(one[0] - other[0]), abs(one[1] - other[1]))
            if sum(apart) == 1 or (diagonal and apart == (1, 1)):
                label[one] = label[other] = min(label[one], label[other])
    sizes = [[*label.values()].count(each) for each in set(label.values())]
    return max(sizes, default=0) if largest else len(sizes)


def evaluate(text, tight, loose, right):
    for sign in (loose, tight):
        if sign in text:
            one, _, other = text.partition(sign) if right else text.rpartition(sign)
            a, b = (evaluate(part, tight, loose, right) for part in (one, other))
            return a + b if sign == "+" else a - b if sign == "-" else a * b
    return int(text)


def life(grid, steps, born, stays):
    alive = np.array([[cell == "#" for cell in row] for row in grid])
    for _ in range(steps):
        shifts = [each for each in itertools.product((-1, 0, 1), repeat=2) if each != (0, 0)]
        near = sum(np.roll(alive, shift, (0, 1)).astype(int) for shift in shifts)
        alive = np.where(alive, np.isin(near, stays), np.isin(near, born))
    return ["".join(".#"[int(cell)] for cell in row) for row in alive]


# Sizes that a search can take, or that parameters need to make a difference; 8 elsewhere.
LARGEST = {"edit_distance": 5, "order": 6, "coins": 4, "base": 2, "path": 4, "regions": 4, "cache": 40}


@pytest.mark.parametrize("family", algorithms.FAMILIES, ids=by_name)
def test_a_solution_finds_what_a_search_finds(family):
    search, most = globals()[family.__name__], LARGEST.get(family.__name__, 8)
    results = set()
    for number in range(40):
        random = Random(number)
        problem = family(random)
        given = problem.draw(random, random.randint(1, most))
        found = problem.solve(*given)
        assert found == search(*given, **problem.settings), (given, problem.settings)
        results.add(repr(found))
    assert len(results) > 1


@pytest.mark.parametrize("family", algorithms.FAMILIES, ids=by_name)
def test_the_example_of_a_prompt_is_true_and_the_size_is_kept(family):
    problem = family(Random(1))
    prompt = algorithms.task("a", "", problem, Random(2)).prompt
    call, result = re.search(rf"Example: `{problem.name}(\(.*\))` returns `(.*)`", prompt).groups()
    assert eval(f"solve{call}", {"solve": problem.solve}) == eval(result)
    limits = {"list": 2000, "text": 3000}
    for given, _ in problem.cases(Random(3)):
        assert all(
            len(each) <= limits["text" if isinstance(each, str) else "list"] for each in given if type(each) is not int
        )


COUNTS = """def count_pairs(values):
    return sum(values[i] > {} * values[j] for j in range(len(values)) for i in range(j))
"""


def test_a_program_is_judged_by_hidden_inputs():
    problem = algorithms.inversions(Random(0))
    task = algorithms.task("a", "algorithms", problem, Random(1))
    factor = problem.settings["factor"]
    assert task.judge(f"```python\n{COUNTS.format(factor)}```").why == "passed"
    wrong = task.judge(f"```python\n{COUNTS.format(factor + 1)}```")
    assert not wrong.correct
    assert wrong.why.startswith("wrong answer: assert plain(candidate(*([")
    assert not task.judge("I cannot.").correct


def test_tuples_count_as_lists():
    problem = algorithms.intervals(Random(0))
    task = algorithms.task("a", "", problem, Random(1))
    program = f"""def join_intervals(pairs):
    found = []
    for start, end in sorted(pairs):
        if found and start <= found[-1][1] + {problem.settings["gap"]}:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return tuple(found)
"""
    assert task.judge(program).why == "passed"


# --- Optimisation -----------------------------------------------------------------------------------------------------


def defined(source, name):
    space = {}
    exec(source, space)
    return space[name]


@pytest.mark.parametrize("family", families.FAMILIES, ids=by_name)
def test_the_fast_function_has_the_results_of_the_slow_one(family):
    results = set()
    for number in range(60):
        random = Random(number)
        pair = family(random)
        given = pair.draw(random, random.randint(1, pair.small))
        found = defined(pair.fast, pair.name)(*given)
        assert found == defined(pair.slow, pair.name)(*given), (pair.slow, given)
        results.add(repr(found))
    assert len(results) > 1


@pytest.mark.parametrize("family", families.FAMILIES, ids=by_name)
def test_the_fast_function_passes_and_the_slow_one_fails(family):
    """With margin: the one within half of the limit, and the other at least three times over it."""
    pair = family(Random(family.__name__))
    given = optimisation.inputs(pair, "any")
    (speed,) = optimisation.judge(pair.fast, pair, given).parts.values()
    assert speed[0] > 2 / optimisation.MOST
    fewer = dataclasses.replace(pair, most=pair.most // 10)
    verdict = optimisation.judge(pair.slow, fewer, optimisation.inputs(fewer, "any"))
    assert not verdict.correct
    times = re.match(r"takes (\S+) times", verdict.why)
    limit = "the program computes for more than 1 seconds"
    deep = "wrong answer: Raised"
    assert float(times[1]) > 3 * optimisation.MOST if times else limit in verdict.why or deep in verdict.why


def test_a_fast_function_with_wrong_results_fails():
    pair = families.pairs(Random(0))
    given = optimisation.inputs(pair, "any")
    verdict = optimisation.judge("def count_pairs(values):\n    return 0\n", pair, given)
    assert not verdict.correct
    assert re.fullmatch(r"input \d+ of 16: wrong answer: 0 instead of \d+", verdict.why)
    assert verdict.parts == {"of the reference's speed": (0.0, 1)}
    assert "does not load" in optimisation.judge("I cannot.", pair, given).why


def test_any_result_gives_a_verdict():
    """Python shows no integer of more than 4300 digits."""
    pair = families.pairs(Random(0))
    verdict = optimisation.judge(
        "def count_pairs(values):\n    return 10**5000\n", pair, optimisation.inputs(pair, "any")
    )
    assert "wrong answer: a long int instead of" in verdict.why


def test_time_before_the_first_call_counts():
    """A table that a program makes while it loads is not free."""
    pair = families.stairs(Random(0))
    given = optimisation.inputs(pair, "any")
    table = f"{pair.fast}\nTABLE = [ways(n) for n in range(0, 20000, 100)]\n"
    assert not optimisation.judge(table, pair, given).correct


def test_arguments_arrive_as_they_were():
    """Lists travel as texts; a function that returns its arguments shows them."""
    pair = dataclasses.replace(families.pairs(Random(0)), name="same", fast="def same(*each):\n    return each\n")
    given = [([1, -2],), ([],), ([[1, 2], [3, 4]], [5]), (["ab", ".#"],), ("a b", 7)] * 4
    times = optimisation.compare(pair.fast, pair, given)
    assert times.results == times.wanted == given


# --- Science ----------------------------------------------------------------------------------------------------------

# Family -> the answer from the numbers in its text.
FORMULAS = {
    "braking": lambda v, a: v * (v / a) - a * (v / a) ** 2 / 2,
    "fall": lambda h: 9.81 * (h / (9.81 / 2)) ** 0.5,
    "parallel": lambda a, b, u: u / (a * b / (a + b)),
    "power": lambda r, u: u * (u / r),
    "lens": lambda g, f: 1 / (1 / f - 1 / g),
    "photon": lambda nm: 1.986465e-16 / nm,
    "density": lambda edge, g: (g / 1e3) / (edge / 100) ** 3,
    "speeds": lambda m, s: (m / 1000) / (s / 3600),
    "gas": lambda n, litres, t: n * 8.314 * (t + 273.15) / (litres / 1000) / 1000,
    "half_life": lambda life, mass, days: mass * math.exp(-math.log(2) * days / life),
    "dilution": lambda water, volume, c: c * (volume / 1000) / ((volume + water) / 1000),
    "molar": lambda grams, mass: grams / mass,
}


@pytest.mark.parametrize("family", science.FAMILIES, ids=by_name)
def test_an_answer_follows_from_the_numbers_of_its_text(family):
    letters = set()
    for number in range(60):
        random = Random(number)
        question = family(random)
        numbers = [float(each) for each in re.findall(r"(?<![\w^.])\d+(?:\.\d+)?(?!\^)", question.text)]
        if family is science.acid:
            digit, power = (int(each) for each in re.search(r"(\d) x 10\^-(\d)", question.text).groups())
            pH = -math.log10(digit * 10.0**-power)
            wanted = 14 - pH if "base" in question.text else pH
        elif family is science.cross:
            genes = int(re.search(r"in (\d) genes", question.text)[1])
            children = int(re.search(r"Of (\d+)", question.text)[1])
            dominant = int((re.search(r"(\d) dominant", question.text) or [0, 0])[1])
            squares = itertools.product(itertools.product("Aa", "Aa"), repeat=genes)  # Punnett's
            fits = [all(("A" in pair) == (gene < dominant) for gene, pair in enumerate(each)) for each in squares]
            wanted = children * sum(fits) / len(fits)
        else:
            formula = FORMULAS[family.__name__]
            wanted = formula(*numbers[: formula.__code__.co_argcount])
        assert question.correct == pytest.approx(wanted, rel=1e-4), question.text
        try:
            task = science.task("s", "science", question, random)
        except science.TooAlikeError:
            continue
        shown = dict(re.findall(r"^([A-D])\. (.*)$", task.prompt, re.MULTILINE))
        assert len(shown) == len(set(shown.values())) == 4
        (letter,) = [each for each in "ABCD" if task.judge(f"So \\boxed{{{each}}}").correct]
        assert shown[letter] == f"{science.number(question.correct)} {question.unit}".strip()
        letters.add(letter)
    assert letters == set("ABCD")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1234.5, "1230"),
        (0.012345, "0.0123"),
        (-3.14159, "-3.14"),
        (7.73e-19, "7.73 x 10^-19"),
        (0, "0.00"),
        (1e5, "1.00 x 10^5"),
        (99.96, "100"),
    ],
)
def test_a_number_has_three_digits(value, shown):
    assert science.number(value) == shown


# --- Proofs -----------------------------------------------------------------------------------------------------------


class Numbers(list):
    """A list with the words of Lean."""

    length = property(len)
    reverse = property(lambda self: Numbers(self[::-1]))

    def map(self, function):
        return Numbers(function(each) for each in self)

    def __add__(self, other):
        return Numbers([*self, *other])


def holds(theorem):
    """Whether a theorem is true for small numbers, all truth values, and some lists."""
    *_, claim = re.split(r"\) : |\) \(h : ", theorem)
    if "Prop" in theorem:
        for values in itertools.product([False, True], repeat=3):
            text = re.sub(r"¬(\w)", r"(not \1)", claim.replace("∧", " and ").replace("∨", " or "))
            if not implied(text, dict(zip("pqr", values, strict=True))):
                return False
        return True
    text = re.sub(r"(?<![<>])=", "==", claim).replace("::", "@")
    text = re.sub(r"fun x ==> ", "lambda x: ", text)
    text = re.sub(
        r"(\d+) @ (\w+\.reverse|\w+)", r"Numbers([\1]) + \2", re.sub(r"(\d+) @ (\d+) @", r"Numbers([\1, \2]) ++", text)
    )
    text = text.replace("++", "+")
    for n, m in itertools.product(range(6), repeat=2):
        space = {"n": n, "m": m, "xs": Numbers(range(n)), "ys": Numbers(range(m)), "Numbers": Numbers}
        if ("h : n < m" not in theorem or n < m) and not eval(text, space):
            return False
    return True


def implied(text, space):
    """The value of a text with →, which groups from the right; brackets first."""
    while inner := re.search(r"\(([^()]*)\)", text):
        text = text[: inner.start()] + str(implied(inner[1], space)) + text[inner.end() :]
    one, arrow, other = text.partition("→")
    value = bool(eval(one, dict(space)))
    return (not value or implied(other, space)) if arrow else value


@pytest.mark.parametrize("family", proofs.FAMILIES, ids=by_name)
def test_a_theorem_is_true(family):
    for number in range(30):
        assert holds(family(Random(number))), family(Random(number))


def test_a_false_theorem_is_noticed():
    assert not holds("(p q r : Prop) : p ∨ (q ∧ r) → (p ∧ q) ∨ (p ∧ r)")
    assert not holds("(n m : Nat) : 2 * (n + m) = 2 * m + n")
    assert not holds("(xs : List Nat) : (xs ++ [1, 2]).reverse = 1 :: 2 :: xs.reverse")


def test_lean_judges_a_proof(monkeypatch, tmp_path):
    asked = []

    def verify(statement, proof, command, **more):
        asked.append((statement, proof, command, more))
        return Verdict("rfl" in proof, "passed", 0.0)

    monkeypatch.setattr(lean, "verify", verify)
    tools = proofs.read_tools(tools_file(tmp_path, folders=["/opt"], project="/p", variables={"PATH": "/opt"}))
    assert tools == lean.Tools(("repl",), ("lake", "comparator"), "/p", ("/opt",), {"PATH": "/opt"})
    task = proofs.task("p", "proofs", "(n : Nat) : n = n", tools)
    statement = "theorem it_holds (n : Nat) : n = n := by\n  sorry\n"
    assert f"```lean\n{statement}```" in task.prompt
    assert task.judge("<think>```lean\nx\n```</think>So:\n```lean4\ntheorem it_holds := rfl\n```\nDone.").correct
    assert asked == [(statement, "theorem it_holds := rfl\n", tools, {"theorems": ["it_holds"]})]
    assert not task.judge("I cannot.").correct


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"repl": []}, "repl: must be a list of one or more texts"),
        ({"comparator": "lake"}, "comparator: must be a list of one or more texts"),
        ({"folders": [1]}, "folders: must be a list of texts"),
        ({"project": 3}, "project: must be a text"),
        ({"variables": {"PATH": 1}}, "variables: must be an object of texts"),
        ({"lean": []}, "lean: is none of repl, comparator, project, folders, variables"),
    ],
)
def test_a_broken_file_of_tools(tmp_path, changes, problem):
    with pytest.raises(SuiteError) as caught:
        generated(lean=tools_file(tmp_path, **changes))
    assert problem in str(caught.value)


def test_a_missing_file_of_tools(tmp_path):
    with pytest.raises(SuiteError, match="cannot be opened"):
        generated(lean=tmp_path / "none.json")
