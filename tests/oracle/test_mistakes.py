"""The oracle on Hugging Face models: right ones pass, and the mistakes of others are found and named."""

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from qwq_ref import oracle
from qwq_ref.config import Config
from qwq_ref.formats import Checkpoint, resolve
from qwq_ref.oracle.adapters.torch_hooks import torch_taps
from qwq_ref.oracle.explain.mistakes import MISTAKES
from qwq_ref.oracle.graph import phases_of
from tests.oracle.test_planted import loud_weights
from tests.support import hf
from tests.support.models import config_values, configs, random_weights
from tests.support.planted import planted
from tests.tools import confusion
from tests.tools.confusion import (
    COLUMNS,
    DTYPES,
    HIDDEN,
    MODES,
    pack,
    seen_in,
    suited,
    verdict,
)

PAGE = confusion.read_page()
NAMES = [mistake.name for mistake in MISTAKES]
ATTENTIONS = ("eager", "sdpa")


# No false alarm.


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", confusion.PACKS)
def test_a_right_model_passes(name, precision, attention):
    case = pack(name)
    report = case.compare(case.run(precision, attention), precision)
    assert report.passed, report
    assert report.counts()["ok"] == len(report.comparison.results), report
    assert bool(report.comparison.missing) == (attention == "sdpa")


# One head of four dimensions: the ways to compute its four numbers happen to agree better than a fifth way does.
FOUR_NUMBERS = config_values(
    vocab_size=64,
    hidden_size=20,
    intermediate_size=33,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=4,
    rms_norm_eps=1e-5,
    rope_theta=100.0,
    max_position_embeddings=4096,
    tie_word_embeddings=False,
    rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
)


@settings(max_examples=settings.default.max_examples // 15)
@given(configs(smallest_head=4), st.integers(0, 1000), st.booleans(), st.sampled_from(ATTENTIONS))
@example(values=FOUR_NUMBERS, seed=1, loud=False, attention="sdpa")
def test_a_right_model_passes_whatever_its_config(tmp_path_factory, values, seed, loud, attention):
    # While it decodes with a window of 1, DynamicSlidingWindowLayer of transformers 5.24 keeps keys[-0:]: all of them.
    assume(not values.get("use_sliding_window") or values.get("sliding_window") != 1)
    config = Config.from_dict(values)
    weights = loud_weights(config) if loud else random_weights(config, seed)
    ids = np.random.default_rng(seed).integers(0, config.V, 22)
    folder = tmp_path_factory.mktemp("packs") / "pack"
    oracle.record(config, weights, folder, ids, 3)
    for precision, dtype in DTYPES.items():
        model = hf.build(config, values, weights, dtype)
        model.set_attn_implementation(attention)
        report = oracle.check(folder, torch_taps(model, phases_of(ids, 3)), model=weights, coverage=False)
        assert report.comparison.precision == precision


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("precision", DTYPES)
def test_qwq_nano_passes(tmp_path, precision, attention):
    import transformers

    folder = resolve("qwq-nano")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=DTYPES[precision], attn_implementation=attention
    ).eval()
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, 24)
    with Checkpoint.open(folder) as checkpoint:
        oracle.record(checkpoint.config, checkpoint, tmp_path / "pack", ids, 3)
    candidate = torch_taps(model, phases_of(ids, 3))
    with_weights = oracle.check(tmp_path / "pack", candidate, model=folder, coverage=False)
    without = oracle.check(tmp_path / "pack", candidate, precision=precision)
    assert with_weights.counts()["ok"] == without.counts()["ok"] == len(candidate.tensors)


# Every mistake is found and named.


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_the_confusion_table_is_true(name, precision):
    """Each cell of docs/confusion.md is true, and the mistake shows where the table of operations predicts it."""
    case = pack(suited(name))
    for mode in MODES:
        cell, report = verdict(name, precision, mode)
        assert cell == PAGE[name, precision, mode], report
        place = case.visible(precision, mode).get(name)
        if cell == HIDDEN:
            assert place is None
        else:
            assert (report.first.phase, report.first.tap) == place, report
            assert cell == "named" or name in cell or mode == "logits", report


def test_the_table_has_nothing_that_is_not_named():
    assert set(PAGE) == {(name, *column) for name in NAMES for column in COLUMNS}
    assert not [key for key, cell in PAGE.items() if cell == "not named"]
    located = [cell for (_, _, mode), cell in PAGE.items() if mode != "logits"]
    assert set(located) == {"named", HIDDEN}


