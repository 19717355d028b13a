"""The spec against Hugging Face: every tap of every block, in three precisions.

Both sides are compared with the spec in float64, which is itself compared with HF patched to compute in float64.
"""

import numpy as np
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from qwq_ref.config import Config
from qwq_ref.spec import forward, rope_frequencies, rope_tables
from tests.support import hf
from tests.support.models import (
    config_values,
    configs,
    random_weights,
    token_ids,
    yarn,
)

seeds = st.integers(0, 2**31)
U = 2.0**-24  # unit roundoff of float32


@st.composite
def cases(draw, **kwargs):
    values = draw(configs(**kwargs))
    return values, draw(token_ids(values)), draw(seeds)


def both(values, ids, seed, harsh=False):
    """-> (config, weights, HF's taps, the spec's taps, the spec's cache), in float32"""
    config = Config.from_dict(values)
    weights = random_weights(config, seed, harsh)
    theirs, _ = hf.taps(hf.build(config, values, weights), ids)
    ours, cache = hf.spec_taps(forward, config, weights, ids)
    return config, weights, theirs, ours, cache


@given(cases(smallest_head=8))
def test_every_tap_at_hf_initialisation(case):
    config, _, theirs, ours, cache = both(*case)
    for name, error in hf.errors(config, ours, theirs, cache).items():
        assert error <= 1e-11, name


