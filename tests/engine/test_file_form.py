"""GGUF files packed as they are stored: every number of the file, and none other, is in the packed matrices."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import qwq_ref
from qwq_ref import core
from qwq_ref.cli import main
from qwq_ref.core.layer import QKV
from qwq_ref.engine.ahead import check_small, expected_memory
from qwq_ref.engine.convert import convert
from qwq_ref.engine.fit import core_needs
from qwq_ref.engine.plan import head_is_embedding, model_bytes, plan
from qwq_ref.errors import CheckpointError, MemoryLimitError, TemplateError, TokenizerError, UsageError
from qwq_ref.formats import Download, open_source
from qwq_ref.formats.gguf import header, read_header
from qwq_ref.formats.packed import read_packed, write_packed
from tests.support.gguf_models import (
    NATIVE,
    NATIVE_SUPER,
    fuse_qkv,
    gguf_tensor_name,
    mixture,
    peer_config,
    write_types,
)
from tests.support.packed_matrices import packed_matrices
from tests.support.safetensors_files import WEIGHTS, write

gguf = pytest.importorskip("gguf")
if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)
CONFIG = peer_config(num_hidden_layers=2)
IDS = [3, 1, 4, 1, 5, 9, 2, 6]


def assert_same(path, config, wanted, **options):
    model = qwq_ref.load(path, context=32, **options)
    assert model.backend.form == "file"
    found = packed_matrices(config, model.backend.weights)
    for name, shape in config.tensors().items():
        if len(shape) == 2:
            assert found[name].tobytes() == wanted[gguf_tensor_name(name)].astype(np.float32).tobytes(), name
    return model


@pytest.mark.parametrize("kind", [*NATIVE, *NATIVE_SUPER])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_type_to_the_bit(tmp_path, kind, threads):
    wanted = write_types(tmp_path / "m.gguf", CONFIG, lambda _: kind)
    model = assert_same(tmp_path / "m.gguf", CONFIG, wanted, threads=threads)
    exact = qwq_ref.load(tmp_path / "m.gguf", backend="numpy").logits(IDS)
    assert model.backend.kv == ("fp32" if kind in ("F32", "F16", "BF16") else "int8")
    ours = qwq_ref.load(tmp_path / "m.gguf", kv="fp32").logits(IDS)
    # Floats differ by roundings alone; integers meet activations of 8 bits.
    limit = 1e-5 if kind in ("F32", "F16", "BF16") else 0.05
    assert np.abs(ours - exact).max() < limit * np.abs(exact).max()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("tied", [False, True])
def test_any_mixture_to_the_bit(tmp_path, seed, tied):
    """Each matrix has a type of its own: gate and up, too."""
    rng = np.random.default_rng(seed)
    kinds = list(rng.permutation([*NATIVE, *NATIVE_SUPER]))
    config = peer_config(num_hidden_layers=2, tie_word_embeddings=tied)
    wanted = write_types(tmp_path / "m.gguf", config, mixture(kinds), seed=seed)
    wanted.setdefault("output.weight", wanted["token_embd.weight"])
    model = assert_same(tmp_path / "m.gguf", config, wanted)
    assert any(isinstance(layer.qkv, QKV) for layer in model.backend.weights.layers)
    exact = qwq_ref.load(tmp_path / "m.gguf", backend="numpy").logits(IDS)
    ours = qwq_ref.load(tmp_path / "m.gguf", kv="fp32").logits(IDS)
    assert np.abs(ours - exact).max() < 0.05 * np.abs(exact).max()
    with open_source(tmp_path / "m.gguf") as source:
        form = source.kept.form
        assert head_is_embedding(config, form) == tied
        assert (model.backend.weights.embedding is model.backend.weights.head) == tied
        stored = [
            part.nbytes
            for layer in model.backend.weights.layers
            for part in (*(packed.packed for packed in layer), layer.input_norm, layer.qkv_bias, layer.post_norm)
        ]
        ends = {id(each): each.packed.nbytes for each in (model.backend.weights.embedding, model.backend.weights.head)}
        size = sum(stored) + sum(ends.values()) + model.backend.weights.norm.nbytes
        assert size == model_bytes(config, form) == core_needs(config, form, "int8")(32)["weights"]
        assert sum(each.nbytes for each in plan(config, form).values()) == size


def test_equal_types_are_one_matrix(tmp_path):
    write_types(tmp_path / "m.gguf", CONFIG, lambda _: "Q4_K")
    layers = qwq_ref.load(tmp_path / "m.gguf", context=32).backend.weights.layers
    assert not any(isinstance(layer.qkv, QKV) for layer in layers)


@pytest.mark.parametrize("F", [64, 80, 544])
def test_an_mlp_that_is_no_multiple_of_32(tmp_path, F):
    config = peer_config(num_hidden_layers=1, intermediate_size=F)
    kinds = {"ffn_down": "F16" if F % 32 else "Q5_1"}
    wanted = write_types(tmp_path / "m.gguf", config, lambda name: kinds.get(name.split(".")[-2], "Q4_0"))
    model = assert_same(tmp_path / "m.gguf", config, wanted)
    exact = qwq_ref.load(tmp_path / "m.gguf", backend="numpy").logits(IDS)
    assert np.abs(model.logits(IDS) - exact).max() < 0.05 * np.abs(exact).max()


def test_q_k_and_v_of_one_tensor(tmp_path):
    wanted = write_types(tmp_path / "apart.gguf", CONFIG, lambda _: "Q6_K")
    write_types(tmp_path / "m.gguf", CONFIG, lambda _: "Q6_K", tensors=fuse_qkv)
    assert_same(tmp_path / "m.gguf", CONFIG, wanted)


def spoil(name, row, at, value):
    """Write a float16 into a block of a matrix."""

    def tensors(found):
        data, kind = found[name]
        data = data.copy()
        data.view(np.uint8)[row, at : at + 2] = np.array([value], np.float16).view(np.uint8)
        found[name] = data, kind

    return tensors


@pytest.mark.parametrize(
    ("kind", "at", "value", "what"),
    [
        ("Q4_0", 18, np.inf, "(NaN|infinity) at [70, 32]"),
        ("Q4_K", 2, np.nan, "NaN at [70, 0]"),
        ("F16", 6, np.nan, "NaN at [70, 3]"),
        ("Q6_K", 208, -np.inf, "(NaN|infinity) at [70, 0]"),
    ],
)
def test_a_scale_that_is_not_finite(tmp_path, kind, at, value, what):
    path, name = tmp_path / "m.gguf", "blk.1.ffn_up.weight"
    write_types(path, CONFIG, lambda _: kind, tensors=spoil(name, 70, at, value))
    with pytest.raises(CheckpointError) as caught:
        qwq_ref.load(path, context=32)
    error = caught.value
    assert (error.file, error.field) == (str(path), "model.layers.1.mlp.up_proj.weight")
    assert re.fullmatch(f"holds {what.replace('[', chr(92) + '[')}", error.problem)  # infinity times 0 is NaN


def test_the_smallest_code_of_q8_0(tmp_path):
    """llama.cpp writes no -128, and other programs may."""

    def tensors(found):
        data, kind = found["blk.0.ffn_up.weight"]
        data = data.copy()
        data[40].reshape(-1, 34)[:, 2:] = 128  # -128
        found["blk.0.ffn_up.weight"] = data, kind

    path = tmp_path / "m.gguf"
    wanted = write_types(path, CONFIG, lambda _: "Q8_0", tensors=tensors)
    model = assert_same(path, CONFIG, wanted)
    assert model.backend.weights.layers[0].gate_up.format == core.Format("q8", 32)


def test_other_types_are_repacked_and_announced(tmp_path):
    path, said = tmp_path / "m.gguf", []
    kinds = {"ffn_up": "IQ2_XXS", "ffn_down": "IQ3_S"}
    write_types(path, CONFIG, lambda name: kinds.get(name.split(".")[-2], "Q4_K"))
    model = qwq_ref.load(path, context=32, announce=lambda line, _: said.append(line))
    assert "2 of IQ2_XXS, 2 of IQ3_S repacked in q8 with an error of 0." in said[0]
    assert model.backend.weights.layers[0].down.format == core.FORMATS["q8"]
    exact = qwq_ref.load(path, backend="numpy").logits(IDS)
    assert np.abs(model.logits(IDS) - exact).max() < 0.05 * np.abs(exact).max()
    with open_source(path) as source:
        assert source.kept.repacked == {"IQ2_XXS": 2, "IQ3_S": 2}
        assert 1e-3 < source.kept.loss() < 0.01


def test_nothing_is_lost_of_other_files(tmp_path):
    write_types(tmp_path / "m.gguf", CONFIG, lambda _: "Q4_K")
    with open_source(tmp_path / "m.gguf") as source:
        assert (source.kept.repacked, source.kept.loss()) == ({}, 0.0)


def test_a_checkpoint_has_no_form_of_its_own(tmp_path):
    write(tmp_path, {"model.safetensors": WEIGHTS})
    with pytest.raises(UsageError, match="weights: file is for quantised files"):
        qwq_ref.load(tmp_path, weights="file")


def test_a_file_that_does_not_fit_is_loaded_smaller(tmp_path, monkeypatch):
    path = tmp_path / "m.gguf"
    write_types(path, CONFIG, lambda _: "Q8_0")
    with open_source(path) as source:
        sizes = [sum(core_needs(CONFIG, form, "int8")(64).values()) for form in (source.kept.form, "q4")]
    assert sizes[1] < sizes[0]
    monkeypatch.setattr("qwq_ref.host.memory.available_bytes", lambda: sum(sizes) // 2)
    assert qwq_ref.load(path, context=64).backend.form == "q4"
    with pytest.raises(MemoryLimitError, match="weights q4 with KV cache int8 fit"):
        qwq_ref.load(path, context=64, weights="file")


def test_doctor_knows_the_form(tmp_path, capsys):
    path = tmp_path / "m.gguf"
    write_types(path, CONFIG, mixture(("Q4_K", "Q6_K")))
    assert main(["doctor", "-m", str(path), "--json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)["models"]
    with open_source(path) as source:
        size = model_bytes(CONFIG, source.kept.form)
    assert {c["weights"]: c["weight_bytes"] for c in facts["choices"]}["file"] == size
    assert facts["best"]["weights"] == "file"
    assert "--weights file --kv int8" in facts["command"]
    assert main(["doctor", "-m", str(path)]) == 0


def test_the_header_is_read_once(tmp_path, monkeypatch, capsys):
    """By the command and from Python: for config, sampling, template and tokenizer."""
    write_types(tmp_path / "m.gguf", CONFIG, lambda _: "Q4_0")
    read, reads = header.read_header_of, []

    def counted(*given, **options):
        reads.append(given)
        return read(*given, **options)

    monkeypatch.setattr(header, "read_header_of", counted)
    monkeypatch.setattr("qwq_ref.formats.gguf.source.read_header_of", counted)
    qwq_ref.load(tmp_path / "m.gguf", context=32)
    assert len(reads) == 1
    assert main(["generate", "-m", str(tmp_path / "m.gguf"), "hello"]) != 0
    assert "tokenizer.ggml.model: is missing" in capsys.readouterr().err
    assert len(reads) == 2


def some_metadata(writer):
    writer.add_eos_token_id(5)
    writer.add_float32("general.sampling.temp", 0.7)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(32)
    writer.add_token_list([f"t{i}" for i in range(300)])


@pytest.mark.parametrize("tied", [False, True])
def test_a_converted_file_is_the_same_model(tmp_path, tied, capsys):
    config = peer_config(num_hidden_layers=2, tie_word_embeddings=tied)
    path, folder = tmp_path / "m.gguf", tmp_path / "packed"
    write_types(path, config, mixture([*NATIVE_SUPER, *NATIVE]), metadata=some_metadata)
    assert main(["convert", "-m", str(path), "-o", str(folder), "--weights", "file"]) == 0
    assert main(["convert", "-m", str(path), "-o", str(folder), "--weights", "q4"]) == 0
    names = {"config.json", "generation_config.json", "tokenizer.gguf", "qwq-manifest.json"}
    names |= {f"packed-{form}.safetensors" for form in ("file", "q4")}
    assert {each.name for each in folder.iterdir()} == names
    tokens = read_header(folder / "tokenizer.gguf").fields["tokenizer.ggml.tokens"].strings()
    assert tokens == [f"t{i}" for i in range(300)]
    with open_source(folder) as ours, open_source(path) as theirs:
        assert (ours.config, ours.generation_config()) == (theirs.config, theirs.generation_config())
        assert ours.tokenizer == ours.template == folder / "tokenizer.gguf"
        assert model_bytes(config, ours.kept.form) == model_bytes(config, theirs.kept.form)
    for weights in ("file", "q4"):
        ours, theirs = (qwq_ref.load(each, weights=weights).logits(IDS) for each in (folder, path))
        assert ours.tobytes() == theirs.tobytes()
    said = []
    assert qwq_ref.load(folder, announce=lambda line, _: said.append(line)).backend.form == "file"
    assert said[0].startswith("weights file, KV cache int8, ")
    assert qwq_ref.load(folder / "packed-file.safetensors").backend.form == "file"
    capsys.readouterr()
    assert main(["info", "-m", str(folder), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["packed_bytes"]) == {"file", "q4"}
    assert main(["doctor", "-m", str(folder), "--json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)["models"]
    assert list(dict.fromkeys(c["weights"] for c in facts["choices"])) == ["file", "q4"]
    with pytest.raises(UsageError, match="q8 are not here; file, q4 are"):
        qwq_ref.load(folder, weights="q8")


def test_a_packed_file_that_lacks_a_matrix(tmp_path):
    path, folder = tmp_path / "m.gguf", tmp_path / "packed"
    write_types(path, CONFIG, lambda _: "Q4_K")
    file = convert(path, folder, "file")
    tensors = read_packed(file)
    name = "model.layers.1.self_attn.o_proj.weight"
    write_packed(file, {key: value for key, value in tensors.items() if key != name})
    with pytest.raises(CheckpointError, match=r"o_proj\.weight: missing, or not packed"):
        qwq_ref.load(folder)
    with pytest.raises(UsageError, match="file is for quantised files"):
        convert("qwq-nano", tmp_path / "other", "file")


def test_the_memory_of_a_download_in_this_form():
    """The formats of its matrices are not known before it is there, but the bytes of its file are."""
    files = {"packed-file.safetensors": 5 << 20, "packed-q4.safetensors": 1 << 20, "tokenizer.gguf": 100}

    def line(**asked):
        return expected_memory(Download("some/model", Path(), files, tuple(files), CONFIG), **asked)[0]

    assert line().startswith("weights file, KV cache int8, ")
    assert "weights 5.00 MiB" in line(weights="file", kv="fp32", context=32)
    assert line(weights="q4").startswith("weights q4, KV cache int8, ")
    with pytest.raises(UsageError, match="q8 are not here; file, q4 are"):
        line(weights="q8")
    files["packed-file.safetensors"] = 1 << 50
    with pytest.raises(MemoryLimitError):
        line(weights="file")
    assert line().startswith("weights q4, ")
    del files["packed-file.safetensors"], files["packed-q4.safetensors"]
    files["model.safetensors"] = 1 << 20
    with pytest.raises(UsageError, match="some/model: weights: file is for quantised files, and here is none"):
        line(weights="file")


def test_the_memory_of_a_quantised_download():
    files = {"config.json": 100, "model-1.safetensors": 3 << 20, "model-2.safetensors": 2 << 20}
    download = Download("some/model", Path(), files, tuple(files), CONFIG, quantised=True)
    assert "weights 5.00 MiB" in expected_memory(download, context=32)[0]
    assert expected_memory(download, weights="q4")[0].startswith("weights q4, ")
    files["model-1.safetensors"] = 1 << 50
    assert expected_memory(download)[0].startswith("weights q8, ")
    with pytest.raises(MemoryLimitError):
        expected_memory(download, weights="file")


def test_small_files_of_a_download_in_this_form(tmp_path):
    """The template and the tokenizer of packed weights are in the metadata that came before the weights."""
    path, folder = tmp_path / "m.gguf", tmp_path / "packed"
    write_types(path, CONFIG, lambda _: "Q4_K", metadata=lambda writer: writer.add_chat_template("{{ oops"))
    file = convert(path, folder, "file")
    file.unlink()
    with pytest.raises(TemplateError, match=r"tokenizer\.gguf"):
        check_small(folder)
    with pytest.raises(TokenizerError, match=r"tokenizer\.gguf: tokenizer\.ggml\.model: is missing"):
        check_small(folder, text=True)


def test_a_converted_file_says_no_more_of_sampling(tmp_path):
    path = tmp_path / "m.gguf"
    write_types(path, CONFIG, lambda _: "Q4_K")
    convert(path, tmp_path / "packed", "file")
    (line,) = qwq_ref.load(tmp_path / "packed").defaults.surprises("--temp X")
    assert line.startswith(f"{tmp_path / 'packed' / 'generation_config.json'}: says nothing of sampling: ")
