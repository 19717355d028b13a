"""Packing floats: the panels of any shape, and their rows."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref import core
from qwq_ref.core.formats import exists

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)
FLOATS = [name for name, codes in core.CODES.items() if not codes.groups]
shapes = st.tuples(st.integers(1, 100), st.integers(1, 200))


def random_codes(name, shape, seed):
    """Any bits at all: NaN and infinity among them."""
    dtype = np.dtype(core.CODES[name].dtype)
    size = shape[0] * shape[1] * dtype.itemsize
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8).view(dtype).reshape(shape)


@pytest.mark.parametrize("name", FLOATS)
@given(shape=shapes, seed=st.integers(0, 2**32 - 1))
def test_a_panel_has_its_rows_side_by_side_and_zeros_elsewhere(name, shape, seed):
    codes, (N, K) = random_codes(name, shape, seed), shape
    made = core.empty(core.FORMATS[name], shape)
    made.packed[:] = 255
    core.pack(core.FORMATS[name], codes, out=made)
    wanted = np.zeros((-(-N // core.PANEL) * core.PANEL, -(-K // 64) * 64), codes.dtype)
    wanted[:N, :K] = codes
    assert made.packed.tobytes() == wanted.reshape(-1, core.PANEL, wanted.shape[1]).swapaxes(1, 2).tobytes()


@pytest.mark.parametrize("name", FLOATS)
@given(shape=shapes, seed=st.integers(0, 2**32 - 1), data=st.data())
def test_rows_are_unpacked_as_they_were(name, shape, seed, data):
    codes = random_codes(name, shape, seed)
    rows = data.draw(st.lists(st.integers(0, shape[0] - 1), max_size=9))
    got = core.unpack_rows(core.pack(core.FORMATS[name], codes), np.array(rows, int))
    assert got.dtype == codes.dtype
    assert got.tobytes() == codes[rows].tobytes()


@pytest.mark.parametrize("rows", [[33], [0, -1]])
def test_rows_that_a_weight_does_not_have_are_refused(rows):
    weight = core.pack(core.FORMATS["fp32"], np.ones((33, 5), np.float32))  # its second panel has 31 rows of zeros
    with pytest.raises(core.CoreError, match="rows: must be 0 to 32, got"):
        core.unpack_rows(weight, np.array(rows))


def test_rows_of_a_codebook_are_refused():
    with pytest.raises(core.CoreError, match="q4 is no format whose rows can be unpacked"):
        core.unpack_rows(core.quantise(np.ones((32, 64), np.float32), "q4"), np.array([0]))


INTEGERS = [
    core.Format(codes, group, scales, zero)
    for codes in ("u4", "u5", "u6", "u8", "q8")
    for group in (16, 32, 64, 128)
    for scales, zero in (
        ("plain", 0),
        ("plain", 5),
        ("plain", 128),
        ("zero", 0),
        ("offset", 0),
        ("super", 0),
        ("super", 9),
        ("super_min", 0),
    )
    if exists(core.Format(codes, group, scales, zero))
]


NAMES = [f"{form.codes}-{form.group}-{form.scales}-{form.zero_point}" for form in INTEGERS]


def placed_codes(form, code, block_columns):
    """code [32, columns of a block] -> the block's bytes of codes, one code at a time: docs/packed.md, "The bytes"."""
    bits = {"u4": 4, "u5": 5, "u6": 6, "u8": 8, "q8": 8}[form.codes]
    planes = {"u5": (4, 1), "u6": (4, 2)}.get(form.codes, (bits,))
    made = np.zeros((block_columns // 64, bits * 32 * 64 // 8), np.uint8)
    for r, k in zip(*np.nonzero(code >= 0), strict=True):
        value, of, start = int(code[r, k]), made[k // 64], 0
        j, b = k % 64 // 4 * 2 + r // 16, r % 16 * 4 + k % 4
        for width in planes:
            of[start + j * width // 8 * 64 + b] |= (value & (1 << width) - 1) << j * width % 8
            value, start = value >> width, start + width * 4 * 64
    return made.ravel()


@pytest.mark.parametrize("form", INTEGERS, ids=NAMES)
@pytest.mark.parametrize(("N", "K"), [(33, 70), (32, 64), (1, 1), (40, 300)])
def test_every_byte_of_integers(form, N, K):
    """The codes in their places, each scale in its own, and zeros everywhere else."""
    rng = np.random.default_rng(N)
    columns = 256 if form.scales.startswith("super") else max(form.group, 64)
    m, d, G = -(-K // form.group), -(-K // columns), columns // form.group
    code = rng.integers(0, 1 << core.CODES[form.codes].bits, (N, K)).astype(np.uint8)
    parts = {"scale": rng.standard_normal((N, d if columns == 256 else m)).astype(np.float16)}
    order = [("scale", G)]
    if form.scales == "zero":
        parts["zero_point"], order = rng.integers(0, 17, (N, m)).astype(np.uint8), [*order, ("zero_point", G)]
    if form.scales in ("offset", "super_min"):
        parts["offset"], order = rng.standard_normal(parts["scale"].shape).astype(np.float16), [*order, ("offset", G)]
    if columns == 256:
        parts["sub_scale"] = rng.integers(0, 64, (N, m)).astype(np.uint8)
        order = [(name, 1) for name, _ in order] + [("sub_scale", G)]
    if form.scales == "super_min":
        parts["sub_min"], order = rng.integers(0, 64, (N, m)).astype(np.uint8), [*order, ("sub_min", G)]
    blocks = []
    for n in range(0, N, 32):
        for block in range(-(-K // columns)):
            some = np.full((32, columns), -1)
            of_block = code[n : n + 32, block * columns : (block + 1) * columns]
            some[: len(of_block), : of_block.shape[1]] = of_block ^ 128 if form.codes == "q8" else of_block
            made = [placed_codes(form, some, columns)]
            for name, count in order:
                whole = np.zeros((32, count), parts[name].dtype)
                given = parts[name][n : n + 32, block * count : (block + 1) * count]
                whole[: len(given), : given.shape[1]] = given
                made.append(np.ascontiguousarray(whole.T).view(np.uint8).ravel())
            made = np.concatenate(made)
            blocks.append(np.pad(made, (0, -len(made) % 64)))
    out = core.empty(form, (N, K))
    out.packed[:] = 255
    core.pack(form, code.view(np.int8) if form.codes == "q8" else code, **parts, out=out)
    assert out.packed.tobytes() == np.concatenate(blocks).tobytes()


@pytest.mark.parametrize("form", INTEGERS, ids=NAMES)
def test_rows_of_integers_are_what_they_mean(form):
    rng = np.random.default_rng(0)
    for N, K in ((70, 384), (1, 256), (33, 2 * form.group)):
        m, blocks = -(-K // form.group), -(-K // 256)
        code = rng.integers(-128, 128, (N, K)).astype(np.int8)
        if form.codes != "q8":
            code = rng.integers(0, 2 ** int(form.codes[1]), (N, K)).astype(np.uint8)
        parts = {"scale": rng.standard_normal((N, blocks if form.scales.startswith("super") else m)).astype(np.float16)}
        zero, scale, offset = form.zero_point, parts["scale"], None
        if form.scales == "zero":
            zero = parts["zero_point"] = rng.integers(0, 256 if form.codes == "u8" else 17, (N, m)).astype(np.uint8)
        if form.scales.startswith("offset"):
            half = ml_dtypes.bfloat16 if form.scales == "offset_bf16" else np.float16
            scale = parts["scale"] = parts["scale"].astype(half)
            offset = parts["offset"] = rng.standard_normal((N, m)).astype(half)
        if form.scales.startswith("super"):
            signed = form.scales == "super"
            sub = parts["sub_scale"] = rng.integers(-128 if signed else 0, 128, (N, m)).astype(
                np.int8 if signed else np.uint8
            )
            each = np.repeat(np.arange(blocks), 256 // form.group)[:m]
            scale = scale.astype(np.float32)[:, each] * sub
        if form.scales == "super_min":
            parts["offset"] = rng.standard_normal((N, blocks)).astype(np.float16)
            parts["sub_min"] = rng.integers(0, 64, (N, m)).astype(np.uint8)
            offset = -(parts["offset"].astype(np.float32)[:, each] * parts["sub_min"])

        def columns(x, m=m, K=K):
            return np.repeat(x, form.group, axis=1)[:, :K].astype(np.float32) if np.ndim(x) else np.float32(x)

        wanted = (code.astype(np.float32) - columns(zero)) * columns(scale)
        wanted = wanted if offset is None else wanted + columns(offset)
        rows = rng.integers(0, N, 9)
        got = core.unpack_rows(core.pack(form, code, **parts), rows)
        assert got.dtype == np.float32
        assert got.tobytes() == wanted[rows].tobytes()
