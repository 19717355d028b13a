"""Codes that C takes from words of 32 bits: packed, they are the same bytes as codes in an array make."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref import core
from tests.support.quantised_models import awq_words, words_of

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)
ALL_BITS = (2, 3, 4, 5, 6, 7, 8)
shapes = {"n": st.integers(1, 70), "units": st.integers(1, 7), "seed": st.integers(0, 2**32 - 1)}


def type_of(bits):
    return {7: "u8"}.get(bits, f"u{max(bits, 4)}")


def scales_for(rng, N, K, group):
    groups = -(-K // group)
    return {"scale": rng.random((N, groups)).astype(np.float16), "zero_point": rng.integers(0, 16, (N, groups))}


def assert_same(bits, code, words, group=64, seed=0):
    """In the matrix's own panels, and in every second one."""
    N, K = code.shape
    form = core.Format(type_of(bits), group, "zero")
    scales = scales_for(np.random.default_rng(seed), N, K, group)
    wanted = core.pack(form, code.astype(np.uint8), **scales).packed
    made = core.empty(form, (N, K))
    made.packed[:] = 0xA5
    assert core.pack(form, words, **scales, out=made, threads=2).packed.tobytes() == wanted.tobytes()
    panels = -(-N // 32)
    whole = core.empty(form, (64 * panels, K))
    whole.packed[:] = 0xA5
    core.pack(form, words, **scales, out=whole.every_second(32, N), step=2)
    found = whole.packed.reshape(panels, 2, -1)
    assert found[:, 1].tobytes() == wanted.tobytes()
    assert (found[:, 0] == 0xA5).all()


def wide(words, more=3):
    """The words as columns of a wider array."""
    rows = np.full((len(words), words.shape[1] + more), 0x5A5A5A5A, np.uint32)
    rows[:, : words.shape[1]] = words.view(np.uint32)
    return rows[:, : words.shape[1]]


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("group", [16, 128])
@given(**shapes)
def test_streams_of_rows(bits, group, n, units, seed):
    """MLX."""
    code = np.random.default_rng(seed).integers(0, 1 << bits, (n, 32 * units))
    words = words_of(code, bits)
    assert_same(bits, code, core.Words("rows", bits, words, code.shape), group, seed)
    assert_same(bits, code, core.Words("rows", bits, wide(words), code.shape), group, seed)


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("ordered", [False, True])
@given(**shapes)
def test_streams_of_columns(bits, ordered, n, units, seed):
    """GPTQ, and with the order of `desc_act`."""
    rng = np.random.default_rng(seed)
    code = rng.integers(0, 1 << bits, (n, 32 * units))
    words = np.ascontiguousarray(words_of(code, bits).T)
    order = rng.permutation(code.shape[1]).astype(np.int32) if ordered else None
    packed = code[:, order] if ordered else code
    for stored in (words, words.view(np.int32), wide(words)):
        assert_same(bits, packed, core.Words("columns", bits, stored, code.shape, order), seed=seed)


@given(n=st.integers(1, 70), k=st.integers(1, 200), seed=st.integers(0, 2**32 - 1))
def test_eights(n, k, seed):
    """AWQ. The last word may hold rows that the weight has not."""
    code = np.random.default_rng(seed).integers(0, 16, (-(-n // 8) * 8, k))
    words = awq_words(code.T)
    assert_same(4, code[:n], core.Words("eights", 4, words, (n, k)), seed=seed)
    assert_same(4, code[:n], core.Words("eights", 4, wide(words), (n, k)), seed=seed)


@pytest.mark.parametrize("columns", [4, 8, 12, 36, 60, 68])
def test_a_last_group_of_few_columns(columns):
    code = np.random.default_rng(columns).integers(0, 256, (33, columns))
    assert_same(8, code, core.Words("rows", 8, words_of(code, 8), code.shape))
    assert_same(8, code, core.Words("columns", 8, np.ascontiguousarray(words_of(code, 8).T), code.shape))


U4, WORDS = core.Format("u4", 64, "offset"), np.zeros((33, 8), np.uint32)
HALVES = np.zeros((33, 1), np.float16)


@pytest.mark.parametrize(
    ("words", "form", "problem"),
    [
        (core.Words("diagonals", 4, WORDS, (33, 64)), U4, "layout: must be one of rows, columns, eights"),
        (core.Words("rows", 4, WORDS[:, :7], (33, 64)), U4, "words: must have shape"),
        (core.Words("columns", 4, WORDS, (33, 64)), U4, "words: must have shape"),
        (core.Words("rows", 4, WORDS.astype(np.uint64), (33, 64)), U4, "words: must be rows of uint32 or int32"),
        (core.Words("rows", 4, WORDS[:, ::-1], (33, 64)), U4, "words: must be rows of"),
        (core.Words("rows", 4, WORDS[::-1], (33, 64)), U4, "words: must be rows of"),
        (core.Words("rows", 8, np.zeros((33, 16), np.uint32), (33, 64)), U4, "the format does not exist, or an array"),
        (core.Words("rows", 1, WORDS[:, :2], (33, 64)), U4, "the format does not exist, or an array"),
        (core.Words("rows", 4, WORDS, (33, 65)), U4, "size is impossible"),
        (core.Words("rows", 4, WORDS, (33, 64), np.arange(64, dtype=np.int32)), U4, "the format does not exist, or"),
        (core.Words("rows", 4, np.broadcast_to(WORDS[:1], (33, 8)), (33, 64)), U4, "words: must be rows of"),
        (core.Words("columns", 4, WORDS.T.copy(), (33, 64), np.arange(64)), U4, "order: must be contiguous int32"),
        (core.Words("columns", 4, WORDS.T.copy(), (33, 64), np.full(64, 64, "i4")), U4, "does not exist, or an array"),
        (core.Words("columns", 4, WORDS.T.copy(), (33, 64), np.full(64, -1, "i4")), U4, "does not exist, or an array"),
        (core.Words("columns", 4, WORDS.T.copy(), (33, 64), np.zeros(63, "i4")), U4, "order: must have shape"),
        (core.Words("rows", 4, WORDS, (33, 64)), core.Format("q4"), "does not exist, or an array does not fit"),
        (core.Words("rows", 4, WORDS, (33, 64)), core.Format("q8"), "does not exist, or an array does not fit"),
    ],
)
def test_what_cannot_be_is_refused(words, form, problem):
    N, K = words.shape
    halves = np.zeros((N, -(-K // 64)), np.float16)
    with pytest.raises(core.CoreError, match=problem):
        core.pack(form, words, halves, **({"offset": halves} if form == U4 else {}))
