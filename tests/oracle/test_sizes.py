"""Packs that keep less than whole taps: the last token, statistics, sketches."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref.oracle import compare
from qwq_ref.oracle.graph import (
    letters,
    tap_names,
)
from qwq_ref.oracle.packs.manifest import stored_shape
from qwq_ref.oracle.packs.sizes import SIZES, reduce
from tests.support.packs import (
    CONFIG,
    PHASES,
    PRECISIONS,
    WEIGHTS,
    bin_and_sign,
    seeds,
    spec_run,
    truth,
)


def plainly(tap, dims, size):
    """`reduce`, one number at a time."""
    tokens = dims.index("T")
    T = tap.shape[tokens]
    if size == "full":
        return tap
    if size == "last":
        return tap[tuple(slice(T - 1, T) if axis == tokens else slice(None) for axis in range(tap.ndim))]
    rows = []
    for t in range(T):
        values = [0.0 if x == -math.inf else float(x) for x in np.take(tap, t, axis=tokens).ravel()]
        if size == "stats":
            square = math.fsum(x * x for x in values) / len(values)
            rows.append([math.fsum(values) / len(values), math.sqrt(square), min(values), max(values)])
        else:
            sums = [0.0] * 64
            for i, x in enumerate(values):
                where, sign = bin_and_sign(i)
                sums[where] += sign * x
            rows.append(sums)
    return np.array(rows)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tap", [*tap_names(CONFIG)[:24], "model.norm", "lm_head"])
def test_reductions_are_what_they_are_said_to_be(tap, size):
    for phase in PHASES:
        value = truth()[phase.name][tap]
        got = reduce(value, letters(tap), size)
        assert got.shape == stored_shape(tap, size, CONFIG, phase)
        np.testing.assert_allclose(got, plainly(value, letters(tap), size), rtol=1e-12, atol=1e-14)


@given(st.integers(1, 5), st.integers(1, 300), st.integers(1, 4), st.booleans(), seeds)
def test_reductions_of_any_shape(T, n, heads, first, seed):
    """Few values leave bins empty."""
    rng = np.random.default_rng(seed)
    dims, shape = (("H", "T", "S"), (heads, T, n)) if first else (("T", "H", "E"), (T, heads, n))
    value = rng.standard_normal(shape).astype(np.float32)
    value[rng.random(shape) < 0.2] = -np.inf
    for size in SIZES:
        np.testing.assert_allclose(reduce(value, dims, size), plainly(value, dims, size), rtol=1e-12, atol=1e-12)


def test_a_sketch_estimates_lengths():
    """The estimate is unbiased, to 18 % for a token; also for equal values and for a single large one."""
    rng = np.random.default_rng(0)
    for n in (40, 500, 5120):
        x = rng.standard_normal((400, n)) * np.exp(rng.standard_normal(n))
        ratio = np.sum(reduce(x, ("T", "D"), "sketch") ** 2, axis=1) / np.sum(x**2, axis=1)
        assert abs(ratio.mean() - 1) < 0.06
        assert 0.05 < ratio.std() < 0.25
    spike = np.eye(1, 5120, 77)
    assert np.sum(reduce(spike, ("T", "D"), "sketch") ** 2) == 1
    flat = np.ones((1, 5120))
    assert 0.4 < np.sum(reduce(flat, ("T", "D"), "sketch") ** 2) / 5120 < 2
    bins, signs = np.transpose([bin_and_sign(i) for i in range(64_000)])
    assert abs(np.bincount(bins, minlength=64) - 1000).max() < 150
    assert abs(signs.sum()) < 1000


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", SIZES)
def test_a_pack_of_every_size_tells_right_from_wrong(reduced, size, precision):
    """Each tap is judged alone, without its inputs."""
    right = spec_run(CONFIG, WEIGHTS, PHASES, PRECISIONS[precision])
    report = compare(reduced[size], right)
    assert report.passed, report
    assert report.comparison.precision.startswith(precision)
    assert all(r.distance is not None and r.distance.error <= r.allowed for r in report.comparison.results)
    rng = np.random.default_rng(0)
    for tap in tap_names(CONFIG):
        wrong = {}
        for phase in PHASES:
            noise = rng.standard_normal(right[phase.name][tap].shape)
            finite = np.abs(truth()[phase.name][tap][np.isfinite(truth()[phase.name][tap])])
            wrong[phase.name] = {tap: right[phase.name][tap] + 0.5 * np.sqrt(np.mean(finite**2)) * noise}
        report = compare(reduced[size], wrong, explain=False, precision=precision)
        assert not report.passed, (tap, report)
        assert {r.status for r in report.comparison.results} == {"introduced" if "rotary" in tap else "beyond"}
        if size == "sketch":
            estimates = [r.distance.error for r in report.comparison.results if r.phase == "prompt"]
            assert 0.2 < estimates[0] < 1.2, tap


def test_one_row_of_a_prompt_is_held_against_the_row(reduced):
    right = spec_run(CONFIG, WEIGHTS, PHASES)["prompt"]["lm_head"]
    for size, measured in (("full", True), ("last", True), ("stats", False), ("sketch", False)):
        for scale in (1, 1.1):
            report = compare(reduced[size], {"lm_head": scale * right[-1:]}, model=WEIGHTS, explain=False)
            result = report.comparison.results[0]
            assert result.note == "the last token alone"
            assert (result.distance is not None) == measured
            assert report.passed == (scale == 1)
