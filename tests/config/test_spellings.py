"""Configs as other programs and people write them: read as Hugging Face computes them, or refused for two meanings."""

import functools
import json

import numpy as np
import pytest
import torch
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from qwq_ref.config import Config, Rope
from qwq_ref.errors import ConfigError
from qwq_ref.spec import rope_frequencies
from tests.support import refusals
from tests.support.models import config_values, yarn

refused = functools.partial(refusals.refused, ConfigError, 400)
THETA = 1e6
FULL, SLIDING = "full_attention", "sliding_attention"
PLAIN = {"rope_theta": THETA, "rope_type": "default"}  # as transformers 5 writes it


def config_of(**changes):
    """A config.json of transformers 5: no `rope_theta` at the top level, unless `changes` has it."""
    values = config_values(**changes)
    if "rope_theta" not in changes:
        del values["rope_theta"]
    return values


LONG = Rope(theta=THETA, type="yarn", factor=4.0, original_max_position_embeddings=16)
READ = {
    "transformers 5": (config_of(rope_parameters=PLAIN), Rope(THETA)),
    "no type": (config_of(rope_parameters={"rope_theta": THETA}), Rope(THETA)),
    "an integer theta": (config_of(rope_parameters={"rope_theta": 1_000_000}), Rope(THETA)),
    "added by hand": (config_of(rope_parameters=PLAIN, rope_scaling=yarn()), LONG),
    "added by hand, old spelling": (
        config_of(
            rope_parameters=PLAIN, rope_scaling={"type": "yarn", "factor": 4, "original_max_position_embeddings": 16}
        ),
        LONG,
    ),
    "rope_type null": (config_of(rope_theta=THETA, rope_scaling=yarn(rope_type=None, type="yarn")), LONG),
    "a length with a point": (
        config_of(rope_theta=THETA, rope_scaling=yarn(original_max_position_embeddings=16.0)),
        LONG,
    ),
    "the same YaRN twice": (config_of(rope_parameters=PLAIN | yarn(), rope_scaling=yarn(type="yarn")), LONG),
    "theta twice, equal": (config_of(rope_theta=THETA, rope_parameters=PLAIN), Rope(THETA)),
    "theta twice, different": (config_of(rope_theta=5.0, rope_parameters=PLAIN), Rope(THETA)),
    "theta inside null": (config_of(rope_theta=THETA, rope_parameters=PLAIN | {"rope_theta": None}), Rope(THETA)),
    "theta outside null": (config_of(rope_theta=None, rope_parameters=PLAIN), Rope(THETA)),
    "scaling null": (config_of(rope_scaling=None, rope_parameters=PLAIN), Rope(THETA)),
    "scaling empty": (config_of(rope_scaling={}, rope_parameters=PLAIN), Rope(THETA)),
    "parameters null": (config_of(rope_theta=THETA, rope_parameters=None, rope_scaling=yarn()), LONG),
    "by layer type": (config_of(rope_parameters={FULL: PLAIN | yarn()}), LONG),
    "by layer type, theta outside": (config_of(rope_theta=THETA, rope_parameters={FULL: yarn()}), LONG),
    "an unused layer type": (config_of(rope_parameters={FULL: PLAIN, SLIDING: {"rope_type": "linear"}}), Rope(THETA)),
    "an unused layer type, null": (config_of(rope_parameters={FULL: PLAIN, SLIDING: None}), Rope(THETA)),
    "two equal layer types": (
        config_of(rope_parameters={FULL: PLAIN, SLIDING: PLAIN}, layer_types=[FULL, SLIDING], use_sliding_window=True),
        Rope(THETA),
    ),
    "an unknown field of no near name": (config_of(rope_theta=THETA, rope_scaling=yarn(finetuned=True)), LONG),
}


@pytest.mark.parametrize("case", READ)
def test_rope_is_read(case):
    values, rope = READ[case]
    assert Config.from_dict(values).rope == rope


# Where the reference reads something else, or nothing.
NOT_AS_THERE = {
    "added by hand": "it drops rope_theta",
    "added by hand, old spelling": "it drops rope_theta",
    "the same YaRN twice": "it drops rope_theta",
    "rope_type null": "it fails",
    "theta inside null": "it fails",
    "by layer type": "its Qwen2 fails",
    "by layer type, theta outside": "its Qwen2 fails",
    "an unused layer type": "its Qwen2 fails",
    "an unused layer type, null": "its Qwen2 fails",
    "two equal layer types": "its Qwen2 fails",
}


@pytest.mark.parametrize("case", [case for case in READ if not NOT_AS_THERE.get(case)])
def test_rope_is_that_of_hugging_face(case):
    values, _ = READ[case]
    config = Config.from_dict(values)
    theirs = Qwen2RotaryEmbedding(Qwen2Config(**json.loads(json.dumps(values))))
    assert theirs.attention_scaling == config.rope.attention_scaling
    assert np.allclose(theirs.inv_freq.numpy(), rope_frequencies(config.rope, config.E), rtol=1e-6)
    assert theirs.inv_freq.dtype == torch.float32


