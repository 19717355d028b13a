"""GGUF files as sources: config, tensors and sampling defaults, and what a bad file gets."""

import dataclasses
import functools
import os
import re
import sys

import numpy as np
import pytest

from qwq_ref.config import Config, Rope
from qwq_ref.errors import CheckpointError, ConfigError, UsageError
from qwq_ref.formats import GenerationConfig, Source, Tensors, open_source
from qwq_ref.formats.gguf import GGUFSource
from qwq_ref.formats.gguf.metadata import shortest
from tests.formats.test_source import public
from tests.support import refusals
from tests.support.gguf_models import (
    NATIVE,
    NATIVE_SUPER,
    fuse_qkv,
    gguf_tensor_name,
    mixture,
    peer_config,
    write_types,
)

gguf = pytest.importorskip("gguf")
OTHERS = ("IQ2_XXS", "IQ3_S", "TQ2_0", "MXFP4")
CONFIG = peer_config(num_hidden_layers=2)

refused = functools.partial(refusals.refused, CheckpointError, 500)
refused_config = functools.partial(refusals.refused, ConfigError, 500)


def all_f16(_):
    return "F16"


def of(folder, **options):
    """Write a file of `CONFIG` -> its path."""
    path = folder / "m.gguf"
    write_types(path, options.pop("config", CONFIG), options.pop("kind_of", all_f16), **options)
    return path


def open_it(path):
    with GGUFSource.open(path) as source:
        return source


def test_it_has_what_the_protocol_says(tmp_path):
    path = of(tmp_path)
    with GGUFSource.open(path) as source:
        assert all(hasattr(source, name) for name in public(Source))
        assert isinstance(source.floats, Tensors)
        assert (source.path, source.tokenizer, source.template) == (path, path, path)
        assert source.config == CONFIG
        with pytest.raises(UsageError, match="q4 are not here packed"):
            source.open_packed("q4", {})


@pytest.mark.parametrize("kinds", [NATIVE, NATIVE_SUPER, OTHERS])
@pytest.mark.parametrize("tied", [False, True])
def test_tensors_are_those_of_the_package(tmp_path, kinds, tied):
    config = dataclasses.replace(CONFIG, tie_word_embeddings=tied)
    path = tmp_path / "m.gguf"
    wanted = write_types(path, config, mixture(kinds))
    with GGUFSource.open(path) as source:
        assert source.config == config
        assert list(source) == list(config.tensors())
        assert set(source.dtypes) == {*kinds, "F32"}
        assert sum(source.dtypes.values()) == sum(t.nbytes for t in source.header.tensors.values())
        for name, shape in config.tensors().items():
            expected = wanted[gguf_tensor_name(name)]
            found = source[name]
            assert (found.shape, found.dtype) == (shape, np.float32)
            assert found.tobytes() == expected.tobytes(), name
            assert source.shape(name) == shape
            rows = source.rows(name, 1, 3)
            assert rows.dtype == source.dtype(name)
            assert rows.astype(np.float32).tobytes() == expected[1:3].tobytes()
            parts = [np.empty((n, *shape[1:]), source.dtype(name)) for n in (1, 0, 2)]
            source.read_into(name, 2, parts)
            assert np.concatenate(parts).astype(np.float32).tobytes() == expected[2:5].tobytes()
            assert source.file(name) == path
            source.forget(name, 0, 1)
        steps = []
        source.check_finite(steps.append)
        assert sum(steps) == sum(source.dtypes.values())


def test_a_large_tensor_is_decoded_in_pieces(tmp_path, monkeypatch):
    path = tmp_path / "m.gguf"
    wanted = write_types(path, CONFIG, mixture(NATIVE_SUPER))
    monkeypatch.setattr("qwq_ref.formats.decoded._PIECE", 1000)
    with GGUFSource.open(path) as source:
        assert source["model.embed_tokens.weight"].tobytes() == wanted["token_embd.weight"].tobytes()


