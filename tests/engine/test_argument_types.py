"""Arguments of the Python API of a wrong type: refused by name before anything is computed, and never converted."""

import numpy as np
import pytest

import qwq_ref
from qwq_ref import core
from qwq_ref.config import Config
from qwq_ref.engine.backends import logits
from qwq_ref.errors import CheckpointError, UsageError
from qwq_ref.formats.packed import read_packed, write_packed
from qwq_ref.numerics import engine
from qwq_ref.spec import forward
from tests.support.models import config_values, random_weights

needs_core = pytest.mark.skipif(not core.available(), reason="the C core is not built: there was no compiler")


@pytest.mark.parametrize(
    "ids",
    [[3.7], "12", ["7"], [True], [1, True], [np.True_, 2], b"ab", [None], [np.float32(3)], np.array([1.0]), [[1, 2]]],
    ids=repr,
)
def test_token_ids_are_integers(random_model, ids):
    session = random_model.session()
    session.extend([1, 2])
    for call in (session.extend, random_model.logits, lambda ids: logits(random_model.backend, ids)):
        with pytest.raises(ValueError, match="token_ids must be "):
            call(ids)
    assert session.ids == [1, 2]


def test_integers_of_all_kinds_are_token_ids(random_model):
    wanted = random_model.logits([1, 2, 3])
    for ids in ([np.int64(1), 2, np.uint8(3)], (1, 2, 3), np.array([1, 2, 3], np.uint16), range(1, 4)):
        assert np.array_equal(random_model.logits(ids), wanted)
        session = random_model.session()
        session.extend(ids)
        assert session.ids == [1, 2, 3]
        assert all(type(token) is int for token in session.ids)


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"top_k": 1.5}, "top_k", "must be an integer, got 1.5"),
        ({"top_k": True}, "top_k", "must be an integer, got True"),
        ({"max_tokens": 2.5}, "max_tokens", "must be an integer, got 2.5"),
        ({"max_tokens": float("nan")}, "max_tokens", "must be an integer, got nan"),
        ({"max_tokens": "3"}, "max_tokens", "must be an integer, got '3'"),
        ({"seed": 1.5}, "seed", "must be an integer, got 1.5"),
        ({"seed": "1"}, "seed", "must be an integer, got '1'"),
        ({"temperature": "0.5"}, "temperature", "must be a number, got '0.5'"),
        ({"temperature": True}, "temperature", "must be a number, got True"),
        ({"top_p": [0.5]}, "top_p", r"must be a number, got \[0.5\]"),
        ({"min_p": 1j}, "min_p", "must be a number, got 1j"),
        ({"penalty_window": 2.5}, "penalty_window", "must be an integer, got 2.5"),
        ({"typical_p": "1"}, "typical_p", "must be a number, got '1'"),
        ({"logit_bias": [1]}, "logit_bias", r"must map token ids to numbers, got \[1\]"),
        ({"logit_bias": {"1": 2}}, "logit_bias", "must be an integer, got '1'"),
        ({"logit_bias": {1: None}}, "logit_bias", "must be a number, got None"),
        ({"logit_bias": {1: float("inf")}}, "logit_bias", "must add to ids from 0 finite numbers or -inf, got 1: inf"),
        ({"temperature": float("nan")}, "temperature", "must be at least 0 and finite, got nan"),
        ({"think_budget": 1.5}, "think_budget", "must be an integer, got 1.5"),
    ],
)
def test_arguments_of_generate(random_model, monkeypatch, options, field, words):
    monkeypatch.setattr(random_model.backend, "run", lambda *_, **__: pytest.fail("something was computed"))
    with pytest.raises(UsageError, match=rf"^{field}: {words}$"):
        random_model.generate("hello", **options)


def test_numbers_of_numpy_are_numbers(random_model):
    how = {"max_tokens": np.int64(2), "seed": np.uint32(3), "temperature": np.float32(0.5), "top_k": np.int8(4)}
    assert len(list(random_model.generate("hello", **how))) <= 2