def test_what_no_tensor_shows_is_said_with_what_would():
    case = pack("gqa")
    report = case.compare(case.mistaken("matmul-tf32", "bf16"), "bf16")
    assert report.passed
    assert "matmul-tf32" in report.hidden
    assert "fp32" in str(report).partition("matmul-tf32 ")[2].splitlines()[0]


def test_another_order_of_rounding_is_remarked_upon_but_no_error():
    case = pack("gqa")
    right = case.compare(case.run("bf16"), "bf16", coverage=False)
    report = case.compare(case.mistaken("norm-weight-before-cast", "bf16"), "bf16", coverage=False)
    assert report.passed
    assert not right.comparison.notes
    assert "norm-weight-before-cast" in report.comparison.notes[0]


def test_angles_that_are_multiplied_up(tmp_path):
    """llama.cpp computes angles so. The difference needs QwQ's 64 frequencies and a long prompt to show."""
    values = config_values(num_hidden_layers=1, head_dim=128, rope_theta=1e6)
    config = Config.from_dict(values)
    weights = loud_weights(config)
    ids = np.random.default_rng(0).integers(0, config.V, 300)
    oracle.record(config, weights, tmp_path / "pack", ids, 2, taps=["*rope", "lm_head", "*_proj"])
    model = hf.build(config, values, weights)
    with planted("rope-angles-by-ratio", model, config):
        theirs = torch_taps(model, phases_of(ids, 2), taps=["*.q_rope", "*.k_rope", "*.q_proj", "*.k_proj"])
    report = oracle.compare(tmp_path / "pack", theirs, model=weights)
    assert report.first.tap == "model.layers.0.self_attn.q_rope"
    assert report.cause == "rope-angles-by-ratio"


# A part of the model only.


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "name", ["gelu", "rope-interleaved", "norm-weight-missing", "v-bias-missing", "residual-missing"]
)
def test_in_one_layer_of_several(name, precision):
    case = pack("window")
    report = case.compare(case.mistaken(name, precision, {1}), precision)
    assert report.cause == name, report
    assert report.first.tap.startswith("model.layers.1.")
    assert "in layer 1 only, of 0-2" in str(report)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_in_one_layer_of_many(tmp_path, precision):
    """With 24 layers, the mistake is tried in a few only, and its place is still exact."""
    values = config_values(num_hidden_layers=24)
    config = Config.from_dict(values)
    weights = loud_weights(config)
    ids = np.random.default_rng(0).integers(0, config.V, 12)
    oracle.record(config, weights, tmp_path / "pack", ids, 2)
    model = hf.build(config, values, weights, DTYPES[precision])
    with planted("quick-gelu", model, config, {17}):
        theirs = torch_taps(model, phases_of(ids, 2))
    report = oracle.compare(tmp_path / "pack", theirs, model=weights)
    assert report.first.tap == "model.layers.17.mlp.act"
    assert report.cause == "quick-gelu"
    assert "in layer 17 only, of 0-23" in str(report)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_in_one_head(precision):
    """One query head of ten is not rotated."""
    case = pack("gqa")
    true = hf.modeling_qwen2.apply_rotary_pos_emb

    def wrong(q, k, cos, sin, **kwargs):
        turned, k = true(q, k, cos, sin, **kwargs)
        turned[:, 6] = q[:, 6]
        return turned, k

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf.modeling_qwen2, "apply_rotary_pos_emb", wrong)
        report = case.compare(case.run(precision), precision)
    assert report.first.tap == "model.layers.0.self_attn.q_rope"
    assert report.first.where == "head 6 of 10"
    assert report.cause == "rope-missing"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_where_scores_are_wrong_is_told_in_spite_of_the_mask(precision):
    """Of ten query heads and two key-value heads, the report names exactly the query heads that read a wrong head."""
    report = pack("gqa").compare(seen_in("heads-tiled", precision), precision, coverage=False)
    assert report.first.tap == "model.layers.0.self_attn.scores"
    assert report.first.where == "head 1, 3, 6, 8 of 10"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_in_one_head_of_a_flat_projection(precision):
    case = pack("gqa")
    bias = case.model(precision, "eager").model.layers[1].self_attn.q_proj.bias
    kept = bias.data.clone()
    bias.data[3 * 16 : 4 * 16] = 0
    report = case.compare(case.run(precision), precision)
    bias.data.copy_(kept)
    assert (report.first.tap, report.first.where) == ("model.layers.1.self_attn.q_proj", "head 3 of 10")
    assert report.cause == "q-bias-missing"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_in_decoding_only(precision):
    """The kernel for decoding has a mistake of the MLP; the kernel for prompts has not."""
    case = pack("gqa")
    model = case.model(precision, "eager")
    for layer in model.model.layers:
        true = layer.mlp.act_fn.forward
        layer.mlp.act_fn.forward = lambda x, true=true: true(x) if x.shape[1] > 1 else torch.relu(x)
    report = case.compare(case.run(precision), precision)
    for layer in model.model.layers:
        del layer.mlp.act_fn.forward
    assert (report.first.phase, report.first.tap) == ("decode-0", "model.layers.0.mlp.act")
    assert report.cause == "relu"
    assert "in decoding only" in str(report)


