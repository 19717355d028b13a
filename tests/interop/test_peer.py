"""llama.cpp as a peer: the file is what it says, and what is timed is what was asked for. Nothing depends on speed.

What runs llama.cpp needs llama-cpp-python and gguf, which the test dependencies do not include, and is skipped without.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from qwq_ref.config import Config
from qwq_ref.errors import (
    ConfigError,
    MemoryLimitError,
    QwqError,
    UsageError,
)
from qwq_ref.host import memory
from qwq_ref.interop.llama_cpp import peer as peers
from qwq_ref.interop.llama_cpp.bindings import Library
from qwq_ref.interop.llama_cpp.peer import (
    Peer,
    configurations,
    gguf_bytes,
    write_gguf,
)
from tests.support.models import config_values
from tests.support.paths import QWQ_CONFIG, ROOT

QUANTS = ("Q4_0", "Q4_K")


def config_of(**changes):
    """The smallest that has whole blocks of each format."""
    values = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 300,
        "rope_theta": 1e6,
    }
    return Config.from_dict(config_values() | values | changes)


@pytest.fixture(scope="session")
def gguf():
    pytest.importorskip("llama_cpp", reason="runs the real llama.cpp: pip install 'qwq_ref[bench]'")
    return pytest.importorskip("gguf", reason="writes models for the real llama.cpp: pip install 'qwq_ref[bench]'")


@pytest.fixture(scope="session")
def files(gguf, tmp_path_factory):
    """quant -> a file of `config_of`."""
    folder = tmp_path_factory.mktemp("peer")
    for quant in QUANTS:
        write_gguf(folder / f"{quant}.gguf", config_of(), quant)
    return {quant: folder / f"{quant}.gguf" for quant in QUANTS}


# ------------------------------------------------------------------------------------ the file, by arithmetic


def finer(layers):
    """In which layers of a Q4_K file attn_v and ffn_down are Q6_K."""
    kinds = peers._tensors(config_of(num_hidden_layers=layers), "Q4_K")
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
        monkeypatch.setitem(sys.modules, name, peers)  # stands for an installed one
    monkeypatch.setitem(sys.modules, module, None)
    for call in (
        lambda: write_gguf(tmp_path / "m.gguf", config_of(), "Q4_0"),
        lambda: Peer(tmp_path / "m.gguf", "peer", 1, 64),
    ):
        with pytest.raises(UsageError, match=r"pip install 'qwq_ref\[bench\]'"):
            call()
    assert not list(tmp_path.iterdir())


def test_the_four_that_count():
    found = configurations(3, 1000, flash_attention=True, kv="q8_0")
    assert [(c.name, c.quant, c.repack) for c in found] == [
        ("llama.cpp Q4_0", "Q4_0", True),
        ("llama.cpp Q4_0, no repacking", "Q4_0", False),
        ("llama.cpp Q4_K", "Q4_K", True),
        ("llama.cpp Q4_K, no repacking", "Q4_K", False),
    ]
    assert {(c.threads, c.context, c.flash_attention, c.kv) for c in found} == {(3, 1000, True, "q8_0")}


# ------------------------------------------------------------------------------------ the file, as others read it


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


# ------------------------------------------------------------------------------------ the session, in this process


class Watched(Library):
    """Notes each batch: (first position, its tokens' number, the places whose logits are wanted)."""

    def __init__(self):
        super().__init__(QwqError)
        self.seen = []

    def decode(self, run, batch):
        n = batch.n_tokens
        self.seen.append((batch.pos[0], n, [i for i in range(n) if batch.logits[i]]))
        return super().decode(run, batch)

    def noted(self):
        seen, self.seen = self.seen, []
        return seen


@pytest.fixture
def session(files, request):
    """Of Q4_0, with room for 2048 positions."""
    library, path = Watched(), files["Q4_0"]
    context = {"n_ctx": 2048, "n_batch": 512, "n_ubatch": 512, "n_threads": 1, "n_threads_batch": 1}
    with (
        library.log() as log,
        library.model(path, {}, log) as model,
        library.context(path, model, context, None, log) as run,
    ):
        yield peers._Session(str(path), library, run, library.vocabulary(model), 2048, log)


def logits_of(session):
    address = session.library.api.llama_get_logits_ith(session.run, -1)
    return np.ctypeslib.as_array(address, (session.vocabulary,)).copy()


def test_a_prompt_is_computed_as_llama_bench_does(session):
    """512 at once, and the logits of the last token alone. The first time it is computed once more before."""
    session.prompt(600, 0)
    measured = [(0, 512, []), (512, 88, [87])]
    assert session.library.noted() == [(0, 512, [511]), *measured]
    session.prompt(600, 0)
    assert session.library.noted() == measured
    session.prompt(7, 3)
    assert session.library.noted() == [(0, 3, []), (3, 7, [6]), (3, 7, [6])]


def test_decoding_goes_token_by_token(session):
    session.decode(3, 10)
    measured = [(10, 1, [0]), (11, 1, [0]), (12, 1, [0])]
    assert session.library.noted() == [(0, 10, []), (10, 1, [0]), *measured]
    session.decode(3, 10)
    assert session.library.noted() == measured


def test_a_depth_is_computed_once(session):
    session.prompt(512, 0)
    session.decode(1, 0)
    session.library.noted()
    measured = [(1100, 1, [0]), (1101, 1, [0])]
    session.decode(2, 1100)
    assert session.library.noted() == [(0, 512, []), (512, 512, []), (1024, 76, []), *measured]
    session.decode(2, 1100)
    assert session.library.noted() == measured
    session.decode(1, 1103)  # more is added
    assert session.library.noted() == [(1100, 3, []), (1103, 1, [0])]
    session.decode(1, 40)  # what is there is used
    assert session.library.noted() == [(40, 1, [0])]
    session.decode(1, 50)  # and the rest is gone
    assert session.library.noted() == [(40, 10, []), (50, 1, [0])]


def test_what_was_rolled_back_has_no_influence(session, files):
    """The logits are those of a context in which nothing else has ever been."""
    session.prompt(300, 0)
    session.decode(20, 200)
    session.prompt(30, 100)
    after = logits_of(session)
    library = session.library
    ids = session.ids[:130]
    settings = {"n_ctx": 2048, "n_threads": 1, "n_threads_batch": 1}
    with (
        library.log() as log,
        library.model(files["Q4_0"], {}, log) as model,
        library.context(files["Q4_0"], model, settings, None, log) as run,
        library.batch(ids[:100], 0, [False] * 100) as depth,
        library.batch(ids[100:], 100, [i == 29 for i in range(30)]) as prompt,
    ):
        assert library.decode(run, depth) == library.decode(run, prompt) == 0
        fresh = np.ctypeslib.as_array(library.api.llama_get_logits_ith(run, -1), (300,)).copy()
    assert 0.1 < fresh.std() < 10
    np.testing.assert_allclose(after, fresh, atol=1e-4)


def test_a_cache_that_holds_something_else_is_noticed(session, monkeypatch):
    monkeypatch.setattr(session.library, "remove", lambda run, start: None)
    with pytest.raises(QwqError, match=r"positions were in the cache, not 0 and 2|cannot decode it"):
        session.decode(2, 0)
    monkeypatch.undo()
    monkeypatch.setattr(session.library, "positions", lambda run: 5)
    with pytest.raises(QwqError, match="5 and then 5 positions were in the cache, not 0 and 2"):
        session.decode(2, 0)


def test_logits_that_are_not_finite_are_no_measurement(gguf, tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, config_of(), "Q4_0")
    output = next(t for t in gguf.GGUFReader(path).tensors if t.name == "output.weight")
    with open(path, "r+b") as file:
        file.seek(int(output.data_offset) + 208)  # the scale of its first block
        file.write(np.float16(np.nan).tobytes())
    with Peer(path, "peer", 1, 64) as peer, pytest.raises(QwqError, match="logits are not finite"):
        peer.decode(1)


# ------------------------------------------------------------------------------------ the process


@pytest.mark.parametrize("choice", configurations(1, 1100), ids=lambda choice: choice.name)
def test_each_configuration_runs(choice, files, capfd):
    with choice.start(files[choice.quant]) as peer:
        assert peer.name == choice.name
        assert peer.prompt(600) > 0
        assert peer.positions == (0, 600)
        assert peer.decode(3, depth=1000) > 0
        assert peer.positions == (1000, 1003)
        assert peer.prompt(20, depth=1000) > 0
        assert peer.positions == (1000, 1020)
        assert peer.decode(1) > 0
        assert peer.positions == (0, 1)
        assert peer.prompt(100, depth=1000) > 0
        assert peer.positions == (1000, 1100)
        assert peer.peak_bytes() > 10e6
        assert peer.version.startswith("llama-cpp-python ")
        assert peer.version.endswith(", f16 cache, mmap")
        assert "CPU_Mapped" in peer.buffers
        if "REPACK = 1" in peer.system:
            assert ("CPU_REPACK" in peer.buffers) == choice.repack
            assert (", repacking," in peer.version) == choice.repack
            assert (", no repacking," in peer.version) != choice.repack
    assert peer._process.poll() is not None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("flash", "kv", "words"),
    [
        (None, "f16", "flash attention auto"),
        (True, "f16", "flash attention on, f16 cache"),
        (False, "f16", "flash attention off, f16 cache"),
        (True, "q8_0", "flash attention on, q8_0 cache"),
    ],
)
def test_settings_reach_llama_cpp(flash, kv, words, files):
    with Peer(files["Q4_0"], "peer", 1, 300, flash_attention=flash, kv=kv) as peer:
        assert words in peer.version
        assert peer.prompt(5, depth=200) > 0


