"""Every config.json or generation_config.json that must be refused, and the spellings that must not be."""

import functools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref.config import Config, Rope
from qwq_ref.errors import ConfigError
from qwq_ref.formats import GenerationConfig
from tests.support import refusals
from tests.support.models import config_values, yarn

GOOD = json.dumps(config_values())


refused = functools.partial(refusals.refused, ConfigError, 400)


def labels(cases):
    return [f"{field}: {words}" for field, _, words in cases]  # a value may be an integer too long to print


FIELDS = [
    ("architectures", ["LlamaForCausalLM"], "must be ['Qwen2ForCausalLM']"),
    ("architectures", "Qwen2ForCausalLM", "must be"),
    ("model_type", "llama", "must be 'qwen2'"),
    ("hidden_act", "gelu", "must be 'silu'"),
    ("quantization_config", {"quant_method": "eetq"}, "quantised"),
    ("vocab_size", None, "missing"),
    ("vocab_size", True, "must be an integer, got True"),
    ("vocab_size", 53.0, "must be an integer"),
    ("vocab_size", "53", "must be an integer"),
    ("vocab_size", 0, "must be 1 to"),
    ("vocab_size", -1, "must be 1 to"),
    ("vocab_size", 1 << 40, "must be 1 to"),
    ("vocab_size", 10**5000, "too large to print"),
    ("hidden_size", 1 << 30, "must be 1 to"),
    ("hidden_size", 0, "must be 1 to"),
    ("intermediate_size", 1 << 40, "must be 1 to"),
    ("intermediate_size", [44], "must be an integer"),
    ("num_hidden_layers", 0, "must be 1 to"),
    ("num_hidden_layers", True, "must be an integer"),
    ("num_hidden_layers", 10**9, "must be 1 to"),
    ("num_attention_heads", 1 << 20, "must be 1 to"),
    ("num_key_value_heads", 3, "does not divide"),
    ("num_key_value_heads", 20, "does not divide"),
    ("num_key_value_heads", 0, "must be 1 to"),
    ("num_key_value_heads", False, "must be an integer"),
    ("head_dim", 7, "odd"),
    ("head_dim", 0, "must be 1 to"),
    ("head_dim", 1 << 20, "must be 1 to"),
    ("max_position_embeddings", 1 << 40, "must be 1 to"),
    ("max_position_embeddings", 4096.5, "must be an integer"),
    ("rms_norm_eps", 0, "must be positive"),
    ("rms_norm_eps", -1e-6, "must be positive"),
    ("rms_norm_eps", True, "must be a number"),
    ("rms_norm_eps", "1e-6", "must be a number"),
    ("rms_norm_eps", 10**400, "must be positive and finite"),
    ("rms_norm_eps", math.nan, "must be positive and finite"),
    ("rms_norm_eps", 1e300, "must be below 1e30, got 1e+300"),
    ("rope_theta", 10**31, "must be below 1e30, got 1000"),
    ("rms_norm_eps", math.inf, "must be positive and finite"),
    ("rope_theta", 0, "must be positive"),
    ("rope_theta", -1e6, "must be positive"),
    ("rope_theta", 1, "must be > 1"),
    ("rope_theta", None, "missing"),
    ("partial_rotary_factor", 0.5, "whole heads"),
    ("tie_word_embeddings", 1, "must be true or false"),
    ("tie_word_embeddings", "true", "must be true or false"),
    ("layer_types", ["full_attention"], "must list 2 entries"),
    ("layer_types", ["full_attention", "linear_attention"], "must list 2 entries"),
    ("layer_types", ["full_attention", {}], "must list 2 entries"),
    ("layer_types", ["full_attention", "sliding_attention"], "use_sliding_window"),
    ("use_sliding_window", 1, "must be true or false"),
    ("swiglu_beta", 0, "must be positive"),
    ("rope_scaling", [1], "must be an object"),
    ("rope_parameters", "yarn", "must be an object"),
]


@pytest.mark.parametrize(("field", "value", "words"), FIELDS, ids=labels(FIELDS))
def test_field(field, value, words):
    refused(lambda: Config.from_dict(config_values(**{field: value}), "x/config.json"), "x/config.json", field, words)