REFUSED = {
    "two YaRNs": (
        {"rope_parameters": PLAIN | yarn(), "rope_scaling": yarn(factor=2.0)},
        "rope_scaling",
        "differs from rope_parameters: keep one of them",
    ),
    "two YaRNs, a field of one": (
        {"rope_parameters": PLAIN | yarn(beta_fast=64), "rope_scaling": yarn()},
        "rope_scaling",
        "differs from",
    ),
    "YaRN there, none here": (
        {"rope_parameters": PLAIN | yarn(), "rope_scaling": {"type": "default"}},
        "rope_scaling",
        "differs from",
    ),
    "a type that is not known, there": (
        {"rope_parameters": PLAIN | {"rope_type": "linear", "factor": 2.0}, "rope_scaling": yarn()},
        "rope_parameters.rope_type",
        "unknown type 'linear'",
    ),
    "no type, but a factor": (
        {"rope_theta": THETA, "rope_scaling": {"factor": 4.0}},
        "rope_scaling.rope_type",
        "is missing, although factor is given",
    ),
    "no type, but a length": (
        {"rope_theta": THETA, "rope_parameters": {"original_max_position_embeddings": 16}},
        "rope_parameters.rope_type",
        "is missing, although original_max_position_embeddings is given",
    ),
    "a factor in quotes": (
        {"rope_theta": THETA, "rope_scaling": yarn(factor="4.0")},
        "rope_scaling.factor",
        "must be a number, got '4.0'",
    ),
    "theta in quotes": ({"rope_parameters": {"rope_theta": "1e6"}}, "rope_parameters.rope_theta", "must be a number"),
    "no theta anywhere": ({"rope_scaling": yarn()}, "rope_theta", "is missing"),
    "an impossible theta": ({"rope_parameters": {"rope_theta": 1}}, "rope_parameters.rope_theta", "must be > 1"),
    "a length with a half": (
        {"rope_theta": THETA, "rope_scaling": yarn(original_max_position_embeddings=16.5)},
        "rope_scaling.original_max_position_embeddings",
        "must be an integer",
    ),
    "a misspelt field": (
        {"rope_theta": THETA, "rope_scaling": yarn(original_max_position_embedding=32)},
        "rope_scaling.original_max_position_embedding",
        "does not exist; is original_max_position_embeddings meant?",
    ),
    "a misspelt block": (
        {"rope_theta": THETA, "rope_scalling": yarn()},
        "rope_scalling",
        "does not exist; is rope_scaling meant?",
    ),
    "a misspelt block of transformers 5": (
        {"rope_theta": THETA, "rope_parameter": yarn()},
        "rope_parameter",
        "does not exist; is rope_parameters meant?",
    ),
    "truncate null": (
        {"rope_theta": THETA, "rope_scaling": yarn(truncate=None)},
        "rope_scaling.truncate",
        "must be true or false",
    ),
    "layer types that differ": (
        {
            "rope_parameters": {FULL: PLAIN, SLIDING: PLAIN | {"rope_theta": 1e4}},
            "layer_types": [FULL, SLIDING],
            "use_sliding_window": True,
        },
        "rope_parameters",
        "differs between full_attention and sliding_attention",
    ),
    "no block for a layer type": (
        {"rope_parameters": {SLIDING: PLAIN}},
        "rope_parameters.full_attention",
        "is missing",
    ),
    "a block that is no object": (
        {"rope_parameters": {FULL: 1}},
        "rope_parameters.full_attention",
        "must be an object",
    ),
    "blocks and fields": (
        {"rope_parameters": {FULL: PLAIN, "rope_theta": THETA}},
        "rope_parameters.rope_theta",
        "stands beside blocks of layer types",
    ),
    "blocks and rope_scaling": (
        {"rope_parameters": {FULL: PLAIN}, "rope_scaling": yarn()},
        "rope_scaling",
        "beside rope_parameters of layer types",
    ),
    "an error inside a block": (
        {"rope_parameters": {FULL: PLAIN | yarn(factor=0.5)}},
        "rope_parameters.full_attention.factor",
        "must be >= 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rope_of_two_meanings_or_none(case):
    changes, field, words = REFUSED[case]
    refused(lambda: Config.from_dict(config_of(**changes), "config.json"), "config.json", field, words)


# --- the window ---

WINDOWS = {
    "absent": {},
    "null": {"sliding_window": None},
    "given": {"sliding_window": 8},
    "layers given": {"sliding_window": 8, "max_window_layers": 1},
    "layers absent": {"sliding_window": 8, "num_hidden_layers": 30},
    "window absent": {"num_hidden_layers": 30},
    "no layers full": {"sliding_window": 8, "max_window_layers": 0},
    "listed": {"sliding_window": 8, "layer_types": [SLIDING, FULL]},
    "listed, window absent": {"layer_types": [SLIDING, FULL]},
    "off": {"sliding_window": 8, "use_sliding_window": False, "max_window_layers": 0},
    "off, listed": {"sliding_window": 8, "use_sliding_window": False, "layer_types": [FULL, FULL]},
}


@pytest.mark.parametrize("case", WINDOWS)
def test_the_window_of_each_layer_is_that_of_hugging_face(case):
    values = config_values(**{"use_sliding_window": True} | WINDOWS[case])
    theirs = Qwen2Config(**json.loads(json.dumps(values)))
    config = Config.from_dict(values)
    windows = [theirs.sliding_window if kind == SLIDING else None for kind in theirs.layer_types]
    assert [config.window(layer) for layer in range(config.L)] == windows


# --- other fields ---


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": []},
        {"architectures": ["Qwen2Model"]},
        {"hidden_act": "swish"},
        {"is_causal": True},
        {"dtype": "bfloat16", "torch_dtype": "float16"},
        {"rms_norm_eps": 1},
        {"rope_theta": 10_000},
        {"auto_map": {"AutoModel": "x.Model"}, "transformers_version": "5.24.0", "id2label": {"0": "a"}},
        {"quantization_config": None, "quantization": None},
        {"pad_token_id": -1, "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": [1, 2]},
    ],
    ids=str,
)
def test_spellings_without_an_effect(changes):
    plain = Config.from_dict(config_values(**{"rms_norm_eps": changes.get("rms_norm_eps", 1e-5)}))
    assert Config.from_dict(config_values(**changes)) == plain


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"architectures": ["Qwen2ForSequenceClassification"]}, "architectures", "must be ['Qwen2ForCausalLM'], got"),
        ({"architectures": ["Qwen2ForTokenClassification"]}, "architectures", "must be ['Qwen2ForCausalLM'], got"),
        ({"model_type": "qwen2_5_vl", "text_config": {}}, "model_type", "must be 'qwen2', got 'qwen2_5_vl'"),
        ({"model_type": "qwen2_moe"}, "model_type", "must be 'qwen2', got 'qwen2_moe'"),
        ({"model_type": "qwen3"}, "model_type", "must be 'qwen2', got 'qwen3'"),
        ({"is_causal": False}, "is_causal", "must be True, got False"),
        ({"quantization_config": {"quant_method": "aqlm", "bits": 4}}, "quantization_config", "aqlm: quantised"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config", "fp8: quantised"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantization_config", "quantised checkpoints"),
        ({"quantization_config": {"quant_method": 1}}, "quantization_config", "quantised checkpoints"),
        ({"quantization": {"bits": 4}}, "quantization", "use the bf16 one, or AWQ, GPTQ or MLX"),
        ({"max_position_embeddings": 131072.0}, "max_position_embeddings", "must be an integer, got 131072.0"),
    ],
    ids=str,
)
def test_another_model(changes, field, words):
    refused(lambda: Config.from_dict(config_values(**changes), "config.json"), "config.json", field, words)