def test_what_settings_become(files, monkeypatch):
    """The fields of llama.cpp's own parameters."""
    given = {}

    class StopError(Exception):
        pass

    class Recorded(Library):
        def _set(self, parameters, what, settings):
            given[what] = settings
            super()._set(parameters, what, settings)
            if what == "context":
                given["flash"] = getattr(parameters, "flash_attn_type", None)
                raise StopError

    monkeypatch.setattr(peers, "Library", Recorded)
    for repack, flash, kv in ((True, None, "f16"), (False, True, "q8_0")):
        requests = peers.queue.SimpleQueue()
        settings = {"path": str(files["Q4_0"]), "threads": 3, "context": 700}
        requests.put(settings | {"repack": repack, "flash_attention": flash, "kv": kv})
        with pytest.raises(StopError):
            peers._serve(requests, None)
        assert given["model"] == {"n_gpu_layers": 0} | ({} if repack else {"use_extra_bufts": False})
        cache = {"f16": 1, "q8_0": 8}[kv]
        assert (
            given["context"].items()
            >= {
                "n_ctx": 700,
                "n_batch": 512,
                "n_ubatch": 512,
                "n_threads": 3,
                "n_threads_batch": 3,
                "type_k": cache,
                "type_v": cache,
            }.items()
        )
        assert given["flash"] in (None, -1 if flash is None else int(flash))