def test_q_k_and_v_in_one_tensor(tmp_path):
    wanted = write_types(tmp_path / "apart.gguf", CONFIG, lambda _: "Q4_K")
    write_types(tmp_path / "fused.gguf", CONFIG, lambda _: "Q4_K", tensors=fuse_qkv)
    with GGUFSource.open(tmp_path / "fused.gguf") as source:
        for name in CONFIG.tensors():
            assert source[name].tobytes() == wanted[gguf_tensor_name(name)].tobytes(), name


# --- The config ---


def test_numbers_are_rounded_to_the_shortest_decimal(tmp_path):
    assert shortest(float(np.float32(1e-6))) == 1e-6 != float(np.float32(1e-6))
    assert shortest(1e6) == 1e6
    config = dataclasses.replace(CONFIG, rms_norm_eps=1e-5)
    assert open_it(of(tmp_path, config=config)).config.rms_norm_eps == 1e-5


def test_a_head_dimension_of_its_own(tmp_path):
    config = dataclasses.replace(CONFIG, head_dim=128)

    def metadata(writer):
        writer.add_key_length(128)
        writer.add_value_length(128)
        writer.add_rope_dimension_count(128)

    assert open_it(of(tmp_path, config=config, metadata=metadata)).config == config
    path = of(tmp_path, config=config)
    refused(lambda: GGUFSource.open(path), path, "blk.0.attn_q.weight", "shape [512, 256], but the metadata imply [256")