def test_two_mistakes_at_once():
    case = pack("gqa")
    model = case.model("fp32", "eager")
    with planted("q-bias-missing", model, case.config), planted("relu", model, case.config):
        report = case.compare(case.run("fp32"), "fp32")
    assert [cause.mistake.name for cause in report.diagnosis.causes] == ["q-bias-missing", "relu"]
    assert not report.diagnosis.unexplained


# What nobody has thought of.


def silu_like(module, args, y):
    return args[0] * torch.sigmoid(1.3 * args[0])


def too_large(module, args, y):
    return 1.02 * y


def a_channel_lost(module, args, y):
    return y * (torch.arange(y.shape[-1]) != 5)


def noisy(module, args, y):
    return y + 0.05 * torch.sin(97 * y)


STRANGE = {
    silu_like: ("mlp.act_fn", "mlp.act"),
    too_large: ("self_attn.o_proj", "self_attn.o_proj"),
    a_channel_lost: ("mlp.down_proj", "mlp.down_proj"),
    noisy: ("input_layernorm", "input_layernorm"),
}


@pytest.mark.parametrize("mode", ["all taps", "no scores"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("hook", STRANGE)
def test_what_is_not_in_the_catalogue_is_located_and_not_misnamed(hook, precision, mode):
    case = pack("gqa")
    path, tap = STRANGE[hook]
    layer = case.model(precision, "eager").model.layers[1]
    handle = layer.get_submodule(path).register_forward_hook(hook)
    report = case.compare(case.run(precision), precision, mode)
    handle.remove()
    assert report.first.tap == f"model.layers.1.{tap}", report
    assert report.cause is None, report
    assert "unexplained" in str(report)


@pytest.mark.parametrize("hook", STRANGE)
def test_nor_from_logits_alone(hook):
    case = pack("gqa")
    path, _ = STRANGE[hook]
    handle = case.model("fp32", "eager").model.layers[1].get_submodule(path).register_forward_hook(hook)
    report = case.compare(case.run("fp32"), "fp32", "logits")
    handle.remove()
    assert (report.first.tap, report.cause) == ("lm_head", None)


def test_weights_are_needed_to_name_some_causes_and_not_others():
    """Without the model, operations without weights are still judged; the others are located."""
    case = pack("gqa")
    golden = oracle.Golden(case.golden.path, confusion.without_model(case.golden.manifest), case.golden._files)

    def compare(name):
        return oracle.compare(golden, seen_in(name, "fp32"), precision="fp32", verify=False)

    rope = compare("rope-interleaved")
    assert (rope.first.tap, rope.first.status, rope.cause) == (
        "model.layers.0.self_attn.q_rope",
        "introduced",
        "rope-interleaved",
    )
    bias = compare("q-bias-missing")
    assert (bias.first.tap, bias.first.status, bias.cause) == ("model.layers.0.self_attn.q_proj", "beyond", None)
    assert "--model" in str(bias)


def test_the_set_shows_every_mistake_that_a_short_prompt_can_show():
    quiet = [name for name in NAMES if not any(pack(p).visible("fp32", "all taps").get(name) for p in confusion.PACKS)]
    assert quiet == ["rope-angles-by-ratio", "norm-weight-before-cast"]
    assert {suited(name) for name in NAMES} == set(confusion.PACKS)