YARN_FIELDS = [
    ("rope_type", "linear", "unknown type 'linear'"),
    ("rope_type", "longrope", "unknown type"),
    ("rope_type", ["yarn"], "unknown type"),
    ("factor", 0.5, "must be >= 1"),
    ("factor", math.nan, "must be positive and finite"),
    ("factor", True, "must be a number"),
    ("original_max_position_embeddings", 0, "must be 1 to"),
    ("original_max_position_embeddings", True, "must be an integer"),
    ("beta_fast", 0.5, "below beta_slow"),
    ("beta_slow", -1, "must be positive"),
    ("attention_factor", -1, "must be positive"),
    ("mscale", "1", "must be a number"),
    ("mscale_all_dim", math.inf, "must be positive and finite"),
    ("truncate", 0, "must be true or false"),
    ("partial_rotary_factor", 0.25, "whole heads"),
    ("rope_theta", 0, "must be positive"),
]


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(("field", "value", "words"), YARN_FIELDS, ids=labels(YARN_FIELDS))
def test_yarn_field(spelling, field, value, words):
    values = config_values(**{spelling: yarn(**{field: value})})
    refused(lambda: Config.from_dict(values, "config.json"), "config.json", f"{spelling}.{field}", words)


def test_unknown_rope_type_in_the_old_spelling():
    values = config_values(rope_scaling={"type": "dynamic", "factor": 2.0})
    refused(lambda: Config.from_dict(values, "c"), "c", "rope_scaling.rope_type", "unknown type 'dynamic'")


def test_sliding_window_of_impossible_values():
    values = config_values(use_sliding_window=True, sliding_window=3)
    refused(lambda: Config.from_dict(values | {"sliding_window": 0}, "c"), "c", "sliding_window", "must be 1 to")
    for layers, words in ((-1, "must be 0 to"), (1.0, "must be an integer"), ("1", "must be an integer")):
        refused(
            lambda v=layers: Config.from_dict(values | {"max_window_layers": v}, "c"), "c", "max_window_layers", words
        )


def test_hidden_size_without_head_dim():
    values = config_values(head_dim=None)  # 24 / 10
    refused(lambda: Config.from_dict(values, "c"), "c", "hidden_size", "not a multiple")


def with_text(field, text):
    """GOOD, with a field set to what json.dumps would not write."""
    return f'{GOOD[:-1]}, "{field}": {text}}}'.encode()


FILES = {
    "empty": (b"", None, "is not JSON"),
    "a list": (b"[]", None, "must hold a JSON object, not a list"),
    "cut short": (GOOD[:-1].encode(), None, "is not JSON"),
    "text after it": (GOOD.encode() + b"{}", None, "is not JSON"),
    "a comment": (b"//\n" + GOOD.encode(), None, "is not JSON"),
    "duplicate key": (with_text("vocab_size", "53"), "vocab_size", "appears twice"),
    "duplicate key inside": (with_text("x", '[{"a": 1, "a": 2}]'), "a", "appears twice"),
    "NaN": (with_text("x", "NaN"), None, "holds NaN"),
    "Infinity": (with_text("x", "Infinity"), None, "holds Infinity"),
    "-Infinity": (with_text("x", "-Infinity"), None, "holds -Infinity"),
    "1e999": (with_text("x", "1e999"), None, "beyond the range"),
    "-1e999": (with_text("x", "[-1e999]"), None, "beyond the range"),
    "a huge integer": (with_text("x", "9" * 5000), None, "is not JSON"),
    "deep lists": (with_text("x", "[" * 100_000 + "]" * 100_000), None, "nested too deeply"),
    "deep objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, None, "nested too deeply"),
    "Latin-1": (with_text("x", '"é"').decode().encode("latin-1"), None, "is not UTF-8"),
    "UTF-16": (GOOD.encode("utf-16"), None, "is not UTF-8"),
    "too long": (GOOD.encode() + b" " * (1 << 20), None, "bytes long"),
    "a hostile key": (b'{"\\n\\u001b[31m": 1, "\\n\\u001b[31m": 1}', "\n\x1b[31m", "appears twice"),
}


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_file(tmp_path, case, name):
    data, field, words = FILES[case]
    path = tmp_path / name
    path.write_bytes(data)
    read = Config.from_file if name == "config.json" else lambda p: GenerationConfig.from_folder(p.parent, TINY)
    if case == "a hostile key":
        with pytest.raises(ConfigError, match="twice") as caught:
            read(path)
        assert str(caught.value).isprintable()
    else:
        refused(lambda: read(path), path, field, words)


