"""Sampling against transformers' own processors, and the seeded draw against the exact distribution."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers.generation import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from qwq_ref.engine.sampler import next_token
from qwq_ref.spec import (
    Sampling,
    distribution,
    draw,
    sampling,
)

# Quarters make many ties.
logit_rows = hnp.arrays(np.float64, st.integers(2, 40), elements=st.integers(-40, 40).map(lambda i: i / 4))
id_lists = st.lists(st.integers(0, 1), max_size=5)


def hf_distribution(logits, how, prompt, output):
    """The processors that `generate` would build from the same settings, in its order."""
    scores = torch.from_numpy(logits.copy())[None]
    ids = torch.tensor([[*prompt, *output]], dtype=torch.long)
    steps = []
    if how.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(how.repetition_penalty))
    if how.temperature != 1:
        steps.append(TemperatureLogitsWarper(how.temperature))
    if how.top_k > 0:
        steps.append(TopKLogitsWarper(how.top_k))
    if how.top_p < 1:
        steps.append(TopPLogitsWarper(how.top_p))
    if how.min_p > 0:
        steps.append(MinPLogitsWarper(how.min_p))
    for step in steps:
        scores = step(ids, scores)
    return scores.softmax(-1)[0].numpy()


@given(
    logit_rows,
    id_lists,
    id_lists,
    st.sampled_from([0.3, 0.6, 1.0, 2.0]),
    st.sampled_from([0, 1, 3, 20, 1000]),
    st.sampled_from([0.1, 0.5, 0.95, 1.0]),
    st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    st.sampled_from([0.7, 1.0, 1.3]),
)
def test_the_whole_chain_is_hf(logits, prompt, output, temperature, top_k, top_p, min_p, repetition):
    how = Sampling(temperature, top_k, top_p, min_p, repetition)
    wanted = hf_distribution(logits, how, prompt, output)
    got = distribution(logits, how, prompt, output)
    if near_a_threshold(logits, how, prompt, output):
        return
    if len(set(logits)) == len(logits):
        np.testing.assert_allclose(got, wanted, rtol=1e-12)
    else:  # of equal tokens at the edge of top-p, torch's sort keeps any
        np.testing.assert_allclose(np.sort(got), np.sort(wanted), rtol=1e-12)


def near_a_threshold(logits, how, prompt, output):
    """Whether a sum of probabilities lies so close to 1 - top_p, or a token to min_p, that rounding decides."""
    before = distribution(
        logits, Sampling(how.temperature, how.top_k, 1.0, 0.0, how.repetition_penalty), prompt, output
    )
    sums = np.cumsum(np.sort(before))
    after = distribution(
        logits, Sampling(how.temperature, how.top_k, how.top_p, 0.0, how.repetition_penalty), prompt, output
    )
    return (how.top_p < 1 and np.min(np.abs(sums - (1 - how.top_p))) < 1e-12) or (
        0 < how.min_p < 1 and np.min(np.abs(after / after.max() - how.min_p)) < 1e-12
    )


@given(logit_rows, st.integers(1, 10), st.integers(0, 10), st.floats(0.05, 1), st.floats(0, 0.9))
def test_kept_sets_nest_and_hold_the_likeliest(logits, k, more, p, less):
    def kept(step, value):
        return set(np.flatnonzero(np.isfinite(step(logits, value))))

    for step, small, large in (
        (sampling.top_k, k, k + more),
        (sampling.top_p, p * (1 - less), p),
        (sampling.min_p, p, p * (1 - less)),
    ):
        assert kept(step, small) <= kept(step, large)
        assert int(np.argmax(logits)) in kept(step, small)
    assert len(kept(sampling.top_k, k)) >= min(k, len(logits))


def test_top_p_keeps_the_fewest_that_reach_p():
    logits = np.log([0.1, 0.4, 0.2, 0.3])
    for p, wanted in ((0.39, {1}), (0.41, {1, 3}), (0.69, {1, 3}), (0.71, {1, 2, 3}), (0.95, {0, 1, 2, 3})):
        assert set(np.flatnonzero(np.isfinite(sampling.top_p(logits, p)))) == wanted


def test_top_p_at_the_exact_threshold():
    """The dropped probabilities may sum to exactly 1 - p, as in HF."""
    assert np.count_nonzero(np.isfinite(sampling.top_p(np.zeros(4), 0.5))) == 2


def test_presence_penalty_counts_once_and_only_the_output():
    got = sampling.presence_penalty(np.zeros(4), [2, 2, 3], 0.5)
    assert np.array_equal(got, [0, 0, -0.5, -0.5])
    how = Sampling(presence_penalty=np.log(2))
    np.testing.assert_allclose(distribution(np.zeros(3), how, prompt=[0], output=[1]), [0.4, 0.2, 0.4])


def test_repetition_penalty_makes_both_signs_less_likely_once():
    got = sampling.repetition_penalty(np.array([2.0, -2.0, 2.0]), [0, 1, 0], 2.0)
    assert np.array_equal(got, [1.0, -4.0, 2.0])
    assert np.array_equal(sampling.repetition_penalty(np.array([0.5, -0.5]), [0, 1], 2.0), [0.25, -1.0])


def test_the_defaults_change_nothing_and_nothing_changes_them():
    logits = np.log([0.5, 0.3, 0.2])
    np.testing.assert_allclose(distribution(logits, Sampling(), [0], [1]), [0.5, 0.3, 0.2])
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sampling().temperature = 2.0


def test_greedy_is_the_lowest_of_the_likeliest_after_penalties():
    logits = np.array([1.0, 3.0, 3.0, 2.5])
    assert np.array_equal(distribution(logits, Sampling(temperature=0)), [0, 1, 0, 0])
    assert np.array_equal(distribution(logits, Sampling(0, presence_penalty=1.0), output=[1, 2]), [0, 0, 0, 1])


def test_steps_that_are_off_are_skipped_and_those_that_are_on_are_not():
    logits = np.log([0.5, 0.25, 0.15, 0.1])
    assert np.array_equal(distribution(logits, Sampling(top_k=1)), [1, 0, 0, 0])
    how = Sampling(top_p=0.6, min_p=0.4)  # min-p first would leave one
    assert np.count_nonzero(distribution(logits, how)) == 2


def test_steps_run_in_the_order_given_and_only_those():
    logits = np.log([0.5, 0.3, 0.2])
    late = Sampling(temperature=4.0, top_p=0.6, steps=("top_p", "temperature"))
    early = Sampling(temperature=4.0, top_p=0.6)
    assert np.count_nonzero(distribution(logits, late)) == 2
    assert np.count_nonzero(distribution(logits, early)) == 2
    late, early = Sampling(4.0, 0, 0.75, steps=("top_p", "temperature")), Sampling(4.0, 0, 0.75)
    assert np.count_nonzero(distribution(logits, late)) == 2
    assert np.count_nonzero(distribution(logits, early)) == 3
    np.testing.assert_allclose(distribution(logits, Sampling(9.0, 1, 0.1, steps=())), [0.5, 0.3, 0.2])


@pytest.mark.parametrize("seed", range(3))
def test_draws_follow_the_distribution(seed):
    """Chi-squared over 40,000 seeded draws, at the 1e-6 level of its distribution (by Wilson and Hilferty)."""
    logits = np.random.default_rng(seed).standard_normal(30) * 2
    probs = distribution(logits, Sampling(temperature=0.8, top_k=20, top_p=0.97))
    rng = np.random.Generator(np.random.Philox(seed))
    n = 40_000
    counts = np.bincount([draw(probs, rng) for _ in range(n)], minlength=30)
    assert np.all(counts[probs == 0] == 0)
    kept = probs > 0
    chi2 = np.sum((counts[kept] - n * probs[kept]) ** 2 / (n * probs[kept]))
    freedom = kept.sum() - 1
    z = ((chi2 / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / np.sqrt(2 / (9 * freedom))
    assert abs(z) < 4.9


def test_draw_never_picks_the_impossible():
    class Fixed:
        def __init__(self, value):
            self.value = value

        def random(self):
            return self.value

    probs = np.array([0.0, 0.25, 0.0, 0.75, 0.0])
    assert [draw(probs, Fixed(u)) for u in (0.0, 0.2499, 0.25, 1 - 2**-53)] == [1, 1, 3, 3]
    assert draw(np.array([1.0, 3.0]), Fixed(0.5)) == 1  # weights need not sum to one


def test_the_input_is_left_alone():
    logits = np.array([1.0, 2.0, 3.0])
    distribution(logits, Sampling(0.5, 2, 0.9, 0.1, 1.3, 0.4), [0], [1])
    for step, argument in ((sampling.top_k, 1), (sampling.top_p, 0.1), (sampling.min_p, 0.9)):
        step(logits, argument)
    for step in (sampling.repetition_penalty, sampling.presence_penalty):
        step(logits, [0, 1], 1.5)
    assert np.array_equal(logits, [1, 2, 3])


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_p": float("nan")},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
        {"presence_penalty": float("nan")},
        {"presence_penalty": float("-inf")},
        {"steps": ("top_k", "top_k")},
        {"steps": ("heat",)},
    ],
)
def test_values_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)
    Sampling(temperature=0.0, top_k=0, top_p=1.0, min_p=1.0)  # the ends of the ranges are in them


# --- the engine's choice, which looks at few -----------------------------------------------------------------------


@given(st.data())
def test_the_engine_chooses_what_the_spec_would(data):
    """Of a vocabulary large enough for shortcuts, with ties, for any steps in any order."""
    size = data.draw(st.sampled_from([5, 1023, 1024, 3000]))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    logits = rng.normal(0, 4, size).astype(np.float32)
    if data.draw(st.booleans()):
        logits = np.round(logits)  # many ties
    order = data.draw(st.permutations(sampling.STEPS))
    how = Sampling(
        temperature=data.draw(st.sampled_from([0.0, 0.6, 1.0])),
        top_k=data.draw(st.sampled_from([0, 1, 3, 40, 5000])),
        top_p=data.draw(st.sampled_from([0.5, 0.95, 1.0])),
        min_p=data.draw(st.sampled_from([0.0, 0.05])),
        repetition_penalty=data.draw(st.sampled_from([1.0, 1.3])),
        presence_penalty=data.draw(st.sampled_from([0.0, 1.5])),
        steps=data.draw(st.sampled_from([sampling.STEPS, tuple(order), tuple(order[:3])])),
        frequency_penalty=data.draw(st.sampled_from([0.0, 0.7])),
        penalty_window=data.draw(st.sampled_from([0, 1, 8])),
        typical_p=data.draw(st.sampled_from([1.0, 0.8])),
        top_n_sigma=data.draw(st.sampled_from([0.0, 0.9, 2.5])),
        logit_bias=data.draw(
            st.dictionaries(st.integers(0, size - 1), st.sampled_from([-np.inf, -100, 3.3, 100]), max_size=4)
        ),
    )
    prompt, output = (rng.integers(0, size, n).tolist() for n in (7, 5))
    output[:2] = [output[3], np.argmax(logits)]
    for seed in range(5):
        generator = np.random.Generator(np.random.Philox(key=seed, counter=12))
        wanted = draw(distribution(logits, how, prompt, output), generator)
        assert next_token(logits, how, prompt, output, seed) == wanted


hot = {"temperature": 50.0}  # survivors are nearly alike, so that a missing one shows


@given(
    st.integers(0, 1000),
    st.sampled_from([0, 1, 3, 40, 1500]),
    st.sampled_from(["apart", "ties", "near", "steep"]),
    st.sampled_from([{}, {"presence_penalty": 1.0}, {"repetition_penalty": 1.5, "penalty_window": 6}]),
    st.sampled_from([{}, {"typical_p": 0.5}, {"top_p": 0.7}, {"top_p": 0.01}, {"min_p": 0.3}, {"top_n_sigma": 2.0}]),
    st.sampled_from([sampling.STEPS, (*sampling.STEPS[:1], *sampling.STEPS[2:], "temperature")]),
)
def test_the_engine_keeps_what_the_spec_keeps(seed, k, kind, penalties, filters, steps):
    """Where logits tie in float32, but not in float64 behind a penalty, and where a penalty makes a tie."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, 2000).astype(np.float32)
    if kind == "ties":
        logits = np.round(logits)
    if kind == "steep":
        logits *= 20
    how = Sampling(**hot, top_k=k, **penalties, **filters, steps=steps)
    if kind == "near":
        likeliest = np.argsort(logits)[-50:]
        how = dataclasses.replace(how, logit_bias={int(i): 1e-9 * n for n, i in enumerate(likeliest)})
        logits[likeliest] = logits.max()
    prompt, output = (rng.choice(np.argsort(logits)[-60:], n).tolist() for n in (7, 5))
    wanted = distribution(logits, how, prompt, output)
    for number in range(40):
        generator = np.random.Generator(np.random.Philox(key=number, counter=12))
        assert next_token(logits, how, prompt, output, number) == draw(wanted, generator)


