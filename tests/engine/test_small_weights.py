"""Weights too small for float16 scales: never larger than they were, and refused where a tensor would be lost."""

import ml_dtypes
import numpy as np
import pytest

import qwq_ref
from qwq_ref import core
from qwq_ref.config import Config
from qwq_ref.core import weights as core_weights
from qwq_ref.engine import loader
from qwq_ref.engine.convert import convert
from qwq_ref.engine.packing import pack_weights
from qwq_ref.errors import FormError
from qwq_ref.forms import FORMS
from qwq_ref.numerics import quant
from tests.support.checkpoints import write_checkpoint
from tests.support.models import config_values, random_weights
from tests.support.refusals import refused
from tests.support.small_tokenizer import SIZE

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)
CONFIG = config_values(vocab_size=SIZE, num_hidden_layers=2, intermediate_size=70, eos_token_id=0)
SMALLEST = 2.0**-24
WORDS = "has weights too small for the scales of {}, which would lose them: take bf16 or fp32"


def groups(kind):
    """Weights [40, 128] of about 1."""
    w = np.random.default_rng(3).standard_normal((40, 128)).astype(np.float32)
    if kind == "outliers":
        w[:, ::64] *= 50
    if kind == "one":
        w[:, np.arange(128) % 64 != 5] = 0
    if kind == "equal":
        w = np.sign(w)
    return w


def meant(form, w, isa=None):
    code, scale = (core.quantise_q4 if form == "q4" else core.quantise_q8)(w, isa)
    return quant.dequantise(quant.CODEBOOK[code] if form == "q4" else code, scale).astype(np.float64)


@pytest.mark.parametrize("form", ["q4", "q8"])
@pytest.mark.parametrize("kind", ["normal", "outliers", "one", "equal"])
@pytest.mark.parametrize("power", [*range(-34, -14), -60, -100, -140])
def test_no_group_is_farther_from_its_weights_than_zeros(form, kind, power):
    w = groups(kind) * np.float32(2.0**power)
    error = ((meant(form, w) - w) ** 2).reshape(-1, 64).sum(axis=1)
    zeros = (w.astype(np.float64) ** 2).reshape(-1, 64).sum(axis=1)
    assert (error <= zeros * (1 + 1e-6)).all()
    code, scale = getattr(quant, f"quantise_{form}")(w)
    for isa in core.isas():
        ours, our_scale = getattr(core, f"quantise_{form}")(w, isa)
        assert np.array_equal(ours, code)
        assert np.array_equal(our_scale.view(np.uint16), scale.view(np.uint16))
    none = zeros == 0
    assert not scale.reshape(-1)[none].any()


def test_q8_keeps_multiples_of_the_smallest_scale():
    w = np.zeros((2, 64), np.float32)
    w[0, :4] = np.float32([SMALLEST, 2 * SMALLEST, -40 * SMALLEST, 0.4 * SMALLEST])
    w[1, :2] = np.float32([SMALLEST / 2, -SMALLEST / 3])
    q, scale = core.quantise_q8(w)
    assert q[0, :4].tolist() == [1, 2, -40, 0]
    assert scale[:, 0].tolist() == [SMALLEST, 0]
    assert not q[1].any()


def test_the_levels_of_the_core_are_those_of_numerics():
    assert np.array_equal(core_weights._LEVELS, quant.CODEBOOK)


