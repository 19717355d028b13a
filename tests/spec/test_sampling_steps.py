"""Typical-p, top-n-sigma, the frequency penalty, its window and the logit bias: against their published meanings."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers.generation import (
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TopKLogitsWarper,
    TypicalLogitsWarper,
)

from qwq_ref.spec import Sampling, distribution, sampling

quarters = st.integers(-40, 40).map(lambda i: i / 4)
logit_rows = hnp.arrays(np.float64, st.integers(2, 40), elements=quarters)
shares = st.sampled_from([0.05, 0.2, 0.5, 0.9, 0.999])
id_lists = st.lists(st.integers(0, 1), max_size=12)


def kept(logits):
    return set(np.flatnonzero(np.isfinite(logits)))


def of_hf(step, logits, ids=(0,)):
    return step(torch.tensor([ids], dtype=torch.long), torch.from_numpy(logits.copy())[None])[0].numpy()


# --- typical-p ------------------------------------------------------------------------------------------------------


def near_an_edge(logits, p):
    """Whether two tokens are equally typical to rounding, or a sum is p to rounding: then rounding decides."""
    probs = np.exp(logits - logits.max())
    probs = probs[probs > 0] / probs.sum()
    distance = np.abs(-np.log(probs) + np.sum(probs * np.log(probs)))
    order = np.argsort(distance, kind="stable")
    gaps = np.diff(distance[order])
    equal = np.diff(probs[order]) == 0
    return np.any((gaps < 1e-12) & ~equal) or np.min(np.abs(np.cumsum(probs[order]) - p)) < 1e-12


@given(logit_rows, shares)
def test_typical_p_is_hf(logits, p):
    if not near_an_edge(logits, p):
        assert kept(sampling.typical_p(logits, p)) == kept(of_hf(TypicalLogitsWarper(p), logits))


@given(logit_rows, shares, st.integers(1, 8))
def test_typical_p_after_another_filter_is_hf(logits, p, k):
    few = of_hf(TopKLogitsWarper(k), logits)
    if not near_an_edge(few[np.isfinite(few)], p):
        assert kept(sampling.typical_p(few, p)) == kept(of_hf(TypicalLogitsWarper(p), few))


@given(logit_rows, shares)
def test_typical_p_keeps_enough_and_each_is_more_typical_than_each_other(logits, p):
    probs = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    distance = np.abs(-np.log(probs) + np.sum(probs * np.log(probs)))
    those = kept(sampling.typical_p(logits, p))
    others = set(range(len(logits))) - those
    assert probs[list(those)].sum() >= p - 1e-12
    assert not others or max(distance[list(those)]) <= min(distance[list(others)]) + 1e-12


def test_typical_p_may_drop_the_likeliest():
    """One token has 40 % of the probability, and 500 share the rest: the mean surprise is nearer to theirs."""
    logits = np.log(np.array([0.4] + [0.0012] * 500))
    assert kept(sampling.typical_p(logits, 0.3)) == set(range(1, 501))  # a tie is kept whole
    assert kept(sampling.typical_p(logits, 0.7)) == set(range(501))


# --- top-n-sigma ----------------------------------------------------------------------------------------------------


@given(logit_rows, st.sampled_from([0.0625, 0.5, 1.0, 2.0]), st.integers(0, 3))
def test_top_n_sigma_is_its_definition(logits, n, excluded):
    """The set of l >= max - n * sigma, with the deviation of the population of possible tokens."""
    logits[1 : 1 + excluded] = -np.inf
    possible = logits[np.isfinite(logits)]
    mean = sum(possible) / len(possible)
    sigma = (sum((x - mean) ** 2 for x in possible) / len(possible)) ** 0.5
    edge = max(possible) - n * sigma
    if np.min(np.abs(possible - edge)) > 1e-9 or sigma == 0:
        assert kept(sampling.top_n_sigma(logits, n)) == set(np.flatnonzero(logits >= edge))


@given(logit_rows, st.sampled_from([0.0625, 0.3, 0.7, 1.9]), st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_top_n_sigma_does_not_feel_the_temperature(logits, n, heat):
    """Powers of two: the division is exact."""
    cooled = sampling.temperature(logits, heat)
    assert kept(sampling.top_n_sigma(cooled, n)) == kept(sampling.top_n_sigma(logits, n))


@pytest.mark.parametrize("size", [5e-324, 1e-300, 1e200, sampling.LARGEST])
def test_top_n_sigma_of_logits_whose_squares_have_no_room(size):
    assert kept(sampling.top_n_sigma(size * np.array([1.0, 0.0, -1.0]), 0.5)) == {0}
    assert kept(sampling.top_n_sigma(size * np.array([1.0, 0.0, -1.0]), 2)) == {0, 1}


def test_top_n_sigma_sees_all_tokens_before_top_k():
    logits = np.array([3.0, 2.0, 1.0, -2.0, -2.0, -2.0])  # sigma is 2.08, and that of the first three 0.82
    assert np.count_nonzero(distribution(logits, Sampling(top_k=3, top_n_sigma=0.6))) == 2
    early = Sampling(top_k=3, top_n_sigma=0.6, steps=("top_k", "top_n_sigma"))
    assert np.count_nonzero(distribution(logits, early)) == 1


# --- penalties ------------------------------------------------------------------------------------------------------


@given(logit_rows, id_lists, st.sampled_from([-0.75, 0.25, 2.0]))
def test_the_frequency_penalty_counts(logits, output, penalty):
    wanted = [x - penalty * output.count(i) for i, x in enumerate(logits)]
    assert np.array_equal(sampling.frequency_penalty(logits, output, penalty), wanted)


def test_the_frequency_penalty_counts_only_the_output():
    how = Sampling(frequency_penalty=np.log(2))
    np.testing.assert_allclose(distribution(np.zeros(3), how, prompt=[0, 0], output=[1, 1]), [4 / 9, 1 / 9, 4 / 9])


@given(logit_rows, id_lists, id_lists, st.integers(1, 15), st.sampled_from([0.7, 1.3]), st.sampled_from([0.0, 0.5]))
def test_a_window_is_as_if_the_rest_had_not_been(logits, prompt, output, window, repetition, presence):
    given_all = [*prompt, *output][-window:]
    wanted = of_hf(RepetitionPenaltyLogitsProcessor(repetition), logits, given_all or [0])
    if not given_all:
        wanted = logits
    last = output[-window:]
    wanted = [x - presence * (i in last) - 0.25 * last.count(i) for i, x in enumerate(wanted)]
    how = Sampling(
        repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=0.25, penalty_window=window
    )
    np.testing.assert_allclose(sampling.penalties(logits, how, prompt, output), wanted, rtol=1e-12, atol=1e-12)


@given(logit_rows, id_lists, id_lists)
def test_no_window_is_all(logits, prompt, output):
    penalties = {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.25}
    all_of_them = Sampling(**penalties, penalty_window=100)
    wanted = distribution(logits, all_of_them, prompt, output)
    assert np.array_equal(distribution(logits, Sampling(**penalties), prompt, output), wanted)


# --- the bias -------------------------------------------------------------------------------------------------------


@given(logit_rows, st.dictionaries(st.integers(0, 1), quarters))
def test_a_bias_is_that_of_hf(logits, bias):
    wanted = logits
    if bias:
        wanted = of_hf(SequenceBiasLogitsProcessor([[[i], x] for i, x in bias.items()]), logits)
    np.testing.assert_allclose(sampling.logit_bias(logits, bias), wanted, atol=1e-5)  # HF keeps it in float32


def test_a_bias_counts_in_every_order_of_steps_and_greedily():
    logits = np.array([3.0, 2.0, 1.0])
    assert np.array_equal(distribution(logits, Sampling(0, logit_bias={0: -1.5})), [0, 1, 0])
    assert np.array_equal(distribution(logits, Sampling(0, logit_bias={0: -np.inf}, steps=())), [0, 1, 0])
    assert np.array_equal(distribution(logits, Sampling(top_k=1, logit_bias={2: 100})), [0, 0, 1])


def test_a_bias_comes_before_penalties():
    """A logit of 1 that is raised to 3 and then halved: the other way round it would be 2.5."""
    how = Sampling(repetition_penalty=2.0, logit_bias={0: 2.0})
    np.testing.assert_allclose(distribution(np.array([1.0, 1.5]), how, [0]), [0.5, 0.5])


def test_a_bias_of_minus_infinity_excludes_and_one_of_minus_100_nearly_does():
    probs = distribution(np.zeros(3), Sampling(logit_bias={0: -np.inf, 1: -100}))
    assert probs[0] == 0
    assert 0 < probs[1] < 1e-43


def test_a_bias_that_excludes_everything_is_an_error():
    with pytest.raises(ValueError, match="the largest of the logits must be finite, got -inf"):
        distribution(np.zeros(2), Sampling(logit_bias={0: -np.inf, 1: -np.inf}))


def test_a_bias_names_tokens_that_there_are():
    with pytest.raises(ValueError, match="logit_bias must name ids below 2, got 2"):
        distribution(np.zeros(2), Sampling(logit_bias={2: 1}))


# --- all ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"frequency_penalty": float("nan")},
        {"frequency_penalty": float("inf")},
        {"penalty_window": -1},
        {"typical_p": 0.0},
        {"typical_p": 1.5},
        {"typical_p": float("nan")},
        {"top_n_sigma": -1.0},
        {"top_n_sigma": float("inf")},
        {"logit_bias": {-1: 0.0}},
        {"logit_bias": {0: float("nan")}},
        {"logit_bias": {0: float("inf")}},
    ],
)
def test_values_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)


extreme = st.sampled_from(
    [-sampling.LARGEST, -1e308, -1e30, -1.0, -0.0, 0.0, 5e-324, 1.0, 1e30, 1e308, sampling.LARGEST, -np.inf]
)


@given(
    st.lists(extreme, min_size=2, max_size=6).filter(lambda row: max(row) > -np.inf),
    st.sampled_from([0.0, 5e-324, 0.6, 1.0, 1e308]),
    st.permutations(sampling.STEPS),
    st.sampled_from([5e-324, 0.5, 1.0]),
    st.sampled_from([0.0, 5e-324, 1.0, 1e308]),
    st.sampled_from([-sampling.LARGEST, -1e308, 0.0, 1.5, sampling.LARGEST]),
    st.sampled_from([-sampling.LARGEST, -100, 0.0, 1e308, sampling.LARGEST]),
    st.integers(0, 3),
)
def test_every_row_with_a_finite_number_gives_a_token(row, heat, steps, typical, sigma, frequency, bias, window):
    """And no warning: warnings are errors in the tests."""
    how = Sampling(
        heat,
        2,
        0.9,
        0.1,
        1.3,
        0.5,
        tuple(steps),
        frequency_penalty=frequency,
        penalty_window=window,
        typical_p=typical,
        top_n_sigma=sigma,
        logit_bias={0: bias},
    )
    probs = distribution(np.array(row), how, [0, 1], [1, 1, 0])
    assert abs(probs.sum() - 1) < 1e-9
    assert np.all(probs >= 0)
    assert np.all(np.array(row)[probs > 0] > -np.inf)


def test_the_input_is_left_alone():
    logits = np.array([1.0, 2.0, 3.0])
    sampling.typical_p(logits, 0.1)
    sampling.top_n_sigma(logits, 0.1)
    sampling.frequency_penalty(logits, [0, 1], 1.5)
    sampling.logit_bias(logits, {0: 1.0})
    assert np.array_equal(logits, [1, 2, 3])
