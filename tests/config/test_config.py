"""The real model's numbers, and every spelling of a config that must be read alike."""

import json
import math

import numpy as np
import pytest

from qwq_ref import footprint
from qwq_ref.config import Config
from qwq_ref.spec import rope_frequencies
from tests.support.models import config_values, yarn
from tests.support.paths import QWQ_CONFIG

QWQ = QWQ_CONFIG


@pytest.fixture(scope="module")
def qwq():
    return Config.from_file(QWQ)


def test_qwq_32b(qwq):
    letters = {letter: getattr(qwq, letter) for letter in "DFHKGEVL"}
    assert letters == {"D": 5120, "F": 27648, "H": 40, "K": 8, "G": 5, "E": 128, "V": 152064, "L": 64}
    assert qwq.rms_norm_eps == 1e-5
    assert qwq.rope.theta == 1e6
    assert qwq.rope.type == "default"
    assert all(qwq.window(layer) is None for layer in range(qwq.L))
    assert not qwq.tie_word_embeddings


def test_qwq_32b_counts(qwq):
    shapes = qwq.tensors()
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    assert len(shapes) == 771
    assert sum(sizes.values()) == footprint.parameters(qwq) == 32_763_876_352
    assert sum(size for name, size in sizes.items() if name.startswith("model.layers.0.")) == 487_605_248
    assert sizes["model.embed_tokens.weight"] == sizes["lm_head.weight"] == 778_567_680
    assert sum(size for name, size in sizes.items() if name.endswith("bias")) == 458_752
    assert footprint.weight_bytes(qwq, "bf16") == 65_527_752_704


def test_qwq_32b_costs(qwq):
    assert [footprint.kv_bytes_per_token(qwq, kv) / 1024 for kv in ("fp32", "bf16", "int8")] == [512, 256, 134]
    assert footprint.bytes_read_per_token(qwq, "bf16") == 63_970_627_584
    assert footprint.flops_per_token(qwq, 0) == pytest.approx(63.97e9, rel=1e-4)
    a_token_of_context = footprint.flops_per_token(qwq, 1) - footprint.flops_per_token(qwq, 0)
    assert a_token_of_context == 1_310_720
    assert footprint.flops_per_token(qwq, 0) / a_token_of_context == pytest.approx(48_804, abs=1)
    savings = [footprint.gqa_saving(qwq, context) for context in (8_192, 32_768, 131_072)]
    assert [round(kv, 3) for kv, _ in savings] == [0.8] * 3
    assert [round(step, 3) for _, step in savings] == [0.174, 0.354, 0.592]


@pytest.mark.shared
def test_the_published_list_of_tensors(qwq, shared_data):
    published = json.loads((shared_data / "qwq-32b" / "tensors.json").read_text())
    assert {name: tuple(shape) for name, shape in published["tensors"].items()} == qwq.tensors()
    assert published["bytes"] == footprint.weight_bytes(qwq, "bf16")


@pytest.mark.shared
def test_the_shipped_config_is_the_published_one(shared_data):
    for name in ("config.json", "generation_config.json"):
        assert json.loads((QWQ.parent / name).read_text()) == json.loads((shared_data / "qwq-32b" / name).read_text())


def test_yarn_of_qwq(qwq):
    """cos and sin grow by 1.138629, and the ramp runs between pairs 23 and 40 (23.596 and 39.651 before truncation)."""
    long = qwq.with_rope(
        {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, "test"
    )
    assert long.rope.attention_scaling == pytest.approx(1.138629, abs=1e-6)
    assert long.rope.attention_scaling**2 == pytest.approx(1.296, abs=1e-3)
    assert (qwq.positions, long.positions) == (40_960, 131_072)
    ratio = rope_frequencies(qwq.rope, 128) / rope_frequencies(long.rope, 128)
    assert np.all(ratio[:24] == 1)
    assert np.all((ratio[24:40] > 1) & (ratio[24:40] < 4))
    assert np.allclose(ratio[40:], 4, rtol=1e-6)
    untruncated = qwq.with_rope(
        {
            "rope_theta": 1e6,
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
            "truncate": False,
        },
        "test",
    )
    # One minus the kept share is the ramp, linear in the pair: read its ends back.
    kept = 1 / ratio_of(qwq, untruncated)
    ramp = (1 - kept) / (1 - 1 / 4)
    slope = ramp[31] - ramp[30]
    assert 30 - ramp[30] / slope == pytest.approx(23.596, abs=2e-3)
    assert 30 + (1 - ramp[30]) / slope == pytest.approx(39.651, abs=2e-3)


def ratio_of(plain, scaled):
    return rope_frequencies(plain.rope, 128).astype(np.float64) / rope_frequencies(scaled.rope, 128)


def test_spellings_of_yarn():
    by_type = yarn()
    by_type["type"] = by_type.pop("rope_type")
    spellings = [
        config_values(rope_scaling=yarn()),
        config_values(rope_scaling=by_type),
        config_values(rope_theta=None, rope_parameters=yarn(rope_theta=10_000.0)),
        config_values(rope_parameters=yarn()),
        config_values(rope_scaling=yarn(original_max_position_embeddings=None), original_max_position_embeddings=16),
        config_values(rope_scaling=yarn(factor=None), max_position_embeddings=64),
    ]
    ropes = {Config.from_dict(values).rope for values in spellings}
    assert len(ropes) == 1
    assert ropes.pop().factor == 4


def test_a_window_is_off_unless_the_config_says_so():
    assert Config.from_dict(config_values(sliding_window=8)).window(1) is None
    assert Config.from_dict(config_values(sliding_window=8, use_sliding_window=False)).window(1) is None
    on = config_values(sliding_window=8, use_sliding_window=True, max_window_layers=1)
    assert [Config.from_dict(on).window(layer) for layer in range(2)] == [None, 8]
    listed = on | {"layer_types": ["sliding_attention", "full_attention"]}
    assert [Config.from_dict(listed).window(layer) for layer in range(2)] == [8, None]


def test_tied_heads_have_no_tensor_of_their_own():
    untied, tied = (Config.from_dict(config_values(tie_word_embeddings=tie)) for tie in (False, True))
    assert set(untied.tensors()) - set(tied.tensors()) == {"lm_head.weight"}
    assert tied.head_name == "model.embed_tokens.weight"
    assert footprint.bytes_read_per_token(tied, "bf16") == footprint.weight_bytes(tied, "bf16")
    assert footprint.flops_per_token(tied, 5) == footprint.flops_per_token(untied, 5)
