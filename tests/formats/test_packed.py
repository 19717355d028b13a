"""The file form of packed weights: read as written, as docs/packed.md says, and never trusted."""

import json
import math
import os
import time
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq_ref import core
from qwq_ref.config import Config
from qwq_ref.core import Format
from qwq_ref.formats import packed
from tests.core.test_matmul import FORMATS, name_of, random_weight  # skips where the core is not built
from tests.support.pages import fenced
from tests.support.paths import DOCS, QWQ_CONFIG

PAGE = DOCS / "packed.md"


@pytest.fixture(scope="module")
def decode():
    """The decoder that the page prints: it knows the page's layout, and nothing of the package."""
    code = next(code for _, code in fenced(PAGE, "python") if "def decode" in code)
    namespace = {"np": np}
    exec(compile(code, str(PAGE), "exec"), namespace)
    return namespace["decode"]


def bits(array):
    return np.ascontiguousarray(array).view(f"u{array.itemsize}")


@pytest.mark.parametrize("form", FORMATS, ids=name_of)
@given(N=st.integers(1, 100), sixteens=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_the_layout_is_the_documented_one(decode, form, N, sixteens, seed):
    K = sixteens * 16 - (seed % 16 if form.group else seed % 7)
    weight, meaning = random_weight(np.random.default_rng(seed), form, N, K)
    got = decode(weight.packed, form, N, K)
    if not form.group:
        assert np.array_equal(bits(got), bits(meaning))
        return
    (levels, scale, offset), (our_levels, our_scale, our_offset) = meaning, got
    assert np.array_equal(our_levels, levels)
    assert np.array_equal(bits(our_scale), bits(scale))
    assert (our_offset is None) == (offset is None)
    assert offset is None or np.array_equal(bits(our_offset), bits(offset.astype(np.float32)))


@pytest.mark.parametrize("form", FORMATS, ids=name_of)
def test_what_is_not_in_the_weight_is_zero(form):
    """One row in which all bits are set: there are as many in the bytes."""
    K, ones = 80, core.CODES[form.codes].bits
    set_bits = K * ones
    if not form.group:
        code = np.full((1, K * ones // 8), 255, np.uint8).view({"bf16": "u2", "fp16": "f2", "fp32": "f4"}[form.codes])
        weight = core.pack(form, code)
    else:
        m = -(-K // form.group)
        columns = 1 if form.scales.startswith("super") else m
        halves, small = np.full((1, columns), 0xFFFF, np.uint16).view(np.float16), np.full((1, m), 255, np.uint8)
        given_parts = {
            "plain": {},
            "zero": {"zero_point": np.full((1, m), 16, np.uint8)},
            "offset": {"offset": halves},
            "offset_bf16": {"offset": np.full((1, m), 0xFFFF, np.uint16).view(ml_dtypes.bfloat16)},
            "super": {"sub_scale": small.view(np.int8)},
            "super_min": {"sub_scale": small, "sub_min": small, "offset": halves},
        }[form.scales]
        code = np.full((1, K), 127 if form.codes == "q8" else 2**ones - 1)
        scale = given_parts["offset"] if form.scales == "offset_bf16" else halves
        weight = core.pack(form, code, scale, **given_parts)
        set_bits += 16 * columns
        set_bits += sum(int(np.unpackbits(np.ravel(part).view(np.uint8)).sum()) for part in given_parts.values())
    assert np.unpackbits(weight.packed).sum() == set_bits


def weights_of(forms=FORMATS, seed=0):
    rng = np.random.default_rng(seed)
    result = {}
    for i, form in enumerate(forms):
        result[f"norm.{i}"] = rng.standard_normal(i % 3 * 7 + 1).astype(np.float32)
        result[f"weight.{i}"] = random_weight(rng, form, 20 + 7 * i, 64 + 16 * i)[0]
    return result | {"table": np.ones((3, 5), np.float32), "none": np.ones((0, 4), np.float32)}


def assert_same(got, wanted):
    assert set(got) == set(wanted)
    for name, value in wanted.items():
        assert packed.Stored.of(got[name]) == packed.Stored.of(value)
        if isinstance(value, core.Packed):
            assert got[name].packed.ctypes.data % 64 == 0
            assert np.array_equal(got[name].packed, value.packed)
        else:
            assert got[name].dtype == np.float32
            assert np.array_equal(got[name], value)


@pytest.mark.parametrize("drop", [None, True, False])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_what_is_written_is_read(tmp_path, monkeypatch, threads, drop):
    monkeypatch.setattr(packed, "_PIECE_BYTES", 4096)
    path, weights, seen = tmp_path / "x", weights_of(), []
    packed.write_packed(path, weights)
    with packed.PackedFile(path) as file:
        assert file.weights == {name: packed.Stored.of(weight) for name, weight in weights.items()}
        assert_same(file.read(threads, progress=seen.append, drop_cache=drop), weights)
        assert sum(seen) == file.nbytes == sum(stored.nbytes for stored in file.weights.values())
    assert len(seen) > 20


def test_reading_holds_one_copy(tmp_path):
    packed.write_packed(tmp_path / "x", {"w": core.quantise(np.ones((1 << 11, 1 << 12), np.float32), "fp32")})
    tracemalloc.start()
    with packed.PackedFile(tmp_path / "x") as file:
        assert file.read()["w"].packed.nbytes == file.nbytes == 1 << 25
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (1 << 25) + (1 << 20)


@pytest.mark.parametrize(
    ("drop", "least", "dropped"),
    [
        (True, 1 << 40, True),
        (False, 1, False),
        (None, 1, True),
        (None, 1 << 40, False),
        (None, packed.DROP_FROM, False),
    ],
)
def test_what_the_system_is_told_to_forget(tmp_path, monkeypatch, drop, least, dropped):
    """All pages of the file, or none."""
    told = []
    monkeypatch.setattr(
        os, "posix_fadvise", lambda _, start, count, advice: told.append((start, start + count, advice))
    )
    monkeypatch.setattr(packed, "_PIECE_BYTES", 4096)
    monkeypatch.setattr(packed, "DROP_FROM", least)
    packed.write_packed(tmp_path / "x", {"w": core.quantise(np.ones((40, 1000), np.float32), "fp32")})
    packed.read_packed(tmp_path / "x", drop_cache=drop)
    assert bool(told) == dropped
    if dropped:
        told.sort()
        assert [start for start, _, _ in told[1:]] == [end for _, end, _ in told[:-1]]
        assert told[0][0] < 4096
        assert told[-1][1] == (tmp_path / "x").stat().st_size
        assert {advice for _, _, advice in told} == {os.POSIX_FADV_DONTNEED}


def test_an_error_does_not_wait_for_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "_PIECE_BYTES", 4096)
    packed.write_packed(tmp_path / "x", {"w": core.quantise(np.ones((1024, 1024), np.float32), "fp32")})
    pieces = []

    def slow(*_):
        pieces.append(time.sleep(0.01))

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(packed, "pread_exactly", slow)
    with pytest.raises(KeyboardInterrupt):
        packed.read_packed(tmp_path / "x", progress=interrupt)
    assert len(pieces) < 100  # of 1,025


def test_it_multiplies_as_before(tmp_path):
    weights = weights_of()
    packed.write_packed(tmp_path / "x", weights)
    x = np.random.default_rng(0).standard_normal((2, 64 + 16 * len(FORMATS))).astype(np.float32)
    for name, weight in packed.read_packed(tmp_path / "x").items():
        if name.startswith("weight"):
            both = [core.matmul(x[:, : w.shape[1]], w) for w in (weight, weights[name])]
            assert np.array_equal(*both, equal_nan=True)


def test_no_weights_at_all(tmp_path):
    for weights in ({}, {"none": np.ones((0, 4), np.float32)}, {"norm": np.ones(3, np.float32)}):
        packed.write_packed(tmp_path / "x", weights)
        assert_same(packed.read_packed(tmp_path / "x"), weights)


def test_the_safetensors_library_sees_the_same_bytes(tmp_path):
    weights = weights_of()
    packed.write_packed(tmp_path / "x", weights)
    theirs = safetensors.numpy.load_file(tmp_path / "x")
    assert set(theirs) == set(weights)
    for name, value in weights.items():
        assert np.array_equal(theirs[name], value.packed if isinstance(value, core.Packed) else value)
    with safetensors.safe_open(tmp_path / "x", "numpy") as file:
        assert set(json.loads(file.metadata()["packed"])) == {name for name in weights if "weight" in name}


def test_weights_may_come_in_any_order_and_one_by_one(tmp_path):
    weights = weights_of()
    packed.write_packed(tmp_path / "a", weights)
    plan = {name: packed.Stored.of(weight) for name, weight in weights.items()}
    with packed.writing(tmp_path / "b", plan) as append:
        for name in reversed(list(weights)):
            append(name, weights.pop(name))
        assert not (tmp_path / "b").exists()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


NORM = np.ones(3, np.float32)
PLAN = {"w": packed.Stored((3, 64), Format("q8")), "n": packed.Stored((3,))}


def small(form="q8", N=3):
    return core.quantise(np.ones((N, 64), np.float32), form)


@pytest.mark.parametrize(
    ("given_weights", "words"),
    [
        ({}, "w: 2 of the planned"),
        ({"w": small()}, "n: 1 of the planned"),
        ({"w": small(), "n": NORM, "x": NORM}, "x: .* was not planned"),
        ({"w": small("q4"), "n": NORM}, "w: .* was not planned"),
        ({"w": small(N=4), "n": NORM}, "w: .* was not planned"),
        ({"w": NORM}, "w: .* was not planned"),
        ({"n": NORM[:2]}, "n: .* was not planned"),
        ({"n": np.ones(3, np.int32)}, "n: must be packed, float32 or uint16, got int32"),
        ({"w": core.Packed(Format("q8"), np.zeros(64, np.uint8), (3, 64))}, "w: .* was not planned"),
    ],
)
def test_what_is_not_as_planned_leaves_no_file(tmp_path, given_weights, words):
    def write():
        with packed.writing(tmp_path / "x", PLAN) as append:
            for name, weight in given_weights.items():
                append(name, weight)

    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(ValueError, match=words):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_a_plan_that_cannot_be_read_is_not_written(tmp_path):
    for plan, words in (
        ({"w": packed.Stored((3, 64), Format("q4", 32))}, "w: .* does not exist"),
        ({"w": packed.Stored((0, 64), Format("q4"))}, "w: .* does not exist"),
        ({"n" * (1 << 20): packed.Stored((1,))}, "more than the 1,048,576 that are read"),
    ):
        with pytest.raises(ValueError, match=words), packed.writing(tmp_path / "x", plan):
            pass
    assert not list(tmp_path.iterdir())


def test_twice_the_same(tmp_path):
    with packed.writing(tmp_path / "x", PLAN) as append:
        append("n", NORM)
        with pytest.raises(ValueError, match="was given before"):
            append("n", NORM)
        append("w", small())
    assert set(packed.read_packed(tmp_path / "x")) == set(PLAN)


# --- sizes ---

# Bytes of a block in the source, and its weights. AWQ has 4 bits, and for 128 a float16 scale and a zero of 4 bits.
SOURCES = {
    "Q4_0": (18 / 32, Format("u4", 32, "plain", zero_point=8)),
    "Q4_K": (144 / 256, Format("u4", 32, "super_min")),
    "Q5_K": (176 / 256, Format("u5", 32, "super_min")),
    "Q6_K": (210 / 256, Format("u6", 16, "super", zero_point=32)),
    "Q8_0": (34 / 32, Format("q8", 32)),
    "AWQ g128": ((64 + 2 + 0.5) / 128, Format("u4", 128, "zero")),
}


@pytest.mark.parametrize("source", SOURCES)
def test_qwq_32b_takes_no_tenth_more_than_in_its_source(source):
    config = Config.from_file(QWQ_CONFIG)
    shapes = [shape for shape in config.tensors().values() if len(shape) == 2]
    assert sum(math.prod(shape) for shape in shapes) > 32e9
    per_weight, form = SOURCES[source]
    for shape in shapes:
        assert core.packed_bytes(form, shape) <= 1.1 * per_weight * math.prod(shape)
