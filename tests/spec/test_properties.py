"""Properties that hold for any weights: those that define this architecture, and the cache as a state machine."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qwq_ref.config import Config
from qwq_ref.spec import (
    attention,
    causal_mask,
    crop,
    empty_cache,
    forward,
    rmsnorm,
    rope,
    rope_frequencies,
    rope_tables,
    softmax,
    swiglu,
)
from tests.support.models import (
    config_values,
    configs,
    random_weights,
    token_ids,
)

seeds = st.integers(0, 2**31)
U64 = 2.0**-53


@st.composite
def cases(draw):
    """-> (config, weights, ids), to be run in float64, where only a wrong formula can break a property."""
    values = draw(configs())
    config = Config.from_dict(values)
    return config, random_weights(config, draw(seeds), draw(st.booleans())), draw(token_ids(values, largest=16))


def logits(config, weights, ids, cache=None):
    return forward(config, weights, ids, cache, dtype=np.float64)


def close(a, b, tolerance=1e-9):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1, np.abs(b).max(initial=0)))


@given(cases(), st.data())
def test_causality(case, data):
    """Changing tokens changes nothing before them, to the bit: masked scores are exactly zero in the sums."""
    config, weights, ids = case
    kept = data.draw(st.integers(0, len(ids) - 1))
    other = ids[:kept] + data.draw(
        st.lists(st.integers(0, config.V - 1), min_size=len(ids) - kept, max_size=len(ids) - kept)
    )
    assert np.array_equal(logits(config, weights, ids)[0][:kept], logits(config, weights, other)[0][:kept])


@given(cases(), st.data())
def test_chunked_prefill_and_cache_equal_recomputation(case, data):
    config, weights, ids = case
    whole, whole_cache = logits(config, weights, ids)
    parts, cache = [], None
    while len(parts) < len(ids):
        stop = data.draw(st.integers(len(parts) + 1, len(ids)))
        part, cache = logits(config, weights, ids[len(parts) : stop], cache)
        parts.extend(part)
    close(np.array(parts), whole)
    for ours, theirs in zip(cache, whole_cache, strict=True):
        close(ours[0], theirs[0])
        close(ours[1], theirs[1])


@given(cases())
def test_a_window_of_the_whole_length_is_full_attention(case):
    config, weights, ids = case
    base = {**vars(config), "layer_types": ("sliding_attention",) * config.L}
    wide = Config(**base | {"sliding_window": len(ids)})
    full = Config(**base | {"sliding_window": None, "layer_types": ()})
    assert np.array_equal(logits(wide, weights, ids)[0], logits(full, weights, ids)[0])
    if len(ids) > 2:
        narrow = Config(**base | {"sliding_window": 1})
        assert np.array_equal(logits(narrow, weights, ids)[0][0], logits(full, weights, ids)[0][0])


@given(cases())
def test_gqa_is_mha_with_repeated_key_value_heads(case):
    config, weights, ids = case
    repeated = dict(weights)
    for name, value in weights.items():
        if "k_proj" in name or "v_proj" in name:
            heads = value.reshape(config.K, config.E, *value.shape[1:])
            repeated[name] = np.repeat(heads, config.G, axis=0).reshape(-1, *value.shape[1:])
    mha = Config(**vars(config) | {"num_key_value_heads": config.H})
    close(logits(config, weights, ids)[0], logits(mha, repeated, ids)[0])


@given(cases(), st.randoms())
def test_permuting_key_value_groups_with_the_columns_of_o_proj(case, random):
    config, weights, ids = case
    order = random.sample(range(config.K), config.K)
    permuted = dict(weights)
    for name, value in weights.items():
        for heads, projection in ((config.G, "q_proj"), (1, "k_proj"), (1, "v_proj")):
            if projection in name:
                groups = value.reshape(config.K, heads * config.E, *value.shape[1:])
                permuted[name] = groups[order].reshape(value.shape)
        if "o_proj" in name:
            groups = value.reshape(config.D, config.K, config.G * config.E)
            permuted[name] = groups[:, order].reshape(value.shape)
    close(logits(config, weights, ids)[0], logits(config, permuted, ids)[0])


@given(cases(), st.sampled_from([0.5, np.log(2.0), 2.0]))
def test_swiglu_beta_folds_into_the_weights(case, beta):
    """swish_beta(x) = silu(beta x) / beta, so (W_gate, W_down) of beta is (beta W_gate, W_down / beta) of 1."""
    config, weights, ids = case
    folded = {
        name: value * beta if "gate_proj" in name else value / beta if "down_proj" in name else value
        for name, value in ((n, v.astype(np.float64)) for n, v in weights.items())
    }
    close(
        logits(Config(**vars(config) | {"swiglu_beta": beta}), weights, ids)[0],
        logits(config, folded, ids)[0],
    )


# --- single operations -------------------------------------------------------------------------------------------

vectors = st.integers(0, 2**31).map(lambda seed: np.random.default_rng(seed).standard_normal((2, 3, 8)))


@given(vectors, st.integers(0, 131_000), st.integers(0, 131_000), st.integers(0, 71))
def test_rope_depends_on_relative_position(x, p, q, shift):
    """q.k is unchanged by a common shift, to position * u * inv_freq * |q||k| (the rounding of the angle)."""
    rope_config = Config.from_dict(config_values(rope_theta=1e6)).rope
    inv_freq = rope_frequencies(rope_config, 8)

    def dot(p, q):
        cos, sin = rope_tables(inv_freq, 1.0, np.array([p, q]), np.float64)
        turned = rope(x, cos, sin)
        return np.sum(turned[0] * turned[1], axis=-1)

    size = np.linalg.norm(x[0], axis=-1) * np.linalg.norm(x[1], axis=-1)
    tolerance = (max(p, q) + shift + 10) * 8 * U64 * inv_freq.max() * size
    assert np.all(np.abs(dot(p, q) - dot(p + shift, q + shift)) <= tolerance)


@given(vectors, st.integers(0, 131_000))
def test_rope_preserves_norms(x, position):
    inv_freq = rope_frequencies(Config.from_dict(config_values()).rope, 8)
    cos, sin = rope_tables(inv_freq, 1.0, np.array([position, 0]), np.float64)
    turned = rope(x, cos, sin)
    close(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), 1e-14)
    assert np.array_equal(turned[1], x[1])  # position 0 does not turn


@given(vectors, st.floats(0.1, 1e6))
def test_rmsnorm_forgets_scale(x, c):
    x, w = x[0], np.linspace(-1, 2, 8)
    assume(np.abs(x).max(axis=-1).min() > 0.1)
    close(rmsnorm(c * x, w, 1e-30), rmsnorm(x, w, 1e-30), 1e-13)


@given(vectors, st.floats(-1e3, 1e3))
def test_softmax_forgets_shift(x, c):
    close(softmax(x + c), softmax(x), 1e-12)
    close(softmax(x).sum(-1), 1, 1e-14)


@given(vectors)
def test_attention_is_an_average(x):
    """Equal keys make the plain mean of the visible values; equal values come back as they are."""
    k = np.ones((3, 2, 8))
    v = x.transpose(1, 0, 2)
    q = np.random.default_rng(0).standard_normal((3, 4, 8))
    got = attention(q, k, v, causal_mask(3, 3))
    means = np.cumsum(v, axis=0) / np.arange(1, 4)[:, None, None]
    close(got, np.repeat(means, 2, axis=1), 1e-13)


@pytest.mark.parametrize("size", [1e-45, 1e-30, 1.0, 1e15, 1e18])
def test_sizes_that_must_not_overflow(size):
    """One huge channel, subnormals, and a key bias of +40: finite everywhere, in float32."""
    x = np.zeros((2, 8), np.float32)
    x[:, 3] = size
    assert np.isfinite(rmsnorm(x, np.ones(8, np.float32), 1e-5)).all()
    assert np.isfinite(softmax(x * np.float32(1e12))).all()
    assert np.isfinite(swiglu(-x, np.ones_like(x))).all()


# --- the cache ---------------------------------------------------------------------------------------------------


class CacheMachine(RuleBasedStateMachine):
    """Prefill, decode, crop and fork in any order: a cache is always that of its tokens computed afresh."""

    @initialize(values=configs(), seed=seeds)
    def start(self, values, seed):
        self.config = Config.from_dict(values)
        self.weights = random_weights(self.config, seed)
        self.tokens, self.cache = [], empty_cache(self.config, np.float64)
        self.forks = []

    @rule(data=st.data(), count=st.integers(1, 6))
    @precondition(lambda self: len(self.tokens) < 20)
    def feed(self, data, count):
        new = data.draw(st.lists(st.integers(0, self.config.V - 1), min_size=count, max_size=count))
        before = [(k.copy(), v.copy()) for k, v in self.cache]
        given_cache = self.cache
        got, self.cache = logits(self.config, self.weights, new, self.cache)
        for (k, v), (k0, v0) in zip(given_cache, before, strict=True):  # the given value was not touched
            assert np.array_equal(k, k0)
            assert np.array_equal(v, v0)
        self.tokens = self.tokens + new
        close(got, logits(self.config, self.weights, self.tokens)[0][-count:])

    @rule(data=st.data())
    def roll_back(self, data):
        length = data.draw(st.integers(0, len(self.tokens)))
        self.cache, self.tokens = crop(self.cache, length), self.tokens[:length]

    @rule()
    def fork(self):
        self.forks.append((self.tokens, self.cache))

    @rule(data=st.data())
    @precondition(lambda self: self.forks)
    def switch(self, data):
        self.tokens, self.cache = data.draw(st.sampled_from(self.forks))

    @invariant()
    def length_is_that_of_the_tokens(self):
        for k, v in getattr(self, "cache", ()):
            assert k.shape == v.shape == (len(self.tokens), self.config.K, self.config.E)


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=settings.default.max_examples // 2, stateful_step_count=8)


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [[], [[1, 2]], [1.0], [3, -1], [53, 0], "12", [True]])
def test_ids_that_cannot_be(ids):
    config = Config.from_dict(config_values())
    with pytest.raises(ValueError, match="token_ids"):
        forward(config, random_weights(config, 0), ids)


@pytest.mark.parametrize("dtype", [np.float16, np.int32, "float8"])
def test_dtypes_that_cannot_be(dtype):
    config = Config.from_dict(config_values())
    with pytest.raises((ValueError, TypeError)):
        forward(config, random_weights(config, 0), [1], dtype=dtype)


@pytest.mark.parametrize("length", [-1, 4])
def test_crops_that_cannot_be(length):
    config = Config.from_dict(config_values())
    _, cache = forward(config, random_weights(config, 0), [1, 2, 3])
    with pytest.raises(ValueError, match="crop"):
        crop(cache, length)
