"""The look at magnitudes: numbers of every kind and limit, and the place of the first one beyond."""

import ml_dtypes
import numpy as np
import pytest

from qwq_ref.core.magnitude import first_beyond, within

FLOAT32_MAX = float(np.finfo(np.float32).max)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("limit", [2.0, 300.0, 65504.0, FLOAT32_MAX])
def test_magnitudes_of_numbers_of_16_bits(dtype, limit):
    """Alone, and beside a number of the other sign."""
    every = np.arange(1 << 16).astype(np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):
        wanted = np.abs(every.astype(np.float64)) <= limit
    assert [within(every[i : i + 1], limit) for i in range(0, 1 << 16, 3)] == wanted[::3].tolist()
    for beside in (1.0, -1.5, 1e-30):
        pairs = np.stack([every, np.full(1 << 16, beside, dtype)], axis=1)
        assert [within(pair, limit) for pair in pairs[::29]] == wanted[::29].tolist()


@pytest.mark.parametrize("limit", [2.0, 1e30, FLOAT32_MAX])
def test_magnitudes_of_float32(limit):
    bits = np.random.default_rng(0).integers(0, 1 << 32, 20_000, np.uint32)
    special = np.array([0x7F800000, 0xFF800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800001, 0xFFFFFFFF, 0x80000000], np.uint32)
    every = np.concatenate([bits, special]).view(np.float32)
    wanted = np.abs(every) <= np.float32(limit)
    assert [within(x, limit) for x in every.reshape(-1, 1)] == wanted.tolist()


def test_the_first_number_beyond_a_limit_is_named():
    x = np.zeros((3, 40), ml_dtypes.bfloat16)
    assert first_beyond(x, 2.0) is None
    assert first_beyond(x[:0], 2.0) is None
    x[2, 7] = np.nan
    assert first_beyond(x, FLOAT32_MAX) == ([2, 7], "NaN")
    x[1, 39] = -np.inf
    assert first_beyond(x, FLOAT32_MAX) == ([1, 39], "infinity")
    x[0, 1] = -1e30
    assert first_beyond(x, FLOAT32_MAX) == ([1, 39], "infinity")
    assert first_beyond(x, 2.0)[0] == [0, 1]
    assert first_beyond(x[:, ::3], FLOAT32_MAX) == ([1, 13], "infinity")
