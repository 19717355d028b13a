"""Blocks that C packs from a file's own bytes: the same bytes as codes and scales of the NumPy decoders make."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref import core
from qwq_ref.formats.gguf import blocks
from qwq_ref.formats.gguf.types import TYPES

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)
BY_NAME = {kind.name: kind for kind in TYPES.values()}
# The places of float16 scales in a block, as llama.cpp's ggml-common.h has them.
HALVES = {
    **dict.fromkeys(["Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS"], (0,)),
    **dict.fromkeys(["Q4_1", "Q5_1", "Q4_K", "Q5_K"], (0, 2)),
    **{"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)},
}
every_type = pytest.mark.parametrize("name", core.BLOCK_TYPES)


def random_blocks(name, n, m, seed):
    """Any bytes at all: [n, m blocks]"""
    return np.random.default_rng(seed).integers(0, 256, (n, m * BY_NAME[name].nbytes), np.uint8)


def filled(format, shape):
    """A place whose every byte is to be written."""
    made = core.empty(format, shape)
    made.packed[:] = 0xA5
    return made


def by_numpy(name, data):
    kind = BY_NAME[name]
    shape = len(data), data.shape[1] // kind.nbytes * kind.block
    return core.pack(blocks.NATIVE[name], out=filled(blocks.NATIVE[name], shape), **vars(blocks.parts(kind, data)))


def is_finite(name, data):
    each = data.reshape(len(data), -1, BY_NAME[name].nbytes)
    return all(np.isfinite(each[..., at : at + 2].copy().view("<f2")).all() for at in HALVES[name])


def test_every_type_with_a_format_is_one_of_the_core():
    assert set(core.BLOCK_TYPES) == set(blocks.NATIVE) - {"F32", "F16", "BF16"}


@every_type
def test_the_tables_agree(name):
    kind = BY_NAME[name]
    assert core.block_of(name) == (blocks.NATIVE[name], kind.block, kind.nbytes)


@every_type
@given(n=st.integers(1, 100), m=st.integers(1, 9), threads=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_bytes_are_those_of_the_numpy_decoder(name, n, m, threads, seed):
    data = random_blocks(name, n, m, seed)
    wanted = by_numpy(name, data)
    made = filled(wanted.format, wanted.shape)
    assert core.pack_blocks(name, data, made, threads=threads) == is_finite(name, data)
    assert made.packed.tobytes() == wanted.packed.tobytes()


@every_type
@given(n=st.integers(1, 70), m=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_every_second_panel(name, n, m, seed):
    gate, up = (random_blocks(name, n, m, seed + i) for i in range(2))
    apart = [by_numpy(name, data) for data in (gate, up)]
    whole = filled(apart[0].format, (-(-n // 32) * 64, apart[0].shape[1]))
    for i, data in enumerate((gate, up)):
        core.pack_blocks(name, data, whole.every_second(32 * i, n), step=2)
    found = whole.packed.reshape(-(-n // 32), 2, -1)
    for i, wanted in enumerate(apart):
        assert found[:, i].tobytes() == wanted.packed.tobytes()


@every_type
@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00, 0xFC01, 0x7BFF, 0xFBFF, 0x0001, 0x8000])
def test_one_scale_that_is_not_finite(name, bits):
    """In the last place of a large matrix, and nowhere else."""
    kind = BY_NAME[name]
    for at in HALVES[name]:
        data = np.zeros((65, 3, kind.nbytes), np.uint8)
        data[64, 2, at : at + 2] = np.array([bits], "<u2").view(np.uint8)
        out = core.empty(blocks.NATIVE[name], (65, 3 * kind.block))
        finite = core.pack_blocks(name, data.reshape(65, -1), out)
        assert finite == (bits & 0x7C00 != 0x7C00)


Q4_0 = blocks.NATIVE["Q4_0"]
place = functools.partial(core.empty, Q4_0)
DATA = np.zeros((33, 18), np.uint8)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: core.pack_blocks("Q9_K", DATA, place((33, 32))), "type: must be one of Q4_0, .* got Q9_K"),
        (lambda: core.pack_blocks("Q4_0", DATA[:, :17].copy(), place((33, 32))), "data: must be .* whole blocks of 18"),
        (lambda: core.pack_blocks("Q4_0", DATA[:, ::-1], place((33, 32))), "data: must be contiguous bytes"),
        (lambda: core.pack_blocks("Q4_0", DATA.view(np.int8), place((33, 32))), "data: must be .* got int8"),
        (lambda: core.pack_blocks("Q4_0", DATA[0], place((33, 32))), "data: must have 2 dimensions"),
        (lambda: core.pack_blocks("Q4_0", DATA, place((33, 64))), r"out: must be .* \[33, 32\], got .* \[33, 64\]"),
        (lambda: core.pack_blocks("Q4_1", DATA, place((33, 32))), "data: must be"),
        (lambda: core.pack_blocks("Q4_0", DATA, place((33, 32)), step=2), "out: of .* does not hold 2 panels, 2 apart"),
        (lambda: core.pack_blocks("Q4_0", DATA, place((33, 32)), step=3), "out: of .* 3 apart"),
        (lambda: core.pack_blocks("Q4_0", DATA, place((33, 32)), threads=0), "threads: must be"),
        (lambda: place((33, 32)).every_second(0, 33), "rows: 33 from 0 on, in every second panel"),
        (lambda: place((33, 32)).every_second(1, 1), "rows: 1 from 1 on"),
        (lambda: place((33, 32)).every_second(64, 1), "rows: 1 from 64 on"),
        (lambda: place((33, 32)).every_second(-32, 1), "rows: 1 from -32 on"),
    ],
)
def test_what_cannot_be_is_refused(call, words):
    with pytest.raises(core.CoreError, match=words):
        call()