def test_file_that_is_not_there(tmp_path):
    refused(lambda: Config.from_file(tmp_path / "no"), tmp_path / "no", None, "cannot be opened (No such file")
    refused(lambda: Config.from_file(tmp_path), tmp_path, None, "not a regular file")
    with pytest.raises(ConfigError, match="cannot be opened"):
        Config.from_file("a\0b")


TINY = Config.from_dict(config_values())

_scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([10**400, 2.0])
)
_json = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
_spellings = st.sampled_from([{}, {"rope_scaling": yarn()}, {"rope_parameters": yarn(rope_theta=7.0)}])
_names = sorted({name for name, *_ in FIELDS} | {"sliding_window", "max_window_layers", "rope_scaling"})


@given(_spellings, st.dictionaries(st.sampled_from(_names), _json, max_size=3))
def test_any_json_is_read_or_refused(spelling, changes):
    try:
        config = Config.from_dict(config_values(**spelling) | changes)
    except ConfigError:
        return
    assert config.H % config.K == 0
    assert config.E % 2 == 0
    assert len(config.tensors()) == 12 * config.L + (2 if config.tie_word_embeddings else 3)
    assert all(type(n) is int and n > 0 for shape in config.tensors().values() for n in shape)
    assert 0 < config.rms_norm_eps < np.inf


# --- what must be read ---


def test_plain_values():
    config = Config.from_dict(config_values())
    assert (config.V, config.D, config.F, config.L) == (53, 24, 44, 2)
    assert (config.H, config.K, config.G, config.E) == (10, 2, 5, 8)
    assert (config.rms_norm_eps, config.rope) == (1e-5, Rope(theta=10_000.0))
    assert not config.tie_word_embeddings
    assert config.window(1) is None


def test_defaults_and_null_mean_absent():
    values = config_values(num_key_value_heads=None, head_dim=None, num_attention_heads=6, tie_word_embeddings=None)
    del values["architectures"], values["hidden_act"]
    config = Config.from_dict(values | {"rope_scaling": None, "partial_rotary_factor": 1.0, "unknown": {"a": 1}})
    assert (config.K, config.E, config.tie_word_embeddings) == (6, 4, False)


_Y = {"factor": 4.0, "original_max_position_embeddings": 16}
SPELLINGS = {
    "type": ({"rope_scaling": {"type": "yarn", **_Y}}, (10_000.0, 4.0, 16)),
    "rope_type": ({"rope_scaling": {"rope_type": "yarn", **_Y}}, (10_000.0, 4.0, 16)),
    "rope_parameters": ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 77.0, **_Y}}, (77.0, 4.0, 16)),
    "rope_type over type": ({"rope_scaling": {"rope_type": "yarn", "type": "linear", **_Y}}, (10_000.0, 4.0, 16)),
    "rope_scaling over rope_parameters": (
        {"rope_scaling": {"rope_type": "yarn", **_Y}, "rope_parameters": {"rope_type": "default", "rope_theta": 9.0}},
        (10_000.0, 4.0, 16),
    ),
    "theta inside over outside": ({"rope_scaling": {"rope_type": "yarn", "rope_theta": 55.0, **_Y}}, (55.0, 4.0, 16)),
    "length outside over inside": (
        {"rope_scaling": {"rope_type": "yarn", **_Y}, "original_max_position_embeddings": 32},
        (10_000.0, 4.0, 32),
    ),
    "zeros that mean absent": (
        {"rope_scaling": {"rope_type": "yarn", **_Y, "mscale": 0, "mscale_all_dim": 0.0}},
        (10_000.0, 4.0, 16),
    ),
    "no length": ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, (10_000.0, 4.0, 4096)),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_yarn_spelling(case):
    changes, (theta, factor, length) = SPELLINGS[case]
    rope = Config.from_dict(config_values(**changes)).rope
    assert rope == Rope(theta=theta, type="yarn", factor=factor, original_max_position_embeddings=length)