def test_yarn(tmp_path):
    def metadata(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(32)

    rope = Rope(1e6, "yarn", 4.0, 32)
    assert open_it(of(tmp_path, metadata=metadata)).config.rope == rope

    def more(writer):
        metadata(writer)
        writer.add_float32("qwen2.rope.scaling.attn_factor", 0.5)
        writer.add_float32("qwen2.rope.scaling.yarn_beta_fast", 16.0)
        writer.add_float32("qwen2.rope.scaling.yarn_beta_slow", 2.0)

    found = open_it(of(tmp_path, metadata=more)).config.rope
    assert (found.beta_fast, found.beta_slow) == (16.0, 2.0)
    assert found.attention_scaling == 0.5 * rope.attention_scaling  # llama.cpp multiplies its own factor


def test_no_scaling(tmp_path):
    def metadata(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)

    assert open_it(of(tmp_path, metadata=metadata)).config == CONFIG


def change(key, value=None, kind="uint32"):
    """Return a change of the metadata: a field of another value, or of another type; None removes it."""

    def metadata(writer):
        for fields in writer.kv_data:
            fields.pop(key, None)
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            getattr(writer, f"add_{kind}")(key, value)

    return metadata


A = "qwen2.attention."
FIRST = ("attn_norm.weight", "attn_q.weight", "attn_q.bias")
BAD = {
    "llama": (
        change("general.architecture", "llama", "string"),
        CheckpointError,
        "general.architecture",
        "is llama: only qwen2",
    ),
    "qwen2moe": (
        change("general.architecture", "qwen2moe", "string"),
        CheckpointError,
        "general.architecture",
        "is qwen2moe",
    ),
    "no architecture": (change("general.architecture"), CheckpointError, "general.architecture", "is missing"),
    "an adapter": (
        change("general.type", "adapter", "string"),
        CheckpointError,
        "general.type",
        "is adapter: only whole",
    ),
    "no layers": (change("qwen2.block_count"), ConfigError, "qwen2.block_count", "is missing"),
    "0 layers": (change("qwen2.block_count", 0), ConfigError, "qwen2.block_count", "must be 1 to 4096, got 0"),
    "layers of a float": (change("qwen2.block_count", 2.0, "float32"), ConfigError, "qwen2.block_count", "an integer"),
    "3 layers": (
        change("qwen2.block_count", 3),
        CheckpointError,
        ", ".join(f"blk.2.{name}" for name in FIRST),
        "missing: 12 of the tensors",
    ),
    "1 layer": (
        change("qwen2.block_count", 1),
        CheckpointError,
        ", ".join(f"blk.1.{name}" for name in FIRST),
        "unexpected: 12 tensors",
    ),
    "2^32 - 1 layers": (change("qwen2.block_count", (1 << 32) - 1), ConfigError, "qwen2.block_count", "must be 1 to"),
    "no hidden size": (change("qwen2.embedding_length"), ConfigError, "qwen2.embedding_length", "is missing"),
    "another hidden size": (
        change("qwen2.embedding_length", 128),
        CheckpointError,
        "token_embd.weight",
        "shape [300, 256], but",
    ),
    "heads of layers": (change(f"{A}head_count", [4, 4]), ConfigError, f"{A}head_count", "one value, not an array"),
    "heads that do not divide": (change(f"{A}head_count_kv", 3), ConfigError, f"{A}head_count_kv", "does not divide"),
    "a MLP of layers": (
        change("qwen2.feed_forward_length", [1, 2]),
        ConfigError,
        "qwen2.feed_forward_length",
        "one value",
    ),
    "no context": (change("qwen2.context_length"), ConfigError, "qwen2.context_length", "is missing"),
    "eps 0": (
        change(f"{A}layer_norm_rms_epsilon", 0.0, "float32"),
        ConfigError,
        f"{A}layer_norm_rms_epsilon",
        "positive",
    ),
    "eps NaN": (
        change(f"{A}layer_norm_rms_epsilon", float("nan"), "float32"),
        ConfigError,
        f"{A}layer_norm_rms_epsilon",
        "positive",
    ),
    "theta infinite": (
        change("qwen2.rope.freq_base", float("inf"), "float32"),
        ConfigError,
        "qwen2.rope.freq_base",
        "positive",
    ),
    "half of a head turned": (
        change("qwen2.rope.dimension_count", 32),
        ConfigError,
        "qwen2.rope.dimension_count",
        "must be the head",
    ),
    "other values": (change(f"{A}value_length", 32), ConfigError, f"{A}value_length", "must be the head dimension 64"),
    "not causal": (change(f"{A}causal", False, "bool"), ConfigError, f"{A}causal", "does not have"),
    "linear scaling": (change("qwen2.rope.scaling.type", "linear", "string"), None, None, None),
    "another scaling": (
        change("qwen2.rope.scaling.type", "longrope", "string"),
        ConfigError,
        "qwen2.rope.scaling.type",
        '"yarn"',
    ),
    "vocabulary of another size": (
        change("qwen2.vocab_size", 301),
        CheckpointError,
        "token_embd.weight",
        "shape [300, 256]",
    ),
    "too many tokens": (
        change("tokenizer.ggml.tokens", ["a"] * 301),
        ConfigError,
        "tokenizer.ggml.tokens",
        "holds 301 tokens, but the",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_metadata(tmp_path, case):
    metadata, error, field, words = BAD[case]
    path = of(tmp_path, metadata=metadata)
    if error is None:  # a factor of 1
        assert open_it(path).config == CONFIG
    else:
        refusals.refused(error, 500, lambda: GGUFSource.open(path), path, field, words)


def without(name):
    return lambda found: {key: value for key, value in found.items() if key != name}


def replaced(name, shape, kind):
    dtype = {"F32": "f4", "F64": "f8", "I32": "i4"}.get(kind, "u1")
    return lambda found: found | {name: (np.zeros(shape, dtype), kind)}


TENSORS = {
    "no norm": (without("output_norm.weight"), "output_norm.weight", "missing: 1 of the tensors"),
    "no bias": (without("blk.1.attn_k.bias"), "blk.1.attn_k.bias", "missing: 1 of the tensors"),
    "no embedding": (without("token_embd.weight"), "token_embd.weight", "missing: 1 of the tensors"),
    "a norm of queries": (
        replaced("blk.0.attn_q_norm.weight", (64,), "F32"),
        "blk.0.attn_q_norm.weight",
        "unexpected: 1",
    ),
    "a longer norm": (
        replaced("output_norm.weight", (257,), "F32"),
        "output_norm.weight",
        "shape [257], but the metadata",
    ),
    "a bias as a matrix": (replaced("blk.0.attn_q.bias", (256, 1), "F32"), "blk.0.attn_q.bias", "shape [256, 1]"),
    "a norm of blocks": (
        replaced("output_norm.weight", (272,), "Q8_0"),
        "output_norm.weight",
        "F32, F16 or BF16, being a vector",
    ),
    "a matrix of integers": (replaced("output.weight", (300, 256), "I32"), "output.weight", "has the type I32"),
    "a matrix of doubles": (replaced("output.weight", (300, 256), "F64"), "output.weight", "has the type F64"),
    "a matrix of activations": (replaced("output.weight", (300, 292), "Q8_K"), "output.weight", "has the type Q8_K"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_the_metadata_do_not_imply(tmp_path, case):
    tensors, field, words = TENSORS[case]
    path = of(tmp_path, tensors=tensors, metadata=change("qwen2.vocab_size", 300))
    refused(lambda: GGUFSource.open(path), path, field, words)


def test_a_file_that_shrinks(tmp_path):
    path = of(tmp_path)
    with GGUFSource.open(path) as source:
        os.truncate(path, 10_000)
        with pytest.raises(CheckpointError, match="shorter than it was when opened"):
            source["lm_head.weight"]


def test_infinity_is_found(tmp_path):
    def tensors(found):
        data, kind = found["blk.1.ffn_up.weight"]
        data = data.copy()
        data.view(np.uint16).reshape(512, -1)[7, 5] = 0x7C00
        found["blk.1.ffn_up.weight"] = data, kind

    path = of(tmp_path, tensors=tensors)
    with GGUFSource.open(path) as source:
        refused(source.check_finite, path, "model.layers.1.mlp.up_proj.weight", "holds infinity at [7, 5]")


# --- Sampling ---


def test_end_tokens_and_sampling(tmp_path):
    assert open_it(of(tmp_path)).generation_config() == GenerationConfig()
    (line,) = open_it(of(tmp_path)).generation_config().surprises("--temp X")
    assert line.endswith(".gguf: says nothing of sampling: each token is the likeliest one; --temp X draws")

    def metadata(writer):
        writer.add_eos_token_id(5)
        writer.add_eot_token_id(7)
        writer.add_float32("general.sampling.temp", 0.7)
        writer.add_int32("general.sampling.top_k", 20)
        writer.add_float32("general.sampling.top_p", 0.8)
        writer.add_float32("general.sampling.penalty_repeat", 1.05)

    path = of(tmp_path, metadata=metadata)
    found = open_it(path).generation_config()
    assert found == GenerationConfig((5, 7), True, 0.7, 20, 0.8, repetition_penalty=1.05)
    assert found.path == path
    greedy = open_it(of(tmp_path, metadata=change("general.sampling.temp", 0.0, "float32"))).generation_config()
    assert greedy.effective_temperature == 0


def test_a_reasoning_model_is_not_greedy(tmp_path):
    path = of(tmp_path, metadata=change("tokenizer.chat_template", "{{ x }}<think>\n", "string"))
    found = open_it(path).generation_config()
    assert found == GenerationConfig((), True, 0.6, 40, 0.95)
    assert found.assumed == "QwQ, since the template writes <think>"
    assert found.surprises("--temp X") == []


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("tokenizer.ggml.eos_token_id", 300, "uint32"),
        ("tokenizer.ggml.eos_token_id", 1.0, "float32"),
        ("general.sampling.temp", -1.0, "float32"),
        ("general.sampling.temp", float("nan"), "float32"),
        ("general.sampling.top_p", 0.0, "float32"),
        ("general.sampling.top_k", 1.5, "float32"),
        ("general.sampling.min_p", True, "bool"),
        ("general.sampling.temp", [1.0], None),
    ],
)
def test_bad_sampling(tmp_path, key, value, kind):
    path = of(tmp_path, metadata=change(key, value, kind))
    with GGUFSource.open(path) as source, pytest.raises(ConfigError) as caught:
        source.generation_config()
    assert (caught.value.file, caught.value.field) == (str(path), key)


# --- Shards ---


def shards(folder, count=3, **options):
    wanted = write_types(
        lambda i: folder / f"m-{i + 1:05d}-of-{count:05d}.gguf", CONFIG, all_f16, shards=count, **options
    )
    return [folder / f"m-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)], wanted


def test_shards_are_one_model(tmp_path):
    paths, wanted = shards(tmp_path)
    for path in paths:
        with GGUFSource.open(path) as source:
            assert source.path == source.tokenizer == paths[0]
            assert {source.file(name) for name in source} == set(paths)
            for name in CONFIG.tensors():
                assert source[name].tobytes() == wanted[gguf_tensor_name(name)].astype(np.float32).tobytes()


def test_a_missing_shard(tmp_path):
    paths, _ = shards(tmp_path)
    paths[1].unlink()
    refused(lambda: GGUFSource.open(paths[2]), paths[2], None, "one of 3 shards, but m-00002-of-00003.gguf is missing")
    paths[0].unlink()
    refused(lambda: GGUFSource.open(paths[2]), paths[2], None, "m-00001-of-00003.gguf and 1 more is missing")


def test_a_renamed_shard(tmp_path):
    paths, _ = shards(tmp_path)
    other = tmp_path / "first.gguf"
    paths[0].rename(other)
    refused(
        lambda: GGUFSource.open(other), other, None, "is one of 3 shards, whose names must end in -00001-of-00003.gguf"
    )
    other.rename(tmp_path / "m-00001-of-00004.gguf")
    other = tmp_path / "m-00001-of-00004.gguf"
    refused(lambda: GGUFSource.open(other), other, "split.count", "is 3, but the name of the file says 4")


def test_a_shard_twice(tmp_path):
    paths, _ = shards(tmp_path)
    paths[1].write_bytes(paths[2].read_bytes())
    refused(lambda: GGUFSource.open(paths[0]), paths[1], "split.no", "must be 1 by the file's name, got 2")


def test_a_shard_of_another_model(tmp_path):
    paths, _ = shards(tmp_path)
    (tmp_path / "other").mkdir()
    write_types(
        lambda i: tmp_path / "other" / f"{i}", dataclasses.replace(CONFIG, tie_word_embeddings=True), all_f16, shards=3
    )
    paths[1].write_bytes((tmp_path / "other" / "1").read_bytes())
    with pytest.raises(CheckpointError, match=r"is in m-00001-of-00003.gguf, too"):
        GGUFSource.open(paths[0])


def test_shards_that_lack_tensors(tmp_path):
    paths, _ = shards(tmp_path)
    data, key = bytearray(paths[0].read_bytes()), b"split.tensors.count"
    data[data.index(key) + len(key) + 4] += 1
    paths[0].write_bytes(data)
    words = "is 28, but the shards hold 27 tensors"
    refused(lambda: GGUFSource.open(paths[1]), paths[1], "split.tensors.count", words)


def test_shards_without_a_count(tmp_path):
    """A single file may have the name of a shard."""
    path = of(tmp_path)
    path.rename(tmp_path / "m-00001-of-00002.gguf")
    assert open_it(tmp_path / "m-00001-of-00002.gguf").config == CONFIG


def test_the_table_of_names_is_that_of_the_package():
    config = Config.from_dict({**CONFIG.to_dict(), "num_hidden_layers": 1})
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 1)
    from qwq_ref.formats.gguf.names import gguf_name

    for name in config.tensors():
        module, leaf = name.rsplit(".", 1)
        assert gguf_name(name) == f"{names.get_name(module)}.{leaf}"


def test_without_the_package_that_decodes_a_type(tmp_path, monkeypatch):
    """The error names the file and the tensor, wherever the tensor is decoded."""
    write_types(tmp_path / "m.gguf", peer_config(), mixture(("IQ3_S",)))
    monkeypatch.setitem(sys.modules, "gguf", None)
    name = "model.layers.0.mlp.down_proj.weight"
    with open_source(tmp_path / "m.gguf") as source:
        for read in (lambda: source.floats[name], lambda: source.kept.parts(name, 0, 32), source.kept.loss):
            with pytest.raises(UsageError, match="IQ3_S is decoded by the package gguf, which is not inst") as caught:
                read()
            assert caught.value.file == str(tmp_path / "m.gguf")
            assert re.fullmatch(r"(blk\.0\.ffn_down|token_embd)\.weight", caught.value.field)
