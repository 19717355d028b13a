"""Whole models packed from a file's own bytes: the same bytes as whole matrices of the NumPy decoders make."""

import numpy as np
import pytest

from qwq_ref import core
from qwq_ref.config import Config
from qwq_ref.engine import pieces
from qwq_ref.engine.plan import EMBEDDING, HEAD, gate_up_names, layer_names, plan, qkv_names
from qwq_ref.engine.reading import in_memory
from qwq_ref.formats import open_source
from qwq_ref.formats.parts import Parts, widened
from tests.engine import test_quantised
from tests.support import quantised_models
from tests.support.gguf_models import NATIVE, NATIVE_SUPER, fuse_qkv, mixture, peer_config, write_types

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)


@pytest.fixture(autouse=True, params=[1 << 20, 1], ids=["large pieces", "small pieces"])
def piece(request, monkeypatch):
    """Pieces of many rows, or of 64."""
    monkeypatch.setattr(pieces, "_PIECE", request.param)
    monkeypatch.setattr(pieces, "SLICE", 3 * request.param)


def whole(kept, name, to):
    """A matrix in a format, packed from the arrays of the NumPy decoder."""
    parts = kept.parts(name, 0, kept.shapes[name][0])
    return core.pack(to, **vars(widened(parts, kept.form.formats[name], to))).packed


def expected(source):
    """The bytes of each matrix of the plan."""
    config, kept = source.config, source.kept
    kept.shapes = config.tensors()
    planned = plan(config, kept.form)
    found = {EMBEDDING: [EMBEDDING]} if EMBEDDING in planned else {}
    found[HEAD] = [config.head_name]
    for i in range(config.L):
        _, qkv, _, o, _, gate_up, down = layer_names(i)
        found |= {o: [o], down: [down]} | ({qkv: qkv_names(i)} if qkv in planned else {n: [n] for n in qkv_names(i)})
        found[gate_up] = gate_up_names(i)
    wanted = {}
    for name, names in found.items():
        to = planned[name].format
        if name.endswith("gate_up_proj.weight"):
            panels = [whole(kept, each, to).reshape(-(-config.F // 32), -1) for each in names]
            wanted[name] = np.stack(panels, axis=1).tobytes()
            continue
        arrays = [kept.parts(each, 0, kept.shapes[each][0]).arrays() for each in names]
        joined = Parts(**{key: np.concatenate([each[key] for each in arrays]) for key in arrays[0]})
        wanted[name] = core.pack(to, **vars(joined)).packed.tobytes()
    return wanted


def assert_same(path):
    with open_source(path) as source:
        wanted = expected(source)
        tensors = in_memory(source, source.kept.form, 2, None, garbage)
        found = {name: each for name, each in tensors if isinstance(each, core.Packed)}
    assert found.keys() == wanted.keys()
    for name, packed in found.items():
        assert packed.packed.tobytes() == wanted[name], name


def garbage(size):
    memory = core.aligned(size)
    memory[:] = 0xA5
    return memory


SIZES = {
    "whole panels": {},
    "an odd vocabulary": {"vocab_size": 331},
    "q, k and v begin within a panel": {"num_attention_heads": 16, "num_key_value_heads": 1, "head_dim": 16},
    "gate and up end within a panel": {"intermediate_size": 544},
}


@pytest.mark.parametrize("kind", [*NATIVE, *NATIVE_SUPER])
@pytest.mark.parametrize("sizes", SIZES)
def test_one_type(tmp_path, kind, sizes):
    config = peer_config(num_hidden_layers=1, **SIZES[sizes])
    floats = {} if kind in ("F32", "F16", "BF16") else {"ffn_down": "F16", "attn_output": "F16"}
    write_types(tmp_path / "m.gguf", config, lambda name: floats.get(name.split(".")[-2], kind))
    assert_same(tmp_path / "m.gguf")


@pytest.mark.parametrize("seed", range(5))
def test_any_mixture(tmp_path, seed):
    config = peer_config(num_hidden_layers=3)
    kinds = list(np.random.default_rng(seed).permutation([*NATIVE, *NATIVE_SUPER]))
    write_types(tmp_path / "m.gguf", config, mixture(kinds), seed=seed)
    assert_same(tmp_path / "m.gguf")


def test_two_types_of_one_format_in_one_matrix(tmp_path):
    kinds = {"attn_q": "IQ4_NL", "attn_k": "Q8_0", "attn_v": "IQ4_NL", "ffn_gate": "Q8_0", "ffn_up": "IQ4_NL"}
    config = peer_config(num_hidden_layers=1)
    write_types(tmp_path / "m.gguf", config, lambda name: kinds.get(name.split(".")[-2], "Q4_0"))
    assert_same(tmp_path / "m.gguf")


def test_one_tensor_of_q_k_and_v(tmp_path):
    config = peer_config(num_hidden_layers=1)
    write_types(tmp_path / "m.gguf", config, lambda _: "Q5_K", tensors=fuse_qkv)
    assert_same(tmp_path / "m.gguf")


@pytest.mark.parametrize("name", test_quantised.KINDS)
def test_checkpoints(tmp_path, name):
    config = Config.from_dict(quantised_models.values_of(intermediate_size=320, num_hidden_layers=1))
    test_quantised.write(tmp_path, name, config)
    assert_same(tmp_path)