def test_what_a_peer_refuses(files, tmp_path, monkeypatch, gguf):
    path = files["Q4_0"]
    for changes, words in (
        ({"threads": 0}, "threads"),
        ({"context": 0}, "context"),
        ({"kv": "f64"}, "kv: must be one"),
    ):
        with pytest.raises(UsageError, match=words):
            Peer(path, **({"name": "peer", "threads": 1, "context": 64} | changes))
    with pytest.raises(QwqError, match=r"none\.gguf: cannot be opened"):
        Peer(tmp_path / "none.gguf", "peer", 1, 64)
    (tmp_path / "broken.gguf").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(QwqError, match=r"broken\.gguf: llama\.cpp does not load it"):
        Peer(tmp_path / "broken.gguf", "peer", 1, 64)
    with pytest.raises(QwqError, match=r"llama\.cpp makes no context for it"):
        Peer(path, "peer", 1, 64, flash_attention=False, kv="q8_0")
    with Peer(path, "peer", 1, 64) as peer:
        for tokens, depth in ((0, 0), (1, -1), (65, 0), (1, 64)):
            with pytest.raises(UsageError, match="do not fit a context of 64"):
                peer.prompt(tokens, depth)
        assert peer.decode(1, 63) > 0  # it goes on
    with pytest.raises(QwqError, match="has been closed"):
        peer.decode(1)
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    with pytest.raises(MemoryLimitError):
        Peer(path, "peer", 1, 64)


