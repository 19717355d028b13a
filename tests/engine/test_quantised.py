"""Quantised checkpoints packed as they are stored: every number of the files, and none other, is in the matrices."""

import functools
import json
import re

import numpy as np
import pytest

import qwq_ref
from qwq_ref import core
from qwq_ref.cli import main
from qwq_ref.config import Config
from qwq_ref.core.layer import QKV
from qwq_ref.engine.convert import convert
from qwq_ref.errors import CheckpointError, UsageError
from tests.support import quantised_models as made
from tests.support.packed_matrices import packed_matrices
from tests.support.small_tokenizer import SENTENCES, SIZE, TEMPLATE, VALUES

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)
IDS = [3, 1, 4, 1, 5, 9, 2, 6]


def awq(group):
    settings = made.CONFIG | {"group_size": group}
    return settings, lambda rng, N, K: made.awq_matrix(rng, N, K, group)


# name -> (settings, from (rng, N, K) to the tensors and the values of a matrix)
def gptq(bits, group, version=1, **options):
    settings = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": "order" in options}
    settings |= {"checkpoint_format": "gptq_v2"} if version == 2 else {}
    return settings, functools.partial(made.gptq_matrix, group=group, bits=bits, version=version, **options)


def mlx(bits, group, dtype):
    return {"bits": bits, "group_size": group}, functools.partial(made.mlx_matrix, group=group, bits=bits, dtype=dtype)


def together(rng, K):
    """One order for all matrices of as many columns, as GPTQ gives to those with the same inputs."""
    return np.random.default_rng(K).permutation(K)


EIGHT = (8,) if "u8" in core.CODES else ()
KINDS = {f"AWQ, groups of {group}": awq(group) for group in (16, 32, 64, 128, -1)}
KINDS |= {f"GPTQ, {bits} bits": gptq(bits, 32) for bits in (2, 3, 4, *EIGHT)}
KINDS |= {f"GPTQ 2, {bits} bits": gptq(bits, 128, 2) for bits in (4, *EIGHT)}
KINDS |= {f"GPTQ in an order, {bits} bits": gptq(bits, 64, order=together) for bits in (4, *EIGHT)}
KINDS |= {"GPTQ in many orders": gptq(4, 32, order=made.shuffled), "GPTQ, whole rows": gptq(4, -1)}
KINDS |= {f"MLX, {bits} bits": mlx(bits, 64, np.float16) for bits in (3, 4, 5, 6, *EIGHT)}
KINDS |= {f"MLX in bfloat16, {bits} bits": mlx(bits, 64, made.BF16) for bits in (4, 6, *EIGHT)}


def write(folder, name, config=None, change=None, quantised=lambda name: ".layers." in name):
    """-> (config, float32 values) of a checkpoint in a folder"""
    settings, matrix = KINDS[name]
    config = config or Config.from_dict(made.values_of())
    tensors, values = made.model(config, matrix, quantised)
    if change is not None:
        change(tensors)
    made.write(folder, config, tensors, settings)
    return config, values


def assert_same(folder, config, values, **options):
    model = qwq_ref.load(folder, context=32, **options)
    assert (model.backend.form, model.backend.kv) == ("file", "int8")
    found = packed_matrices(config, model.backend.weights)
    for name, shape in config.tensors().items():
        if len(shape) == 2:
            assert found[name].tobytes() == values[name].tobytes(), name
    return model


def assert_near(folder):
    """Floats differ by roundings alone. Integers meet activations of 8 bits: random tokens can be sensitive to them."""
    exact = qwq_ref.load(folder, backend="numpy").logits(IDS)
    ours = qwq_ref.load(folder, kv="fp32").logits(IDS)
    assert np.median(np.abs(ours - exact).max(axis=1)) < 0.02 * np.abs(exact).max()
    floats = qwq_ref.load(folder, weights="fp32").logits(IDS)
    assert np.abs(floats - exact).max() < 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_kind_to_the_bit(tmp_path, name, threads):
    quantised = (lambda _: True) if name.startswith("MLX") else (lambda tensor: ".layers." in tensor)
    model = assert_same(tmp_path, *write(tmp_path, name, quantised=quantised), threads=threads)
    layer = model.backend.weights.layers[0]
    assert (layer.down.columns is not None) == ("order" in name)
    assert isinstance(layer.qkv, QKV) == ("orders" in name)
    assert (layer.gate_up.format == core.FORMATS["fp32"]) == ("orders" in name)
    if threads == 1:
        assert_near(tmp_path)