def test_the_engine_is_greedy_behind_typical_p():
    logits = np.log(np.array([0.4] + [0.0003] * 2000)).astype(np.float32)
    how = Sampling(0, typical_p=0.3)
    assert np.argmax(distribution(logits, how)) == next_token(logits, how, [], [], 0) == 1


def test_the_engine_counts_only_the_output_for_presence():
    logits = np.linspace(0, 3, 2000).astype(np.float32)
    for how in (Sampling(0, presence_penalty=5.0), Sampling(0.1, 1, frequency_penalty=5.0)):
        assert next_token(logits, how, [1999], [], 0) == 1999
        assert next_token(logits, how, [1999], [1999], 0) == 1998


@pytest.mark.parametrize("filters", [{"top_p": 0.9}, {"top_p": 0.3}, {"min_p": 0.02}, {"min_p": 0.5}], ids=str)
@pytest.mark.parametrize("late", [False, True], ids=["temperature first", "temperature last"])
@pytest.mark.parametrize("penalty", [0.0, 3.0])
@pytest.mark.parametrize("scale", [0.1, 2.0, 9.0])
def test_the_engine_filters_by_probability_without_top_k(filters, late, penalty, scale):
    """Few survive, or more than the engine sorts."""
    steps = (*(step for step in sampling.STEPS if step != "temperature"), "temperature") if late else sampling.STEPS
    how = Sampling(2.5, **filters, presence_penalty=penalty, steps=steps)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        logits = (rng.normal(0, scale, 3000)).astype(np.float32)
        output = np.argsort(logits)[-3:].tolist()
        wanted = distribution(logits, how, [], output)
        for number in range(60):
            generator = np.random.Generator(np.random.Philox(key=number, counter=3))
            assert next_token(logits, how, [], output, number) == draw(wanted, generator)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.6, 0.7, 0.8, 0.9])
