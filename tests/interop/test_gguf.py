"""The file of random weights for a benchmark is what it says."""

import shutil
import sys
import tracemalloc

import numpy as np
import pytest

from qwq_ref.config import Config
from qwq_ref.errors import ConfigError, QwqError, UsageError
from qwq_ref.interop.llama_cpp import gguf as gguf_module
from qwq_ref.interop.llama_cpp.gguf import QUANTS, gguf_bytes, write_gguf
from qwq_ref.interop.llama_cpp.peer import Peer
from tests.support.gguf_models import peer_config as config_of
from tests.support.paths import QWQ_CONFIG


def finer(layers):
    """In which layers of a Q4_K file attn_v and ffn_down are Q6_K."""
    kinds = gguf_module._tensors(config_of(num_hidden_layers=layers), "Q4_K")
    found = [layer for layer in range(layers) if kinds[f"blk.{layer}.attn_v.weight"][1] == "Q6_K"]
    assert found == [layer for layer in range(layers) if kinds[f"blk.{layer}.ffn_down.weight"][1] == "Q6_K"]
    return found


def test_which_layers_are_finer():
    """The first and the last eighth, and every third in between; 32 of QwQ-32B's 64."""
    assert finer(1) == [0]
    assert finer(2) == [1]
    assert finer(8) == [0, 3, 6, 7]
    assert finer(64) == [*range(8), *range(10, 56, 3), *range(56, 64)]
    assert len(finer(64)) == 32


def test_the_size_of_qwq_32b():
    """18.63 and 19.85 GB; by arithmetic from the shapes alone."""
    config = Config.from_file(QWQ_CONFIG)
    D, F, V, L = config.D, config.F, config.V, config.L
    KE, vectors = config.K * config.E, 4 * (L * (4 * config.D + 2 * config.K * config.E - D) + D)
    layer = 2 * D * D + 2 * D * KE + 3 * D * F
    assert gguf_bytes(config, "Q4_0") == (L * layer + V * D) * 18 // 32 + V * D * 210 // 256 + vectors
    more = 32 * (D * KE + D * F) * (210 - 144) // 256
    assert gguf_bytes(config, "Q4_K") == gguf_bytes(config, "Q4_0") + more


@pytest.mark.parametrize(
    ("changes", "quant", "error", "field", "words"),
    [
        ({"head_dim": 32}, "Q4_0", ConfigError, "hidden_size", "heads x head_dim = 128"),
        ({"intermediate_size": 544}, "Q4_K", ConfigError, "model.layers.0.mlp.down_proj.weight", "rows of 544"),
        ({"intermediate_size": 520}, "Q4_0", ConfigError, "model.layers.0.mlp.down_proj.weight", "Q4_0"),
        ({"hidden_size": 128, "head_dim": 32}, "Q4_0", ConfigError, "lm_head.weight", "Q6_K"),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "Q4_0", ConfigError,
         "sliding_window", "llama.cpp"),
        ({}, "Q8_0", UsageError, "quant", "Q4_0, Q4_K"),
    ],
)  # fmt: skip
def test_shapes_that_the_file_cannot_have(changes, quant, error, field, words, tmp_path, gguf):
    for call in (
        lambda: gguf_bytes(config_of(**changes), quant),
        lambda: write_gguf(tmp_path / "m.gguf", config_of(**changes), quant),
    ):
        with pytest.raises(error) as caught:
            call()
        assert caught.value.field == field
        assert words in caught.value.problem
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["llama_cpp", "gguf"])
def test_without_the_packages(module, monkeypatch, tmp_path):
    for name in ("llama_cpp", "gguf"):
        monkeypatch.setitem(sys.modules, name, gguf_module)  # stands for an installed one
    monkeypatch.setitem(sys.modules, module, None)
    for call in (
        lambda: write_gguf(tmp_path / "m.gguf", config_of(), "Q4_0"),
        lambda: Peer(tmp_path / "m.gguf", "peer", 1, 64),
    ):
        with pytest.raises(UsageError, match=r"pip install 'qwq_ref\[bench\]'"):
            call()
    assert not list(tmp_path.iterdir())


EXPECTED = {
    "Q4_0": {"token_embd": "Q4_0", "output": "Q6_K", "matrix": "Q4_0", "finer": "Q4_0"},
    "Q4_K": {"token_embd": "Q4_K", "output": "Q6_K", "matrix": "Q4_K", "finer": "Q6_K"},
}


@pytest.mark.parametrize("quant", QUANTS)
def test_types_shapes_and_sizes(quant, gguf, files):
    config = config_of()
    reader = gguf.GGUFReader(files[quant])
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    kinds = EXPECTED[quant]
    wanted = {"token_embd.weight": kinds["token_embd"], "output.weight": kinds["output"], "output_norm.weight": "F32"}
    for layer in range(2):
        for name in ("attn_norm.weight", "ffn_norm.weight", "attn_q.bias", "attn_k.bias", "attn_v.bias"):
            wanted[f"blk.{layer}.{name}"] = "F32"
        for name in ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"):
            wanted[f"blk.{layer}.{name}.weight"] = kinds["matrix"]
        for name in ("attn_v", "ffn_down"):
            wanted[f"blk.{layer}.{name}.weight"] = kinds["finer" if layer == 1 else "matrix"]
    assert types == wanted
    shapes = [tuple(int(n) for n in tensor.shape[::-1]) for tensor in reader.tensors]
    assert shapes == list(config.tensors().values())  # in the same order
    assert gguf_bytes(config, quant) == sum(int(tensor.n_bytes) for tensor in reader.tensors)
    end = max(int(tensor.data_offset + tensor.n_bytes) for tensor in reader.tensors)
    assert 0 <= files[quant].stat().st_size - end < 32