@pytest.mark.parametrize("name", KINDS)
def test_tied_and_with_floats_between(tmp_path, name):
    """Up is not quantised, and gate is: they are one matrix of floats. The MLP is no multiple of 32."""
    size = 288 if re.search("MLX|[235] bits", name) else 272
    config = Config.from_dict(made.values_of(tie_word_embeddings=True, intermediate_size=size))
    written = write(tmp_path, name, config, quantised=lambda name: "layers.0." in name or "down" in name)
    written[1]["lm_head.weight"] = written[1]["model.embed_tokens.weight"]
    assert_same(tmp_path, *written)
    other = Config.from_dict(made.values_of())
    mixed = write(tmp_path, name, other, quantised=lambda name: ".layers." in name and "up_proj" not in name)
    model = assert_same(tmp_path, *mixed)
    assert model.backend.weights.layers[0].gate_up.format == core.FORMATS["fp32"]
    assert_near(tmp_path)


@pytest.mark.parametrize(
    ("name", "leaf"),
    [("AWQ, groups of 32", "scales"), ("GPTQ, 4 bits", "scales"), ("MLX, 4 bits", "scales"), ("MLX, 4 bits", "biases")],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_scale_that_is_not_finite(tmp_path, name, leaf, value):
    def change(tensors):
        array = tensors[f"model.layers.1.mlp.up_proj.{leaf}"]
        array[(70, 1) if name.startswith("MLX") else (0, 70)] = value

    write(tmp_path, name, change=change)
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight: holds .* at \[70, ") as caught:
        qwq_ref.load(tmp_path, context=32)
    assert caught.value.file == str(tmp_path / "model.safetensors")


def test_the_line_of_memory_names_the_types(tmp_path):
    write(tmp_path, "AWQ, groups of 32")
    said = []
    qwq_ref.load(tmp_path, context=32, announce=lambda line, _: said.append(line))
    assert said[0].startswith("weights file (AWQ 4-bit, F16), KV cache int8, ")


@pytest.mark.parametrize("name", KINDS)
def test_a_converted_checkpoint_is_the_same_model(tmp_path, name):
    folder, packed = tmp_path / "a", tmp_path / "b"
    write(folder, name)
    for weights in ("file", "q8"):
        convert(folder, packed, weights)
        ours, theirs = (qwq_ref.load(each, weights=weights).logits(IDS) for each in (packed, folder))
        assert ours.tobytes() == theirs.tobytes()
    assert qwq_ref.load(packed).backend.form == "file"
    with pytest.raises(UsageError, match="q4 are not here; file, q8 are"):
        qwq_ref.load(packed, weights="q4")


def test_commands_know_the_form(tmp_path, capsys):
    write(tmp_path, "AWQ, groups of 32")
    assert main(["info", "-m", str(tmp_path), "--json"]) == 0
    capsys.readouterr()
    assert main(["doctor", "-m", str(tmp_path), "--json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)["models"]
    assert "--weights file --kv int8" in facts["command"]


def test_it_answers_with_the_tokenizer_of_the_awq_release(tmp_path, capsys):
    """tokenizer.json has no added tokens there: tokenizer_config.json and added_tokens.json have them."""
    config = Config.from_dict(made.values_of(vocab_size=SIZE + 11))
    write(tmp_path, "AWQ, groups of 32", config)
    entries = VALUES["added_tokens"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(VALUES | {"added_tokens": entries[:3]}))
    decoder = {str(each["id"]): {key: value for key, value in each.items() if key != "id"} for each in entries}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({each["content"]: each["id"] for each in entries[3:]}))
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    command = ["generate", "-m", str(tmp_path), "-p", SENTENCES[0], "-n", "4", "--seed", "1", "--temp", "0.6"]
    assert main(command) in (0, 3)
    assert "added" not in capsys.readouterr().err
    assert qwq_ref.load(tmp_path).tokenizer.think_end is not None