@settings(max_examples=settings.default.max_examples // 20 + 10)  # each is 12
@given(configs(), seeds)
def test_every_tap_on_harsh_weights_is_as_near_the_truth_as_hf(values, seed):
    """The distance of the spec from float64 may be at most 4 x that of HF.

    Harsh weights amplify rounding by chance: on one draw, two correct implementations differ by 20 x in either
    direction. So the test compares geometric means over 12 draws of weights and ids. Errors below one rounding of the
    result count as one.
    """
    logs = {}
    for draw in range(seed, seed + 12):
        ids = np.random.default_rng(draw).integers(0, values["vocab_size"], 10)
        config, weights, theirs, ours, _ = both(values, ids, draw, harsh=True)
        truth, cache = hf.spec_taps(forward, config, weights, ids, dtype=np.float64)
        ours, theirs = (hf.errors(config, truth, taps, cache) for taps in (ours, theirs))
        for name in ours:
            logs.setdefault(name, []).append(np.log(max(ours[name], U**2) / max(theirs[name], U**2)))
    for name, values in logs.items():
        assert np.exp(np.mean(values)) <= 4, name


@given(cases(), st.booleans())
def test_float64_is_the_truth(case, harsh):
    values, ids, seed = case
    config = Config.from_dict(values)
    weights = random_weights(config, seed, harsh)
    ours, cache = hf.spec_taps(forward, config, weights, ids, dtype=np.float64)
    with hf.in_float64(hf.build(config, values, weights)) as model:
        theirs, _ = hf.taps(model, ids)
    for name, error in hf.errors(config, ours, theirs, cache).items():
        assert ours[name].dtype == theirs[name].dtype == np.float64, name
        assert error <= 1e-22, name


@given(cases(smallest_head=8), st.data())
def test_prompt_then_decode_with_a_cache(case, data):
    values, ids, seed = case
    assume(values.get("sliding_window") != 1)  # HF's sliding cache keeps the last W - 1 keys as [-W + 1:], all at W = 1
    config = Config.from_dict(values)
    weights = random_weights(config, seed)
    model = hf.build(config, values, weights)
    ours = theirs = None
    start = 0
    while start < len(ids):
        stop = data.draw(st.integers(start + 1, len(ids)))
        chunk_theirs, theirs = hf.taps(model, ids[start:stop], theirs)
        chunk_ours, ours = hf.spec_taps(forward, config, weights, ids[start:stop], ours)
        for name, error in hf.errors(config, chunk_ours, chunk_theirs, ours).items():
            assert error <= 1e-11, (name, start, stop)
        start = stop


def test_64_layers():
    values = config_values(
        num_hidden_layers=64, hidden_size=64, head_dim=16, num_attention_heads=5, num_key_value_heads=1
    )
    for seed in range(3):
        ids = np.random.default_rng(seed).integers(0, 53, 40)
        config, _, theirs, ours, cache = both(values, ids, seed)
        for name, error in hf.errors(config, ours, theirs, cache).items():
            assert error <= 1e-8, name
        logits_ours, logits_theirs = ours["lm_head"], theirs["lm_head"]
        top2 = np.sort(logits_theirs, axis=-1)[:, -2:]
        clear = top2[:, 1] - top2[:, 0] > 2 * np.abs(logits_ours - logits_theirs).max(axis=-1)
        assert clear.mean() > 0.9
        assert np.array_equal(logits_ours.argmax(-1)[clear], logits_theirs.argmax(-1)[clear])


def hf_rope(values):
    return Qwen2RotaryEmbedding(Qwen2Config(**values))


def test_far_positions_under_yarn():
    """QwQ's own RoPE up to the last of 131,072 positions: the same float32 angles as HF, so the same tables."""
    scaling = yarn(original_max_position_embeddings=32768)
    values = config_values(head_dim=128, rope_theta=1e6, max_position_embeddings=131_072, rope_scaling=scaling)
    config = Config.from_dict(values)
    positions = np.array([0, 1, 32767, 32768, 99_999, 131_071])
    inv_freq = rope_frequencies(config.rope, config.E)
    theirs = hf_rope(values)
    theirs.inv_freq = torch.from_numpy(inv_freq)
    wanted = theirs(torch.zeros(1), torch.from_numpy(positions)[None])
    got = rope_tables(inv_freq, config.rope.attention_scaling, positions, np.float32)
    for ours, hfs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(ours, hfs[0].numpy(), rtol=0, atol=3e-7)


@given(
    theta=st.sampled_from([100.0, 1e4, 1e6, 5e6]),
    E=st.sampled_from([2, 8, 18, 64, 128]),
    original=st.sampled_from([2, 4, 16, 512, 4096, 32768]),
    scaling=st.fixed_dictionaries(
        {},
        optional={
            "factor": st.sampled_from([1.0, 1.5, 40.0]),
            "beta_fast": st.sampled_from([4.0, 1.5, 64.0]),
            "beta_slow": st.sampled_from([0.5, 1.5]),
            "truncate": st.booleans(),
            "attention_factor": st.sampled_from([0.5, 1.3]),
            "mscale": st.sampled_from([0.5, 1.3]),
            "mscale_all_dim": st.sampled_from([0.5, 1.0]),
        },
    ),
    plain=st.booleans(),
)
@example(100.0, 64, 32768, {"beta_fast": 64.0, "beta_slow": 0.5}, False)  # the ramp's end beyond the last pair
@example(1e4, 8, 4, {}, False)  # a ramp without a length
def test_rope_frequencies(theta, E, original, scaling, plain):
    """Bits: equal to HF's buffer wherever HF's own power is correctly rounded, and within a few ulp elsewhere.

    A ramp that cancels (1 - 0.999...) turns one ulp of a frequency into a few.
    """
    values = config_values(head_dim=E, rope_theta=theta)
    if not plain:
        values["rope_scaling"] = yarn(original_max_position_embeddings=original, **scaling)
    rope = Config.from_dict(values).rope
    theirs = hf_rope(values)
    assert rope.attention_scaling == theirs.attention_scaling
    ours, buffer = rope_frequencies(rope, E), theirs.inv_freq.numpy()
    assert ours.dtype == buffer.dtype == np.float32
    exponents = torch.arange(0, E, 2, dtype=torch.float) / E
    correct = np.power(theta, exponents.double().numpy()).astype(np.float32)
    same = (theta**exponents).numpy() == correct
    assert np.array_equal(ours[same], buffer[same])
    np.testing.assert_allclose(ours, buffer, rtol=4 * U)