@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_head_is_the_embedding(tied, gguf, tmp_path):
    """Stored as the output is."""
    write_gguf(tmp_path / "m.gguf", config_of(tie_word_embeddings=tied), "Q4_0")
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert types["token_embd.weight"] == ("Q6_K" if tied else "Q4_0")
    assert ("output.weight" in types) == (not tied)
    with Peer(tmp_path / "m.gguf", "tied", 1, 64) as peer:
        assert peer.prompt(5) > 0


@pytest.mark.parametrize("quant", QUANTS)
def test_metadata_is_the_configs(quant, gguf, files):
    config = config_of()
    fields = gguf.GGUFReader(files[quant]).fields
    values = {name: field.parts[field.data[0]] for name, field in fields.items() if field.data}
    numbers = {name: value[0] for name, value in values.items() if value.dtype != np.uint8}
    for name, wanted in {
        "general.file_type": gguf.LlamaFileType[{"Q4_0": "MOSTLY_Q4_0", "Q4_K": "MOSTLY_Q4_K_M"}[quant]],
        "qwen2.block_count": config.L,
        "qwen2.embedding_length": config.D,
        "qwen2.feed_forward_length": config.F,
        "qwen2.attention.head_count": config.H,
        "qwen2.attention.head_count_kv": config.K,
        "qwen2.vocab_size": config.V,
        "qwen2.context_length": config.max_position_embeddings,
        "qwen2.rope.freq_base": np.float32(config.rope.theta),
        "qwen2.attention.layer_norm_rms_epsilon": np.float32(config.rms_norm_eps),
    }.items():
        assert numbers[name] == wanted, name
    assert bytes(values["general.architecture"]) == b"qwen2"


@pytest.mark.parametrize("quant", QUANTS)
def test_weights_are_sane(quant, gguf, files):
    """Finite, around zero, of the deviation that is promised, and no two rows of a matrix the same."""
    for tensor in gguf.GGUFReader(files[quant]).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        center = 1 if tensor.name.endswith("norm.weight") else 0
        # 32 weights of Q4_K have a least value in common, and 256 a scale.
        assert abs(values.mean() - center) < 5 * 0.02 / np.sqrt(values.size / 32), tensor.name
        assert values.std() == pytest.approx(0.02, rel=5 / np.sqrt(values.size / 32)), tensor.name
        if values.ndim == 2:
            assert len(np.unique(values, axis=0)) == len(values), tensor.name


def test_blocks_have_no_bias(gguf, files):
    """Scales have either sign, which would hide what a block of Q4_K has in common: the mean of s q is the least's."""
    shares = []
    for tensor in gguf.GGUFReader(files["Q4_K"]).tensors:
        if tensor.tensor_type.name == "Q4_K":
            sign = np.sign(tensor.data.reshape(-1, 144)[:, :2].copy().view(np.float16)[:, 0]).astype(np.float32)
            blocks = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(-1, 256)
            shares.append(blocks.mean(axis=1) * sign)
    shares = np.concatenate(shares)
    assert abs(shares.mean()) < 5 * shares.std() / np.sqrt(len(shares)) < 0.001


def test_the_seed_decides(gguf, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_gguf(tmp_path / name, config_of(), "Q4_K", seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c
    assert len(a) == len(c)


def test_a_large_file(gguf, tmp_path):
    """Memory does not grow with it, progress tells of every byte, and repeated blocks are no repeated rows."""
    config = config_of(vocab_size=150_000, num_hidden_layers=1)
    told = []
    tracemalloc.start()
    try:
        write_gguf(tmp_path / "m.gguf", config, "Q4_0", progress=told.append)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(told) == gguf_bytes(config, "Q4_0") > 53e6
    assert len(told) > len(config.tensors())
    assert peak < 45e6
    rows = gguf.GGUFReader(tmp_path / "m.gguf").tensors[0].data[:100_000]
    assert len({row.tobytes() for row in rows}) == 100_000


def test_a_disk_without_room(gguf, tmp_path, monkeypatch):
    needed = gguf_bytes(config_of(), "Q4_0") + (1 << 20)

    def usage(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, free))

    usage(needed - 1)
    with pytest.raises(QwqError, match=r"m\.gguf: needs .* of disk space, but .* are free"):
        write_gguf(tmp_path / "m.gguf", config_of(), "Q4_0")
    assert not list(tmp_path.iterdir())
    usage(needed)
    write_gguf(tmp_path / "m.gguf", config_of(), "Q4_0")
    with pytest.raises(QwqError, match=r"nowhere/m\.gguf: cannot be written \(No such file"):
        write_gguf(tmp_path / "nowhere" / "m.gguf", config_of(), "Q4_0")


@pytest.mark.parametrize(
    ("problem", "error"), [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left"), QwqError)]
)
def test_nothing_is_left_of_a_file_that_was_not_finished(problem, error, gguf, tmp_path):
    (tmp_path / "m.gguf").write_text("what was there before")

    def progress(_):
        raise problem

    with pytest.raises(error):
        write_gguf(tmp_path / "m.gguf", config_of(), "Q4_0", progress=progress)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    assert (tmp_path / "m.gguf").read_text() == "what was there before"
