"""Words of 32 bits and their codes, against words that are put together one code at a time."""

import numpy as np
import pytest

from qwq_ref.formats.quantised import codes
from tests.support.quantised_models import awq_words, words_of


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("dtype", [np.uint32, np.int32])
def test_a_stream_of_bits(bits, dtype):
    wanted = np.random.default_rng(bits).integers(0, 1 << bits, (5, 208 if bits % 2 == 0 else 192))
    wanted[0], wanted[1] = (1 << bits) - 1, 0
    found = codes.stream(words_of(wanted, bits).view(dtype), bits)
    assert found.dtype == np.uint8
    assert np.array_equal(found, wanted)


def test_the_order_of_awq():
    wanted = np.random.default_rng(0).integers(0, 16, (7, 24))
    assert np.array_equal(codes.awq(awq_words(wanted)), wanted.T)
    # By hand: nibble 1 of a word is output 2, nibble 4 is output 1.
    assert np.array_equal(codes.awq(np.array([[0x00030050]], np.int32))[:, 0], [0, 3, 5, 0, 0, 0, 0, 0])
    assert codes.awq(np.array([[-1]], np.int32)).tolist() == [[15]] * 8


def test_columns_of_a_wider_matrix():
    """Rows of a matrix are columns of these tensors, which lie apart in memory."""
    wanted = np.random.default_rng(0).integers(0, 16, (7, 24))
    assert np.array_equal(codes.awq(awq_words(wanted)[:, 1:2]), wanted[:, 8:16].T)
    assert np.array_equal(codes.stream(words_of(wanted, 4)[:, 1:2], 4), wanted[:, 8:16])
