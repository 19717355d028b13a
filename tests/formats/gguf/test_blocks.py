"""Decoders of GGUF's blocks: equal to the `gguf` package's to the bit, for any bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref.errors import UsageError
from qwq_ref.formats.gguf import blocks
from qwq_ref.formats.gguf.types import TYPES

gguf = pytest.importorskip("gguf")
BY_NAME = {kind.name: kind for kind in TYPES.values()}
OTHERS = ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0", "MXFP4"]
# The places of float16 scales in a block.
HALVES = {
    **dict.fromkeys(["Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS"], (0,)),
    **dict.fromkeys(["Q4_1", "Q5_1", "Q4_K", "Q5_K"], (0, 2)),
    **{"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)},
}
SPECIAL = np.array([0, 1, 0x3FF, 0x400, 0x7BFF, 0x7C00, 0x7E00, 0x7C01, 0x8000, 0x8001, 0xFBFF, 0xFC00, 0xFE01], "<u2")


def theirs(name, data):
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name])


def rows_of(name, rng, n=3, m=2):
    """Random rows of whole blocks. Half of their scales are special: subnormal, infinite, not a number."""
    kind = BY_NAME[name]
    data = rng.integers(0, 256, (n, m, kind.nbytes), np.uint8)
    for at in HALVES.get(name, ()):
        special = rng.choice(SPECIAL, (n, m, 1)).view(np.uint8)
        data[:, :, at : at + 2] = np.where(rng.random((n, m, 1)) < 0.5, special, data[:, :, at : at + 2])
    return data.reshape(n, -1)


@pytest.mark.parametrize("name", blocks.NATIVE)
@given(seed=st.integers(0, 2**32))
def test_floats_are_those_of_the_package(name, seed):
    data = rows_of(name, np.random.default_rng(seed), m=64 if name in ("F32", "F16", "BF16") else 2)
    ours = blocks.floats(BY_NAME[name], data)
    assert ours.dtype == np.float32
    expected = theirs(name, data)
    assert ours.shape == expected.shape
    assert ours.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", OTHERS)
def test_other_types_are_decoded_by_the_package(name):
    data = rows_of(name, np.random.default_rng(0))
    assert blocks.floats(BY_NAME[name], data).tobytes() == theirs(name, data).tobytes()


def test_a_type_that_nothing_decodes():
    kind = BY_NAME["Q8_K"]
    with pytest.raises(UsageError, match="Q8_K is not decoded by this version of the package gguf"):
        blocks.floats(kind, np.zeros((1, kind.nbytes), np.uint8))


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(UsageError, match="IQ1_S is decoded by the package gguf, which is not installed"):
        blocks.floats(BY_NAME["IQ1_S"], np.zeros((1, 50), np.uint8))


@pytest.mark.parametrize("name", [name for name in blocks.NATIVE if name not in ("F32", "F16", "BF16")])
def test_every_code_and_scale_occurs(name):
    """The ranges that the formats of the core are chosen for."""
    kind, format = BY_NAME[name], blocks.NATIVE[name]
    rng = np.random.default_rng(0)
    found = blocks.parts(kind, rng.integers(0, 256, (64, 16 * kind.nbytes), np.uint8))
    bits = {"Q2_K": 2, "Q3_K": 3}.get(name, {"u4": 4, "u5": 5, "u6": 6}.get(format.codes))
    codes = np.unique(found.code)
    if bits:
        assert np.array_equal(codes, np.arange(1 << bits))
    else:
        assert codes.dtype == np.int8
        assert len(codes) == (256 if name == "Q8_0" else 16)
    K = found.code.shape[1]
    assert found.scale.dtype == np.float16
    assert found.scale.shape == (64, K // kind.block)
    assert (found.offset is not None) == (format.scales in ("offset", "super_min"))
    ranges = {
        "Q2_K": (0, 15),
        "Q3_K": (-32, 31),
        "Q4_K": (0, 63),
        "Q5_K": (0, 63),
        "Q6_K": (-128, 127),
        "IQ4_XS": (-32, 31),
    }
    if name in ranges:
        for part in (found.sub_scale, found.sub_min):
            if part is not None:
                assert part.shape == (64, K // format.group)
                assert (part.min(), part.max()) == ranges[name]
        assert (found.sub_min is not None) == (format.scales == "super_min")
    else:
        assert found.sub_scale is None