def test_the_engine_leaves_thresholds_to_the_spec(p):
    """Ten equal probabilities, whose sums are p but for rounding, and a token whose part of the likeliest is min-p."""
    logits = np.full(2000, -np.inf, np.float32)
    logits[5:2000:200] = 0
    less = logits.copy()
    less[9] = -10 * p
    for row, how in (
        (logits, Sampling(top_p=p, steps=("top_p",))),
        (less, Sampling(min_p=float(np.exp(np.float64(less[9]))), steps=("min_p",))),
    ):
        wanted = distribution(row, how)
        for number in range(100):
            generator = np.random.Generator(np.random.Philox(key=number, counter=0))
            assert next_token(row, how, [], [], number) == draw(wanted, generator)


@pytest.mark.parametrize("size", [1.0, 1e200])
def test_the_engine_leaves_the_edge_of_top_n_sigma_to_the_spec(size):
    """The lower half is two standard deviations below the upper one. Squares of the large logits overflow."""
    logits = np.tile([size, -size], 1000)
    for n in (1.9, 2.0):
        how = Sampling(top_n_sigma=n, steps=("top_n_sigma", "temperature"), temperature=50 * size)
        wanted = distribution(logits, how)
        assert np.count_nonzero(wanted) == (1000 if n < 2 else 2000)
        for number in range(30):
            generator = np.random.Generator(np.random.Philox(key=number, counter=0))
            assert next_token(logits, how, [], [], number) == draw(wanted, generator)
