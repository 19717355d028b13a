"""The table of operations is bit-identical to the spec, in every arithmetic."""

import math

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwq_ref.config import Config
from qwq_ref.oracle.distance import error
from qwq_ref.oracle.graph import (
    UNIT,
    Arithmetic,
    phases_of,
    shape_of,
    tap_names,
)
from qwq_ref.oracle.walk import Stream, Weights, walk
from qwq_ref.spec.ops import to_bf16, to_fp16
from tests.support.models import (
    config_values,
    configs,
    random_weights,
    token_ids,
)
from tests.support.packs import (
    seeds,
    spec_run,
)

EXACT = {
    np.float64: Arithmetic(np.float64),
    np.float32: Arithmetic(np.float32),
    "bfloat16": Arithmetic(np.float32, to_bf16),
    "float16": Arithmetic(np.float32, to_fp16),
}
ONE_BLOCK = 1 << 30

# With seed 1, the one score of a step of decoding is 3e-7: its two products cancel.
CANCELS = config_values(
    vocab_size=64,
    hidden_size=26,
    intermediate_size=46,
    num_hidden_layers=2,
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=2,
    rms_norm_eps=0.001,
    rope_theta=100.0,
    use_sliding_window=True,
    sliding_window=1,
    max_window_layers=1,
)


def table_run(config, weights, phases, block_bytes=ONE_BLOCK, digest=False):
    """Walk the table -> ([{phase: {tap: array}}] of EXACT, the reader of weights)"""
    seen = [{phase.name: {} for phase in phases} for _ in EXACT]

    def visit(p, tap, results):
        assert set(results) == set(range(len(EXACT)))
        for s, value in results.items():
            seen[s][phases[p].name][tap] = value

    reader = Weights(weights, block_bytes, digest)
    with np.errstate(all="ignore"):  # float16 may overflow, in both alike
        walk(config, phases, [Stream(arithmetic) for arithmetic in EXACT.values()], reader, visit)
    return seen, reader


@given(configs(), seeds, st.booleans(), st.data())
def test_the_table_is_the_spec_to_the_bit(values, seed, harsh, data):
    config = Config.from_dict(values)
    weights = random_weights(config, seed, harsh)
    phases = phases_of(data.draw(token_ids(values, largest=12)), 0)
    ours, _ = table_run(config, weights, phases)
    for (dtype, arithmetic), seen in zip(EXACT.items(), ours, strict=True):
        with np.errstate(all="ignore"):
            taps = spec_run(config, weights, phases, dtype)["prompt"]
        assert list(seen["prompt"]) == tap_names(config)
        assert set(taps) == set(tap_names(config))
        for tap, value in seen["prompt"].items():
            assert value.dtype == arithmetic.dtype, tap
            assert value.shape == shape_of(tap, config, phases[0]), tap
            assert np.array_equal(value, taps[tap], equal_nan=True), (dtype, tap)


@given(configs(smallest_head=4), seeds, st.integers(1, 4), st.data())
def test_steps_of_decoding_are_the_specs_to_rounding(values, seed, decode, data):
    """All phases share one matrix product, so sums may run in another order."""
    config = Config.from_dict(values)
    weights = random_weights(config, seed)
    ids = data.draw(st.lists(st.integers(0, config.V - 1), min_size=decode + 1, max_size=12))
    phases = phases_of(ids, decode)
    ours, _ = table_run(config, weights, phases)
    theirs = [spec_run(config, weights, phases, dtype) for dtype in EXACT]
    for phase in phases:
        for tap, right in theirs[0][phase.name].items():
            assert error(ours[0][phase.name][tap], right) <= 1e-10, (phase, tap)  # a score may cancel to nothing
    for s, (unit, arithmetic) in enumerate(zip(UNIT.values(), list(EXACT.values())[1:], strict=True), start=1):
        ratios = []
        for tap in tap_names(config):
            right, a, b = (
                np.concatenate([run[p.name][tap].ravel() for p in phases]) for run in (theirs[0], theirs[s], ours[s])
            )
            assert b.dtype == arithmetic.dtype
            assert np.array_equal(arithmetic.rnd(b), b), tap
            ratios.append(error(b, right) / max(unit, error(a, right)))
        assert np.median(ratios) <= 3


@settings(max_examples=settings.default.max_examples // 3)
@given(configs(), seeds, st.sampled_from([1, 100, 1000, 5000]))
@example(CANCELS, 1, 1)
def test_blocks_change_nothing_but_rounding(values, seed, block_bytes):
    config = Config.from_dict(values)
    weights = random_weights(config, seed)
    phases = phases_of([1, 2, 3, 4, 5], 2)
    whole, all_at_once = table_run(config, weights, phases, digest=True)
    parts, in_blocks = table_run(config, weights, phases, block_bytes, digest=True)
    for tap in tap_names(config):
        for phase in phases:
            for ours, right, most in ((parts[0], whole[0], 1e-13), (parts[1], whole[1], 1e-4)):
                found, wanted = ours[phase.name][tap], right[phase.name][tap]
                if tap.endswith(".scores"):  # a product may cancel to nothing: judged by the lengths of its factors
                    q, k = (right[phase.name][tap.replace("scores", f"{name}_rope")] for name in "qk")
                    size = np.linalg.norm(q, axis=-1).max() * np.linalg.norm(k, axis=-1).max() / math.sqrt(config.E)
                    seen = np.isfinite(wanted)
                    assert np.array_equal(seen, np.isfinite(found)), tap
                    assert np.abs(found[seen] - wanted[seen]).max() <= most * size, tap
                else:
                    assert error(found, wanted) <= most, tap
    assert in_blocks.digests == all_at_once.digests
    assert set(in_blocks.digests) == set(config.tensors())