@pytest.mark.parametrize("form", ["q4", "q8"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("factor", "lost"), [(1, False), (1e-2, False), (1e-8, True), (1e-12, True), (0, False)])
def test_a_matrix_is_refused_if_it_is_lost(form, dtype, factor, lost):
    w = (groups("normal")[:, :100] * 0.02 * np.float32(factor)).astype(dtype)
    given = w.view(np.uint16) if dtype != np.float32 else w
    if not lost:
        core.quantise(given, form)
        return
    with pytest.raises(
        core.CoreError, match=f"^w: is too small for the scales of {form}, which would lose it: take bf16"
    ):
        core.quantise(given, form)


def model_folder(folder, dtype=np.float32, **factors):
    folder.mkdir()
    config = Config.from_dict(CONFIG)
    weights = random_weights(config, 1)
    for name, factor in factors.items():
        weights[name] = weights[name] * np.float32(factor)
    return write_checkpoint(folder, CONFIG, {n: w.astype(dtype) for n, w in weights.items()})


# Parts of joined matrices among them: their neighbours in the same matrix are of the usual size.
NAMES = [
    *(f"model.layers.1.self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    "lm_head.weight",
]


@pytest.mark.parametrize("form", ["q8", "q4"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_lost_tensor_is_refused_by_name(tmp_path, form, name, dtype):
    folder = model_folder(tmp_path / "x", dtype, **{name: 2.0**-24})
    codes = "q8" if name == "lm_head.weight" else form
    where = (folder / "model.safetensors", name, WORDS.format(codes))
    refused(FormError, 300, lambda: qwq_ref.load(folder, weights=form), *where)
    refused(FormError, 300, lambda: convert(folder, tmp_path / "new", form), *where)
    assert not (tmp_path / "new").exists()
    qwq_ref.load(folder, weights="fp32")


def test_a_tied_head_too(tmp_path):
    config = Config.from_dict(CONFIG | {"tie_word_embeddings": True})
    weights = random_weights(config, 1)
    weights["model.embed_tokens.weight"] *= np.float32(1e-8)
    with pytest.raises(FormError, match=r"embed_tokens.weight: has weights too small for the scales of q8"):
        pack_weights(config, weights, "q4", 2)
    pack_weights(config, weights, "fp32", 2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tiny", [1e-6, 1e-10, 1e-38])
def test_dead_rows_and_zeros_load(tmp_path, form, tiny):
    """Rows that no token uses, neurons that a training left behind, and a matrix of zeros."""
    config = Config.from_dict(CONFIG)
    weights = random_weights(config, 1)
    weights["lm_head.weight"][5:] *= np.float32(tiny)
    weights["model.layers.0.mlp.up_proj.weight"][20:] *= np.float32(tiny)
    weights["model.layers.0.mlp.down_proj.weight"][:, 64:] *= np.float32(tiny)
    weights["model.layers.1.self_attn.v_proj.weight"][:] = 0
    pack_weights(config, {n: w.astype(ml_dtypes.bfloat16) for n, w in weights.items()}, form, 2)


def test_the_choice_of_a_form_passes_over_one_that_loses_weights(tmp_path, monkeypatch):
    """In q8 the levels are twice as fine as the smallest scale allows here; in q4 the weights are kept well enough."""
    folder = model_folder(tmp_path / "x", **{"model.layers.1.self_attn.o_proj.weight": 1e-4})
    monkeypatch.setattr(loader, "candidates", lambda *_: ["q8", "fp32"])
    told, lines = [], []
    model = qwq_ref.load(folder, progress=told.append, announce=lambda line, _: lines.append(line))
    assert model.backend.form == "q8"
    small = model_folder(tmp_path / "y", **{"model.layers.1.self_attn.o_proj.weight": 1e-9})
    told.clear()
    lines.clear()
    model = qwq_ref.load(small, progress=told.append, announce=lambda line, _: lines.append(line))
    assert (model.backend.form, model.backend.kv) == ("fp32", "fp32")
    assert [line.split(",")[0] for line in lines] == ["weights q8", "weights fp32"]
    assert sum(told) == pytest.approx(sum(w.size for w in random_weights(Config.from_dict(CONFIG), 1).values()))
    monkeypatch.setattr(loader, "candidates", lambda *_: ["q8", "q4"])
    with pytest.raises(FormError, match="too small for the scales of q4"):
        qwq_ref.load(small)
    with pytest.raises(FormError, match="too small for the scales of q8"):
        qwq_ref.load(small, weights="q8")
    large = model_folder(tmp_path / "z", **{"model.layers.1.self_attn.o_proj.weight": 1e9})
    monkeypatch.setattr(loader, "candidates", lambda *_: ["q8", "fp32"])
    assert qwq_ref.load(large).backend.form == "fp32"
