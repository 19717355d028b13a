"""Packing: every form has the same bits from any stored dtype, number of threads and size of pieces."""

import itertools
import json
import threading
import time

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from qwq_ref import core
from qwq_ref.config import Config
from qwq_ref.engine import pieces
from qwq_ref.engine.packing import pack_weights, packed_tensors
from qwq_ref.engine.pieces import Arrays, InMemory, Job, Pieces
from qwq_ref.engine.plan import EMBEDDING, HEAD, plan
from qwq_ref.errors import CheckpointError, FormError
from qwq_ref.footprint import parameters
from qwq_ref.formats import Checkpoint, open_source
from qwq_ref.formats.packed import Stored
from qwq_ref.forms import FORMS
from qwq_ref.spec import ops
from tests.support import gguf_models
from tests.support.checkpoints import write_checkpoint
from tests.support.models import config_values, random_weights

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
# Rows that fill no panel, an F that fills no panel, and several pieces of each matrix.
SHAPE = {"vocab_size": 331, "hidden_size": 72, "intermediate_size": 300, "num_hidden_layers": 1}


def checkpoint(folder, dtypes, **changes):
    """A checkpoint whose tensors take turns with the dtypes. All values are bfloat16."""
    values = config_values(**SHAPE, **changes)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    weights = {}
    for i, (name, value) in enumerate(random_weights(Config.from_dict(values), 3).items()):
        exact = value.astype(np.float16).astype(ml_dtypes.bfloat16)
        weights[name] = exact.astype(DTYPES[dtypes[i % len(dtypes)]])
    save_file(weights, folder / "model.safetensors")
    return folder


