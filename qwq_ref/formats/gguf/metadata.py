"""The config and the sampling defaults of a GGUF file, from its metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...config import Config
from ...errors import CheckpointError, ConfigError
from ..generation_config import GenerationConfig
from .header import Header

ARCHITECTURE = "qwen2"
MODELS = "QwQ, Qwen2, Qwen2.5, DeepSeek-R1-Distill-Qwen"
_EPS = "qwen2.attention.layer_norm_rms_epsilon"
_SCALING = "qwen2.rope.scaling."
# Fields of config.json -> their keys in the metadata.
_KEYS = {
    "num_hidden_layers": "qwen2.block_count",
    "hidden_size": "qwen2.embedding_length",
    "intermediate_size": "qwen2.feed_forward_length",
    "num_attention_heads": "qwen2.attention.head_count",
    "num_key_value_heads": "qwen2.attention.head_count_kv",
    "head_dim": "qwen2.attention.key_length",
    "max_position_embeddings": "qwen2.context_length",
    "rms_norm_eps": _EPS,
    "rope_theta": "qwen2.rope.freq_base",
    "vocab_size": "qwen2.vocab_size",
}
_YARN_KEYS = {
    "factor": f"{_SCALING}factor",
    "original_max_position_embeddings": f"{_SCALING}original_context_length",
    "beta_fast": f"{_SCALING}yarn_beta_fast",
    "beta_slow": f"{_SCALING}yarn_beta_slow",
}
# Keys of metadata that would compute another model, and the value that changes nothing.
_NEUTRAL = {
    "qwen2.attention.causal": True,
    "qwen2.attention.scale": 0.0,
    "qwen2.attention.clamp_kqv": 0.0,
    "qwen2.expert_count": 0,
    f"{_SCALING}yarn_ext_factor": 1.0,
    f"{_SCALING}yarn_log_multiplier": 0.0,
}
_DEFAULT_THETA = 10_000.0  # of llama.cpp, for files without a base
# The tokens that end an answer: of a text, of a turn, of a message to a tool.
_ENDS = ("eos", "eot", "eom")
_SAMPLING = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
# QwQ's generation_config.json. Greedy sampling makes a reasoning model repeat itself without end.
_REASONING = {"temperature": 0.6, "top_k": 40, "top_p": 0.95}


def check_architecture(header: Header) -> None:
    """Raise CheckpointError for the file of another architecture, or of something that is no model."""
    kind, name = header.fields.get("general.type", "model"), header.fields.get("general.architecture")
    if kind != "model":
        raise CheckpointError(header.path, "general.type", f"is {kind!s:.40}: only whole models are read")
    if name is None:
        raise CheckpointError(header.path, "general.architecture", "is missing")
    if name != ARCHITECTURE:
        problem = f"is {name!s:.40}: only {ARCHITECTURE} is read ({MODELS})"
        raise CheckpointError(header.path, "general.architecture", problem)


def config_of(header: Header, rows: int | None, tied: bool) -> Config:
    """Return the config of a model. Raises ConfigError with the key of the metadata.

    rows  of the embedding, which are the vocabulary; None if the tensor is missing
    tied  whether there is no output matrix
    """
    fields = header.fields
    for key, neutral in _NEUTRAL.items():
        if fields.get(key, neutral) != neutral:
            problem = f"is {_show(fields[key])}, which this architecture does not have"
            raise ConfigError(header.path, key, problem)
    values = {name: _scalar(header, key) for name, key in _KEYS.items() if key in fields}
    theta = values.setdefault("rope_theta", _DEFAULT_THETA)
    if isinstance(values.get("rms_norm_eps"), float):
        values["rms_norm_eps"] = shortest(values["rms_norm_eps"])
    if isinstance(theta, float):
        values["rope_theta"] = shortest(theta)
    if values.get("vocab_size") is None:
        values["vocab_size"] = rows if rows is not None else _count(header, "tokenizer.ggml.tokens")
    values |= {"model_type": ARCHITECTURE, "tie_word_embeddings": tied, "rope_scaling": _yarn(header)}
    try:
        config = Config.from_dict(values, header.path)
    except ConfigError as problem:
        raise ConfigError(header.path, _key_of(problem.field), problem.problem) from None
    for key in ("qwen2.attention.value_length", "qwen2.rope.dimension_count"):
        if fields.get(key, config.head_dim) != config.head_dim:
            problem_text = f"must be the head dimension {config.head_dim}, got {_show(fields[key])}"
            raise ConfigError(header.path, key, problem_text)
    tokens = _count(header, "tokenizer.ggml.tokens")
    if tokens > config.vocab_size:
        problem_text = f"holds {tokens:,} tokens, but the embedding has {config.vocab_size:,} rows"
        raise ConfigError(header.path, "tokenizer.ggml.tokens", problem_text)
    return config


def shortest(value: float) -> float:
    """Return the shortest decimal number that is the same float32: a file holds 1e-6 as 9.999999974752427e-07."""
    return float(str(np.float32(value))) if math.isfinite(value) else value


def generation_of(header: Header, config: Config) -> GenerationConfig:
    """Return the sampling defaults and end tokens. Raises ConfigError.

    Few files hold sampling parameters. For a reasoning model, whose template writes <think>, those of QwQ count then.
    """
    ends = []
    for name in _ENDS:
        key = f"tokenizer.ggml.{name}_token_id"
        token = _scalar(header, key) if key in header.fields else None
        if token is None:
            continue
        if type(token) is not int or not 0 <= token < config.vocab_size:
            raise ConfigError(header.path, key, f"must be a token id below {config.vocab_size}, got {_show(token)}")
        ends.append(token)
    given = {name: _sampling(header, name, key) for name, key in _SAMPLING.items() if key in header.fields}
    assumed = ""
    if not given and "<think>" in str(header.fields.get("tokenizer.chat_template", "")):
        given, assumed = dict(_REASONING), "QwQ, since the template writes <think>"
    temperature = given.pop("temperature", None)
    if temperature is not None:
        given |= {"do_sample": temperature > 0, "temperature": temperature or 1.0}
    elif given:
        given["do_sample"] = True
    eos, path = tuple(dict.fromkeys(ends)), Path(header.path)
    return GenerationConfig(eos_token_ids=eos, path=path, silent=not given, assumed=assumed, **given)


def _sampling(header: Header, name: str, key: str) -> Any:
    value = _scalar(header, key)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    most = 1.0 if name in ("top_p", "min_p") else 1e30
    least = 1e-30 if name in ("top_p", "repetition_penalty") else 0
    if not number or not least <= value <= most or (name == "top_k" and type(value) is not int):
        raise ConfigError(header.path, key, f"is no possible {name}: {_show(value)}")
    return shortest(value) if isinstance(value, float) else value


def _yarn(header: Header) -> Mapping[str, Any] | None:
    """Return the fields of YaRN as config.json has them; None without YaRN."""
    fields = header.fields
    kind = fields.get(f"{_SCALING}type", "none")
    if kind == "linear" and fields.get(f"{_SCALING}factor", 1.0) == 1.0:
        kind = "none"
    if kind == "none":
        return None
    if kind != "yarn":
        raise ConfigError(header.path, f"{_SCALING}type", f'must be "none" or "yarn", got {_show(kind)}')
    values: dict[str, Any] = {"rope_type": "yarn"}
    for name, key in _YARN_KEYS.items():
        if key in fields:
            value = _scalar(header, key)
            values[name] = shortest(value) if isinstance(value, float) else value
    for key in (f"{_SCALING}attn_factor", f"{_SCALING}yarn_attn_factor"):
        share = _scalar(header, key) if key in fields else 1.0
        if not isinstance(share, float) or not 0 < share < 1e30:
            raise ConfigError(header.path, key, f"must be positive, got {_show(share)}")
        if share != 1.0 and isinstance(values.get("factor"), float):  # llama.cpp multiplies; transformers replaces
            values["attention_factor"] = shortest(share) * (0.1 * math.log(max(1.0, values["factor"])) + 1.0)
    return values


def _scalar(header: Header, key: str) -> Any:
    """Return a field that must not be an array."""
    if header.types[key] == "array":
        raise ConfigError(header.path, key, "must be one value, not an array: layers that differ are not read")
    return header.fields[key]


def _count(header: Header, key: str) -> int:
    """Return the number of elements of an array; 0 if there is none."""
    return len(header.fields[key]) if header.types.get(key) == "array" else 0


def _key_of(field: str | None) -> str | None:
    """Return the key of the metadata that a field of config.json comes from."""
    if field is None:
        return None
    name = field.removeprefix("rope_scaling.")
    return _KEYS.get(name) or _YARN_KEYS.get(name, field)


def _show(value: Any) -> str:
    return "an array" if hasattr(value, "tolist") else f"{value!r:.40}"
