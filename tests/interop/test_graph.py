"""The taps in recorded graphs of llama.cpp. These tests need no llama.cpp."""

import dataclasses

import numpy as np
import pytest

from qwq_ref import spec
from qwq_ref.errors import GoldenError
from qwq_ref.interop.llama_cpp.graph import Node, taps_of
from qwq_ref.oracle.adapters.candidate import fit
from qwq_ref.oracle.graph import Phase, letters, shape_of
from tests.support.llama_graphs import (
    FLASHES,
    GRAPHS,
    SCALE,
    T,
    config_of,
    expected_taps,
    graph,
    tap_values,
    values_of,
)


@pytest.mark.parametrize("name", GRAPHS)
def test_every_tap_is_found(name):
    config = config_of(name)
    found = tap_values(name)
    assert sorted(found) == sorted(expected_taps(config, name in FLASHES))
    for tap, value in found.items():
        value, last = fit(value, shape_of(tap, config, Phase("prompt", 0, (0,) * T)))
        behind_the_last_attention = tap.startswith(f"model.layers.{config.L - 1}.") and tap.split(".", 3)[3].startswith(
            ("resid_mid", "resid_post", "post_", "mlp")
        )
        assert last == (behind_the_last_attention or tap in ("model.norm", "lm_head")), tap
        assert value.shape[letters(tap).index("T")] == (1 if last else T)


@pytest.mark.parametrize("name", GRAPHS)
def test_nothing_is_unknown(name):
    taps = taps_of(graph(name), T, T)
    assert taps.unknown == ()
    assert [note for note in taps.notes if "rows" in note]


@pytest.mark.parametrize(
    ("name", "places"),
    [
        (
            "now",
            "embed_tokens 0, 0.resid_pre 0, 0.input_layernorm 2, 0.self_attn.q_matmul 3, 0.self_attn.q_proj 4, "
            "0.self_attn.q_rope 6, 0.self_attn.v_matmul 7, 0.self_attn.v_proj 8, 0.self_attn.k_matmul 10, "
            "0.self_attn.k_proj 11, 0.self_attn.k_rope 13, 0.self_attn.heads 31, 0.self_attn.o_proj 32, "
            "0.resid_mid 33, 0.post_attention_layernorm 35, 0.mlp.gate_proj 36, 0.mlp.up_proj 37, 0.mlp.act 38, "
            "0.mlp.down_proj 39, 0.resid_post 40, 1.resid_pre 40, 1.self_attn.k_rope 53, 1.self_attn.o_proj 71, "
            "1.resid_mid 74, 1.resid_post 81, model.norm 83, lm_head 84",
        ),
        ("flash", "0.self_attn.heads 24, 0.self_attn.o_proj 26"),
        ("fused", "0.self_attn.q_matmul 3, 0.self_attn.v_proj 4, 0.self_attn.q_rope 6, 0.self_attn.k_rope 9"),
        ("middle", "0.self_attn.q_matmul 3, 0.self_attn.heads 28, 0.self_attn.o_proj 29, 0.mlp.act 38"),
        ("old", "0.self_attn.heads 26, 0.self_attn.o_proj 27, 0.mlp.up_proj 35, 0.mlp.act 36"),
        ("old flash", "0.self_attn.heads 21, 0.self_attn.o_proj 23"),
    ],
)
def test_each_is_the_right_one(name, places):
    found = tap_values(name)
    for item in places.split(", "):
        end, place = item.split(" ")
        tap = next(tap for tap in found if tap.endswith(end))
        np.testing.assert_array_equal(found[tap], int(place), err_msg=tap)


@pytest.mark.parametrize("name", ["now", "middle", "old", "fused"])
def test_scores_are_scaled_and_masked_and_cropped(name):
    nodes = graph(name)
    softmax = next(node for node in nodes if node.op == "SOFT_MAX")
    found = tap_values(name)
    wanted = np.where(spec.causal_mask(T, T), softmax.inputs[0] * SCALE, -np.inf)
    np.testing.assert_array_equal(found["model.layers.0.self_attn.scores"], np.broadcast_to(wanted, (4, T, T)))
    assert found["model.layers.0.self_attn.probs"].shape == (4, T, T)


def test_a_fused_product_is_cut_in_three():
    nodes = graph("fused")
    arrays = values_of(nodes)
    arrays[3][...] = np.arange(256)
    recipes = taps_of(nodes, T, T).recipes
    for letter, start, stop in (("q", 0, 128), ("k", 128, 192), ("v", 192, 256)):
        sources, how = recipes[f"model.layers.0.self_attn.{letter}_matmul"]
        np.testing.assert_array_equal(how(*(arrays[i] for i in sources)), np.tile(np.arange(start, stop), (T, 1)))


def test_a_tensor_copied_to_another_device_is_the_same_tensor():
    """The scheduler renames copies: "CUDA0#ffn_inp-0#0". Of the three that are called Qcur-0 the last one is copied."""
    nodes = graph("now")

    def copied(node):
        names = (source if isinstance(source, str) else nodes[source].name for source in node.inputs)
        return dataclasses.replace(node, inputs=tuple(f"CUDA0#{name}#0" for name in names))

    far = [
        copied(node) if node.op in ("MUL_MAT", "MUL", "SWIGLU") and node.name[:2] != "kq" else node for node in nodes
    ]
    here, there = tap_values("now"), tap_values("now", far)
    assert here.keys() == there.keys()
    for tap, value in here.items():
        np.testing.assert_array_equal(there[tap], value, err_msg=tap)


@pytest.mark.parametrize(
    ("name", "weights", "cache", "before", "after"),
    [
        ("now", "f32", "f32", "fp32", "fp32"),
        ("now", "f32", "f16", "fp32", "fp16"),
        ("now", "f16", "f32", "fp16", "fp16"),
        ("now", "bf16", "f16", "bf16", "bf16"),
        ("now", "q4_K", "f16", "bf16", "bf16"),
        ("flash", "f32", "f16", "fp32", "fp16"),
        ("old", "f32", "f16", "fp32", "fp16"),
    ],
)
def test_precision_is_that_of_the_coarsest_product_so_far(name, weights, cache, before, after):
    taps = taps_of(graph(name, weights, cache), T, T)
    assert taps.precision["model.layers.0.input_layernorm"] == "fp32"
    assert taps.precision["model.layers.0.self_attn.k_rope"] == before
    assert taps.precision["model.layers.0.self_attn.heads"] == after
    assert taps.precision["lm_head"] == after
    assert any(cache in note for note in taps.notes) == (cache != "f32")
    assert any(f"weights are {weights}" in note for note in taps.notes) == (weights != "f32")


def test_two_batches_are_not_one():
    with pytest.raises(GoldenError, match=r"here: model.*computed twice.*n_ubatch"):
        taps_of([*graph("now"), *graph("now")], T, T, "here")


def test_what_is_not_of_the_model_is_named():
    extra = Node(
        "adapter-0", "MUL_MAT", "f32", (128, 5, 1, 1), ("blk.0.adapter.weight", 2), ("f32", "f32"), stored=True
    )
    assert taps_of([*graph("now"), extra], T, T).unknown == ("adapter-0",)
