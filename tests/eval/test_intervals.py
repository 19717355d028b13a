"""Confidence intervals: published values, symmetry, and how often they hold the truth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref.eval.intervals import paired_interval, wilson_interval


def test_wilson_intervals():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 2000)[0] == 0
    assert wilson_interval(2000, 2000) == pytest.approx((0.99808, 1.0), abs=1e-5)
    low, high = wilson_interval(970, 1000, z=0)
    assert low == high == pytest.approx(0.97)


def test_paired_intervals():
    """Published: complete response before and after a therapy, airways before and after a transplantation (Fagerland,
    Lydersen & Laake 2014). With no discordant pair, z^2 / (n + z^2) either way, which the formula gives by hand."""
    assert paired_interval(6, 16, 161) == pytest.approx((-0.1240, -0.0054), abs=5e-5)
    assert paired_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert paired_interval(0, 0, 10_000) == pytest.approx((-3.8416 / 10_003.8416, 3.8416 / 10_003.8416))
    assert paired_interval(0, 0, 0) == (-1.0, 1.0)
    assert paired_interval(5, 0, 5)[1] == pytest.approx(1)
    low, high = paired_interval(30, 10, 1000, z=1e-9)
    assert low == pytest.approx(high) == pytest.approx(0.02)


@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 10_000))
def test_a_paired_interval_holds_what_was_seen_and_turns_with_the_sign(lost, gained, others):
    n = lost + gained + others
    low, high = paired_interval(lost, gained, n)
    assert -1 <= low <= high <= 1
    if n:
        assert low <= (lost - gained) / n <= high
    assert (-high, -low) == pytest.approx(paired_interval(gained, lost, n), abs=1e-12)
    assert paired_interval(lost + 1, gained, n + 1)[1] >= high - 1e-12


@pytest.mark.parametrize(("lost", "gained", "n"), [(0.02, 0.01, 400), (0.004, 0.004, 2000), (0.3, 0.1, 50)])
def test_a_paired_interval_covers_at_its_level(lost, gained, n):
    """Of 4,000 samples: 95 % within what chance allows, and 2 % for a formula that is asymptotic."""
    rng = np.random.default_rng(n)
    counts = rng.multinomial(n, [lost, gained, 1 - lost - gained], 4000)
    found = [paired_interval(int(a), int(b), n) for a, b, _ in counts]
    covered = np.mean([low <= lost - gained <= high for low, high in found])
    assert 0.93 <= covered <= 0.97