def test_a_version_without_the_switch(files, monkeypatch):
    """Before September 2025 repacking could not be left out."""
    api = Library(QwqError).api

    class Old:
        n_gpu_layers = 0

    monkeypatch.setattr(api, "llama_model_default_params", Old)
    requests = peers.queue.SimpleQueue()
    settings = {"path": str(files["Q4_0"]), "threads": 1, "context": 64, "flash_attention": None, "kv": "f16"}
    requests.put(settings | {"repack": False})
    with pytest.raises(UsageError, match="use_extra_bufts: llama_model_params has no such field"):
        peers._serve(requests, None)


def test_a_process_that_was_killed(files):
    with Peer(files["Q4_0"], "the peer", 1, 64) as peer:
        assert peer.decode(1) > 0
        os.kill(peer._process.pid, signal.SIGKILL)
        with pytest.raises(QwqError, match=r"Q4_0\.gguf: the peer: the process ended by signal 9"):
            peer.decode(1)
        with pytest.raises(QwqError, match="has been closed"):
            peer.decode(1)


def test_last_words(files, monkeypatch, tmp_path):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho first >&2\necho something is wrong >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(QwqError, match="the process ended with status 3: something is wrong"):
        Peer(files["Q4_0"], "peer", 1, 64)


def test_an_interrupt_is_the_parents(files, monkeypatch):
    """Ctrl-C reaches both. The child goes on until the parent ends it."""
    with Peer(files["Q4_0"], "peer", 1, 64) as peer:
        os.kill(peer._process.pid, signal.SIGINT)
        assert peer.decode(1) > 0

        def interrupted():
            raise KeyboardInterrupt

        answers = peer._process.stdout
        monkeypatch.setattr(
            peer._process, "stdout", type("Pipe", (), {"readline": interrupted, "close": answers.close})
        )
        with pytest.raises(KeyboardInterrupt):
            peer.decode(1)
        assert peer._process.poll() == -signal.SIGKILL


def test_the_child_goes_with_its_parent(files):
    script = (
        "import sys, os, signal\n"
        "from qwq_ref.interop.llama_cpp.peer import Peer\n"
        f"peer = Peer({str(files['Q4_0'])!r}, 'peer', 1, 64)\n"
        "print(peer._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    stat = Path("/proc") / done.stdout.strip() / "stat"
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc to see other processes")
    for _ in range(200):
        if not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("it is still there")


def test_nothing_is_imported_from_the_current_folder(files, tmp_path, monkeypatch):
    (tmp_path / "llama_cpp.py").write_text("raise SystemExit('taken from here')")
    monkeypatch.chdir(tmp_path)
    with Peer(files["Q4_0"], "peer", 1, 64) as peer:
        assert peer.decode(1) > 0


def test_what_a_library_prints_is_not_an_answer(files, tmp_path, monkeypatch):
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp" / "__init__.py").write_text(
        "import os, sys\n"
        "os.write(1, b'noise\\n')\n"
        f"sys.path.remove({str(tmp_path)!r})\n"
        "del sys.modules['llama_cpp']\n"
        "import llama_cpp\n"  # the real one takes its place
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Peer(files["Q4_0"], "peer", 1, 64) as peer:
        assert peer.decode(1) > 0
        peer._errors.seek(0)
        assert peer._errors.read() == b"noise\n"


def test_our_own_threads_settings_are_not_passed_on(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")
    monkeypatch.setenv("SOMETHING", "else")
    environment = peers._environment()
    assert not [name for name in environment if "OMP_" in name]
    assert environment["SOMETHING"] == "else"