def test_a_quantisation_that_is_read_changes_no_config():
    """`formats.quantisation` reads it."""
    for changes in (
        {"quantization_config": {"quant_method": "awq", "bits": 4}},
        {"quantization_config": {"quant_method": "gptq"}},
        {"quantization": {"group_size": 64, "bits": 4}, "quantization_config": {"group_size": 64, "bits": 4}},
    ):
        assert Config.from_dict(config_values(**changes)) == Config.from_dict(config_values())


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b", ", b",\r\n\t") + b"\r\n",
        lambda text: b"\n\n" + text.replace(b'"model_type"', b'"\\u006dodel_type"'),
    ],
    ids=["byte order mark", "CRLF", "escapes"],
)
def test_text_as_editors_save_it(tmp_path, edit):
    path = tmp_path / "config.json"
    path.write_bytes(edit(json.dumps(config_values()).encode()))
    assert Config.from_file(path) == Config.from_dict(config_values())


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda text: text[:-1] + b",}", "is not JSON (line 1"),
        (lambda text: text.replace(b'"qwen2"', b"'qwen2'"), "is not JSON (line 1"),
        (lambda text: text.replace(b"false", b"False"), "is not JSON (line 1"),
        (lambda text: text.decode().encode("utf-16"), "is not UTF-8, but UTF-16: save it as UTF-8"),
        (lambda text: b"\xfe\xff" + text.decode().encode("utf-16-be"), "is not UTF-8, but UTF-16: save it as UTF-8"),
        (lambda text: b"\xef\xbb\xbf" * 2 + text, "is not JSON"),
        (lambda text: text + b"\0", "is not JSON"),
    ],
    ids=[
        "trailing comma",
        "single quotes",
        "Python's False",
        "UTF-16",
        "UTF-16 of other order",
        "two byte order marks",
        "NUL",
    ],
)
def test_text_that_is_not_json(tmp_path, edit, words):
    path = tmp_path / "config.json"
    path.write_bytes(edit(json.dumps(config_values()).encode()))
    refused(lambda: Config.from_file(path), path, None, words)