@pytest.mark.parametrize("case", SPELLINGS)
def test_yarn_spelling_is_read_as_hugging_face_does(case):
    transformers = pytest.importorskip("transformers")
    changes, (theta, factor, length) = SPELLINGS[case]
    theirs = transformers.Qwen2Config(**json.loads(json.dumps(config_values(**changes))))
    theirs.standardize_rope_params()  # once more, as its RoPE does: only now a length outside is seen
    theirs = theirs.rope_parameters
    assert theirs["rope_type"] == "yarn"
    assert (theirs["rope_theta"], theirs["factor"], theirs["original_max_position_embeddings"]) == (
        theta,
        factor,
        length,
    )


# --- generation_config.json ---

GENERATION_FIELDS = [
    ("eos_token_id", 53, "below vocab_size 53"),
    ("eos_token_id", -1, "below vocab_size 53"),
    ("eos_token_id", True, "below vocab_size 53"),
    ("eos_token_id", "0", "below vocab_size 53"),
    ("eos_token_id", 1.0, "below vocab_size 53"),
    ("eos_token_id", [1, 53], "below vocab_size 53"),
    ("eos_token_id", [1, None], "below vocab_size 53"),
    ("eos_token_id", [[1]], "below vocab_size 53"),
    ("eos_token_id", {"a": 1}, "below vocab_size 53"),
    ("do_sample", 1, "must be true or false"),
    ("temperature", -0.1, "must be a number from 0"),
    ("temperature", True, "must be a number"),
    ("temperature", 10**400, "must be a number"),
    ("top_k", -1, "must be 0 to"),
    ("top_k", 20.0, "must be an integer"),
    ("top_k", True, "must be an integer"),
    ("top_p", 0, "above 0"),
    ("top_p", 1.01, "must be a number from 0 to 1"),
    ("top_p", "0.9", "must be a number"),
    ("min_p", -0.1, "must be a number from 0 to 1"),
    ("min_p", 1.1, "must be a number from 0 to 1"),
    ("repetition_penalty", 0, "must be positive"),
    ("repetition_penalty", -1, "must be positive"),
]


def generation(folder, values=None, **config):
    (folder / "config.json").write_text(json.dumps(config_values(**config)))
    if values is not None:
        (folder / "generation_config.json").write_text(json.dumps(values))
    return GenerationConfig.from_folder(folder, TINY)


@pytest.mark.parametrize(("field", "value", "words"), GENERATION_FIELDS, ids=labels(GENERATION_FIELDS))
def test_generation_field(tmp_path, field, value, words):
    path = tmp_path / "generation_config.json"
    refused(lambda: generation(tmp_path, {field: value}), path, field, words)


def test_eos_of_config_json_is_checked_and_named(tmp_path):
    refused(lambda: generation(tmp_path, {}, eos_token_id=53), tmp_path / "config.json", "eos_token_id", "below")


def test_generation_values_of_qwq(tmp_path):
    values = {"bos_token_id": 3, "do_sample": True, "eos_token_id": [5, 3], "pad_token_id": 3, "temperature": 0.6}
    got = generation(tmp_path, values | {"top_k": 40, "top_p": 0.95, "min_p": 0, "repetition_penalty": 1.1})
    assert got == GenerationConfig((5, 3), True, 0.6, 40, 0.95, 0.0, 1.1)
    assert got.effective_temperature == 0.6


def test_generation_defaults(tmp_path):
    assert generation(tmp_path, eos_token_id=52) == GenerationConfig((52,), False, 1.0, 50, 1.0, 0.0, 1.0)
    assert generation(tmp_path, eos_token_id=None).eos_token_ids == ()
    got = generation(tmp_path, {"temperature": 0.7, "min_p": None, "eos_token_id": None}, eos_token_id=[0, 7])
    assert got == GenerationConfig((0, 7), temperature=0.7)
    assert got.effective_temperature == 0.0