@pytest.mark.parametrize(
    ("options", "field"),
    [({"rope": 3}, "rope"), ({"context": 2.5}, "context"), ({"threads": "2"}, "threads"), ({"weights": 4}, "weights")],
)
def test_arguments_of_load(random_folder, options, field):
    with pytest.raises(UsageError, match=rf"^{field}: must be "):
        qwq_ref.load(random_folder, **options)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.bool_])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight", "model.norm.weight"])
def test_the_spec_takes_no_integers_for_weights(name, dtype):
    config = Config.from_dict(config_values())
    weights = random_weights(config, 0)
    wrong = weights | {name: weights[name].astype(dtype)}
    words = f"^{name} must be floats, got {np.dtype(dtype)}$"
    with pytest.raises(ValueError, match=words):
        forward(config, wrong, [1, 2])
    with pytest.raises(ValueError, match=words):
        engine.prepare(config, wrong, "q8")


@needs_core
def test_lists_are_quantised_and_ragged_ones_are_refused():
    w = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    for form in core.FORMATS:
        if form != "fp16":
            assert np.array_equal(
                core.quantise(w.astype(np.float64).tolist(), form).packed, core.quantise(w, form).packed
            )
    for wrong, words in (([[1.0], [1.0, 2.0]], "must be an array"), ([1.0, 2.0], "must have 2 dimensions, got shape")):
        with pytest.raises(core.CoreError, match=f"^w: {words}"):
            core.quantise(wrong, "q4")


@needs_core
@pytest.mark.parametrize(("form", "dtype"), [("bf16", core.weights.BFLOAT16), ("fp16", np.dtype(np.float16))])
def test_wide_floats_are_rounded_once(form, dtype):
    """Just above and below a tie between two numbers: a first rounding to float32 makes ties of them."""
    step = 2.0**-7 if form == "bf16" else 2.0**-10
    ties = np.array([[1 + step / 2, 1 + 3 * step / 2, 3 - step, 5 + 2 * step, -(1 + step / 2), -(1 + 3 * step / 2)]])
    w = np.concatenate([ties, ties * (1 + 2.0**-40), ties * (1 - 2.0**-40), ties * 2.0**20 / 2**10, ties * 0])
    got = core.unpack_rows(core.quantise(w, form), np.arange(5)).view(dtype).astype(np.float64)
    every = np.arange(1 << 16).astype(np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):
        numbers = np.sort(every[np.isfinite(every.astype(np.float32))].astype(np.float64))
    nearest = np.abs(w[..., None] - numbers).min(axis=-1)
    assert np.array_equal(np.abs(got - w), nearest)


@needs_core
@pytest.mark.parametrize("form", ["fp32", "fp16"])
def test_the_other_byte_order_is_converted(form):
    w = np.random.default_rng(0).standard_normal((3, 64)).astype(core.CODES[form].dtype)
    wanted = core.pack(core.FORMATS[form], w)
    assert np.array_equal(core.pack(core.FORMATS[form], w.astype(w.dtype.newbyteorder(">"))).packed, wanted.packed)


@needs_core
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.ones(3), "must be packed, float32 or uint16, got float64"),
        (np.ones(3, np.int32), "must be packed, float32 or uint16, got int32"),
        ([1.0], "must be packed, float32 or uint16, got list"),
        (np.array([1, np.nan], np.float32), r"holds NaN at \[1\]"),
        (np.array([1, 0x7F80], np.uint16), r"holds infinity at \[1\]"),
    ],
)
def test_arrays_of_a_packed_file(tmp_path, value, words):
    path = tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError, match=f"x.safetensors: norm: {words}$"):
        write_packed(path, {"norm": value})
    assert not path.exists()
    big = np.array([1, 2], ">f4")
    write_packed(path, {"norm": big})
    assert np.array_equal(read_packed(path)["norm"], [1, 2])
