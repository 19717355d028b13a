"""pass@k against its definition, means of groups, intervals."""

import itertools

import numpy as np
import pytest

from qwq_ref.eval.intervals import bootstrap_interval, wilson_interval
from qwq_ref.eval.suites.records import Record
from qwq_ref.eval.suites.score import pass_at, scores


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_counts_the_draws(n):
    """All draws of k of n answers, of which some hold a correct one."""
    for correct in range(n + 1):
        for k in range(1, n + 1):
            draws = [*itertools.combinations(range(n), k)]
            assert pass_at(n, correct, k) == pytest.approx(sum(min(draw) < correct for draw in draws) / len(draws))


def made(identity, correct, sample=0, group="", budget=None, parts=None, tokens=4, reason="stop"):
    values = {"id": identity, "correct": correct, "sample": sample, "group": group, "budget": budget}
    return Record(values | {"parts": parts or {}, "tokens": tokens, "reasoning_tokens": 1, "finish_reason": reason})


def test_one_sample():
    (score,) = scores("toy", [made(f"t{i}", i < 3, tokens=i, reason="length" if i == 9 else "stop") for i in range(10)])
    assert (score.name, score.budget, score.n, score.samples, score.passed) == ("toy", None, 10, 1, {1: 0.3})
    assert (score.low, score.high) == wilson_interval(3, 10)
    assert (score.tokens, score.reasoning_tokens, score.cut) == (4.5, 1.0, 0.1)


def test_several_samples_groups_and_budgets():
    records = [
        made(f"{group}{i}", (i + sample) % 3 == 0, sample, group, budget, {"loose": (1, 2)})
        for budget in (16, 64)
        for group, size in (("a", 6), ("b", 3))
        for i in range(size)
        for sample in range(4)
    ]
    found = scores("toy", records)
    assert [(score.name, score.budget, score.n) for score in found] == [
        *[("a", 16, 6), ("b", 16, 3), ("toy", 16, 9), ("a", 64, 6), ("b", 64, 3), ("toy", 64, 9)]
    ]
    whole = found[2]
    assert list(whole.passed) == [1, 2, 4]
    shares = [sum((i + sample) % 3 == 0 for sample in range(4)) / 4 for size in (6, 3) for i in range(size)]
    assert whole.passed[1] == pytest.approx(np.mean(shares))
    assert whole.passed[4] == 1.0
    assert whole.passed[1] < whole.passed[2] < whole.passed[4]
    assert (whole.low, whole.high) == bootstrap_interval(shares)
    assert whole.low < whole.passed[1] < whole.high
    assert whole.parts == {"loose": 0.5}
    assert whole.row()["passed"] == {f"pass@{k}": share for k, share in whole.passed.items()}


def test_each_group_weighs_the_same_in_the_mean_over_groups():
    *groups, whole = scores("toy", [made(f"t{i}", i > 0, group="a" if i < 4 else "b") for i in range(6)])
    assert [(group.passed[1], group.by_group) for group in groups] == [(0.75, None), (1.0, None)]
    assert whole.by_group == 0.875 != whole.passed[1]
    assert scores("toy", [made("t", True)])[0].by_group is None


def test_an_unequal_number_of_samples_counts_the_least():
    (score,) = scores("toy", [made("a", True, 0), made("a", False, 1), made("b", True, 0)])
    assert score.samples == 1
    assert score.passed == {1: 0.75}


def test_the_bootstrap_finds_the_interval_of_a_mean():
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = bootstrap_interval(values.tolist())
    error = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.03)
    assert bootstrap_interval(values.tolist()) == (low, high)
    assert bootstrap_interval([0.5] * 9) == (0.5, 0.5)
    assert bootstrap_interval([]) == (0.0, 1.0)