def expected(config, weights, form):
    """By hand: joined, interleaved and quantised as a whole, in float32."""
    w, planned = {name: np.asarray(value, np.float32) for name, value in weights.items()}, plan(config, form)
    path, F = "model.layers.0.", -(-config.F // 32) * 32
    joined = {EMBEDDING: w[EMBEDDING], HEAD: w[config.head_name], "model.norm.weight": w["model.norm.weight"]}
    for kind in ("weight", "bias"):
        parts = [w[f"{path}self_attn.{name}_proj.{kind}"] for name in "qkv"]
        joined[f"{path}self_attn.qkv_proj.{kind}"] = np.concatenate(parts)
    beta = np.float32(config.swiglu_beta)
    gate, up = w[f"{path}mlp.gate_proj.weight"] * beta, w[f"{path}mlp.up_proj.weight"] / beta
    joined[f"{path}mlp.gate_up_proj.weight"] = core.interleave(gate, up)
    joined[f"{path}mlp.down_proj.weight"] = np.pad(w[f"{path}mlp.down_proj.weight"], ((0, 0), (0, F - config.F)))
    result = {}
    for name, stored in planned.items():
        value = joined.get(name, w.get(name))
        if stored.format is not None:
            bits = (value.view(np.uint32) >> 16).astype(np.uint16)
            result[name] = core.quantise(bits if stored.format.codes == "bf16" else value, stored.format.codes).packed
        else:
            result[name] = (value.view(np.uint32) >> 16).astype(np.uint16) if stored.dtype == "BF16" else value
    return result


def bits(tensor):
    data = tensor.packed if isinstance(tensor, core.Packed) else tensor
    return data.dtype, data.tobytes()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("beta", [1.0, 2.0])
@pytest.mark.parametrize("dtypes", [["F32"], ["F16"], ["BF16"], ["F32", "BF16"]], ids="+".join)
@pytest.mark.parametrize("form", FORMS)
def test_every_stored_dtype_gives_the_same_bits(tmp_path, monkeypatch, form, dtypes, beta, tied):
    folder = checkpoint(tmp_path / "x", dtypes, tie_word_embeddings=tied, swiglu_beta=beta)
    with open_source(folder) as source:
        wanted = expected(source.config, dict(source), form)
        for threads, size in ((1, 1), (3, 10_000), (2, 1 << 23)):
            monkeypatch.setattr(pieces, "_PIECE", size)
            seen = []
            got = dict(packed_tensors(source.config, source.floats, form, threads, seen.append))
            assert {name: bits(tensor) for name, tensor in got.items()} == {n: bits(w) for n, w in wanted.items()}
            assert sum(seen) == parameters(source.config)
        of_dictionary = dict(packed_tensors(source.config, dict(source), form, 2))
        assert all(bits(of_dictionary[name]) == bits(wanted[name]) for name in wanted)


@pytest.mark.parametrize("form", FORMS)
def test_every_byte_of_a_tied_model_is_read_once(tmp_path, monkeypatch, form):
    folder = checkpoint(tmp_path / "x", ["BF16"], tie_word_embeddings=True)
    read, lock, read_into = {}, threading.Lock(), Checkpoint.read_into

    def count(self, name, begin, out):
        with lock:
            read[name] = read.get(name, 0) + sum(part.nbytes for part in out)
        read_into(self, name, begin, out)

    monkeypatch.setattr(Checkpoint, "read_into", count)
    with open_source(folder) as source:
        pack_weights(source.config, source.floats, form, 2)
        assert read == {name: tensor.nbytes for name, tensor in source.tensors.items()}


def test_all_matrices_share_one_aligned_piece_of_memory(tmp_path):
    with open_source(checkpoint(tmp_path / "x", ["BF16"])) as source:
        made = pack_weights(source.config, source.floats, "q4", 2)
    layer = made.layers[0]
    matrices = [made.embedding, *(w.packed for w in (layer.qkv, layer.o, layer.gate_up, layer.down, made.head))]
    assert all(w.ctypes.data % 64 == 0 for w in matrices)
    places = sorted((w.ctypes.data, w.ctypes.data + w.nbytes) for w in matrices)
    assert all(0 <= begin - end < 64 for (_, end), (begin, _) in itertools.pairwise(places))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("threads", [1, 4])
def test_bf16_loses_no_bits_silently(tmp_path, threads, tied):
    values = config_values(**SHAPE, tie_word_embeddings=tied)
    weights = random_weights(Config.from_dict(values), 1)
    first = "model.embed_tokens.weight"
    with pytest.raises(FormError) as caught:
        pack_weights(Config.from_dict(values), weights, "bf16", threads)
    assert (caught.value.file, caught.value.field) == (None, first)
    assert caught.value.problem == "is not bfloat16: take weights fp32, q8 or q4"
    with open_source(write_checkpoint(tmp_path, values, weights)) as source, pytest.raises(FormError) as caught:
        pack_weights(source.config, source.floats, "bf16", threads)
    assert (caught.value.file, caught.value.field) == (str(tmp_path / "model.safetensors"), first)


def test_the_matrix_that_is_not_bfloat16_is_named():
    """Also of several that are packed as one, and where only one row is not."""
    config = Config.from_dict(config_values(**SHAPE))
    weights = {name: ops.to_bf16(w) for name, w in random_weights(config, 1).items()}
    with pytest.raises(FormError, match=r"^model\.embed_tokens\.weight: is not bfloat16"):
        pack_weights(config, weights | {EMBEDDING: weights[EMBEDDING] * np.float32(1.001)}, "bf16", 2)
    for name, row in [("self_attn.k_proj", 1), ("self_attn.v_proj", 0), ("mlp.up_proj", 1), ("mlp.down_proj", -1)]:
        name = f"model.layers.0.{name}.weight"
        wrong = weights[name].copy()
        wrong[row, -1] *= np.float32(1.001)
        with pytest.raises(FormError) as caught:
            pack_weights(config, weights | {name: wrong}, "bf16", 2)
        assert caught.value.field == name


def test_a_quantised_file_that_is_not_bfloat16_has_its_own_form(tmp_path):
    config = gguf_models.peer_config()
    gguf_models.write_types(tmp_path / "m.gguf", config, gguf_models.mixture(("Q4_K", "Q6_K")))
    with open_source(tmp_path / "m.gguf") as source, pytest.raises(FormError) as caught:
        pack_weights(source.config, source.floats, "bf16", 1)
    assert (caught.value.file, caught.value.field) == (str(tmp_path / "m.gguf"), "model.embed_tokens.weight")
    assert caught.value.problem == "is not bfloat16: take weights file, fp32, q8 or q4"


def test_an_error_stops_the_threads(tmp_path, monkeypatch):
    """A file that shrinks while it is packed."""
    monkeypatch.setattr(pieces, "_PIECE", 1)
    monkeypatch.setattr(pieces, "SLICE", 1)
    before = threading.active_count()
    folder = checkpoint(tmp_path / "x", ["BF16"])
    with open_source(folder) as source:
        made = packed_tensors(source.config, source.floats, "q4", 2)
        next(made)
        (folder / "model.safetensors").write_bytes(b"")
        with pytest.raises(CheckpointError, match="shorter than it was when opened"):
            list(made)
    assert threading.active_count() == before


def test_after_an_error_no_thread_still_fills_the_memory():
    """The next call may give that memory to other rows."""
    ended = []

    class Broken(Pieces):
        def jobs(self):
            def piece(begin, end):
                if begin == 0:
                    raise CheckpointError(None, "a", "is broken")
                time.sleep(0.1)
                ended.append(begin)
                return 0

            yield Job(["a"], ["a"], piece)

    planned = {"a": Stored((256, 1 << 15), None, "F32")}
    with Broken(planned, Arrays({}), 2, InMemory(planned)) as pool:
        with pytest.raises(CheckpointError, match="is broken"):
            pool.fill("a", 0, 256)
        assert sorted(ended) == [64, 128, 192]
