"""Sampling of logits that are not finite, and with the smallest and largest temperatures and penalties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref.config import Config
from qwq_ref.engine.sampler import next_token
from qwq_ref.spec import Sampling, distribution, draw, empty_cache, forward, generate, sampling
from tests.support.models import config_values, random_weights

SMALLEST = 5e-324  # of float64
LARGEST = float(np.finfo(np.float64).max)
WAYS = [
    Sampling(0),
    Sampling(0.6),
    Sampling(0.6, top_k=2, top_p=0.9, min_p=0.1),
    Sampling(0.6, top_k=2, steps=("top_k", "temperature")),
    Sampling(1e-306, repetition_penalty=1.2, presence_penalty=0.5),
    Sampling(steps=()),
]
sizes = pytest.mark.parametrize("size", [5, 2000])  # 2000: the engine looks at the likeliest alone
ways = pytest.mark.parametrize("how", WAYS, ids=range(len(WAYS)))


def rng(seed=0):
    return np.random.Generator(np.random.Philox(seed))


@sizes
@ways
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("at", [0, 3, -1])
def test_no_token_comes_from_a_row_that_is_not_finite(size, how, dtype, bad, at):
    logits = rng().normal(0, 3, size).astype(dtype)
    logits[at] = bad
    words = f"^the largest of the logits must be finite, got {'nan' if np.isnan(bad) else 'inf'}$"
    with pytest.raises(ValueError, match=words):
        distribution(logits, how, [1], [2])
    with pytest.raises(ValueError, match=words):
        next_token(logits, how, [1], [2], 0)
    with pytest.raises(ValueError, match="must be finite"):
        next_token(np.full(size, -np.inf, dtype), how, [1], [2], 0)


@sizes
@ways
def test_a_mask_may_leave_one_token(size, how):
    logits = np.full(size, -np.inf, np.float32)
    for kept in (0, 2, size - 1):
        logits[kept] = -7.5
        assert distribution(logits, how, [1, 2], [2])[kept] == 1
        assert next_token(logits, how, [1, 2], [2], 5) == kept
        logits[kept] = -np.inf


@sizes
@pytest.mark.parametrize("value", [SMALLEST, 1e-320, 1e-308, 1e-306, 1e-300, 1e-15])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 30.0, 1e30, 1e300])
@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_tiny_temperatures_are_greedy(size, value, scale, shift):
    """Also for logits that are all negative, or all positive, and for rows with a mask."""
    logits = (rng(size).normal(0, 1, size) + 10 * shift) * scale
    logits[size // 2] = -np.inf
    for how in (Sampling(value), Sampling(value, 40, 0.95, 0.05), Sampling(value, 40, steps=("top_k", "temperature"))):
        probs = distribution(logits, how)
        assert probs[np.argmax(logits)] == 1
        assert [next_token(logits, how, [0], [], seed) for seed in range(3)] == [np.argmax(logits)] * 3


def test_the_limit_of_temperatures_shares_among_equals():
    assert np.array_equal(distribution(np.array([2.0, -1.0, 2.0]), Sampling(SMALLEST)), [0.5, 0, 0.5])


@pytest.mark.parametrize("value", [1e10, 1e308, LARGEST])
def test_huge_temperatures_make_all_tokens_alike(value):
    logits = np.array([3.0, -40.0, -np.inf, 700.0])
    np.testing.assert_allclose(distribution(logits, Sampling(value)), [1 / 3, 1 / 3, 0, 1 / 3], atol=1e-6)


def test_an_ordinary_temperature_is_a_division():
    logits = rng().normal(0, 10, 100)
    for value in (1e-200, 0.1, 0.6, 1.0, 3.7, 1e9):
        assert np.array_equal(sampling.temperature(logits, value), logits / value)


def test_a_large_negative_number_excludes_as_a_mask_does():
    """Masks are often the lowest number of a type, and not -inf."""
    wanted = distribution(np.array([1.0, 2.0, -np.inf]), Sampling(0.6))
    for lowest in (np.finfo(np.float32).min, -1e30, -LARGEST):
        assert np.array_equal(distribution(np.array([1.0, 2.0, lowest]), Sampling(0.6)), wanted)


extreme = st.sampled_from([-LARGEST, -1e308, -1e30, -1.0, -0.0, 0.0, SMALLEST, 1.0, 1e30, 1e308, LARGEST, -np.inf])


@given(
    st.lists(extreme, min_size=2, max_size=6).filter(lambda row: max(row) > -np.inf),
    st.sampled_from([0.0, SMALLEST, 1e-306, 0.6, 1.0, 1e308, LARGEST]),
    st.sampled_from([SMALLEST, 1e-320, 0.5, 1.0, 1.3, 1e308, LARGEST]),
    st.sampled_from([-LARGEST, -1e308, 0.0, 1.5, 1e308, LARGEST]),
    st.permutations(sampling.STEPS),
    st.sampled_from([0, 1, 3]),
    st.sampled_from([SMALLEST, 0.5, 1.0]),
    st.sampled_from([0.0, SMALLEST, 0.5, 1.0]),
)
def test_every_row_with_a_finite_number_gives_a_token(row, value, repetition, presence, steps, k, p, least):
    """And no warning: warnings are errors in the tests."""
    how = Sampling(value, k, p, least, repetition, presence, tuple(steps))
    probs = distribution(np.array(row), how, [0, 1], [1])
    assert abs(probs.sum() - 1) < 1e-9
    assert np.all(probs >= 0)
    token = draw(probs, rng())
    assert row[token] > -np.inf
    assert next_token(np.array(row), how, [0, 1], [1], 3) in range(len(row))


@pytest.mark.parametrize("probs", [[np.nan, 1], [0, 0], [np.inf, 1], [-1, 0.5], [1e308, 1e308]])
def test_draw_refuses_what_is_no_distribution(probs):
    with (
        np.errstate(over="ignore"),
        pytest.raises(ValueError, match=r"^the sum of probs must be above 0 and finite, got"),
    ):
        draw(np.array(probs), rng())


def test_draw_stays_below_the_sum():
    """The product of the uniform number and a sum of 5e-324 is rounded to the sum."""

    class Highest:
        def random(self):
            return 1 - 2.0**-53

    assert draw(np.array([0.0, SMALLEST, 0.0]), Highest()) == 1
    assert draw(np.array([0.5, 0.5, 0.0]), Highest()) == 1


@pytest.mark.parametrize("tensor", ["model.norm.weight", "lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_generate_takes_no_token_of_a_broken_model(tensor, bad):
    config = Config.from_dict(config_values())
    weights = random_weights(config, 0)
    weights[tensor].flat[1] = bad
    for how in (Sampling(0), Sampling(0.6, 40)):
        with np.errstate(invalid="ignore"), pytest.raises(ValueError, match="must be finite"):
            generate(config, weights, [1, 2], how, rng(), 3)


@pytest.mark.parametrize(
    "dtype", ["bf16", "fp16", "half", "", "nonsense", None, np.float16, np.int64, int, ">f4", object, [], {}, 7]
)
def test_an_unknown_dtype_is_refused_in_one_line(dtype):
    config = Config.from_dict(config_values())
    for call in (
        lambda: forward(config, random_weights(config, 0), [1], dtype=dtype),
        lambda: empty_cache(config, dtype),
    ):
        with pytest.raises(ValueError, match=r'^dtype must be float32, float64, "bfloat16" or "float16", got .*$'):
            call()
