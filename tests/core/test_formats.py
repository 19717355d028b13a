"""The table of formats: Python's copy against C's, for every format and many shapes."""

import itertools

import pytest

from qwq_ref import core
from qwq_ref.core.formats import MOST_SIZE, c_format, exists

GROUPS = (-64, 0, 1, 16, 32, 48, 64, 128, 256)
ZERO_POINTS = (-1, 0, 1, 8, 63, 64, 128, 255, 256)
SIZES = (1, 31, 32, 33, 63, 64, 65, 255, 256, 257, 4096, 5120, 27648, MOST_SIZE - 1, MOST_SIZE)
EVERY = [core.Format(*values) for values in itertools.product(core.CODES, GROUPS, core.SCALES, ZERO_POINTS)]
REAL = [form for form in EVERY if exists(form)]


def test_sizes_need_no_core():
    assert core.packed_bytes(core.Format("q4"), (32, 64)) == 32 * 32 + 32 * 2
    assert core.packed_bytes(core.Format("q4"), (33, 65)) == 4 * (32 * 32 + 32 * 2)
    assert core.packed_bytes(core.Format("fp32", 0), (1, 1)) == 32 * 64 * 4
    assert core.packed_bytes(core.Format("q5"), (1, 1)) == core.packed_bytes(core.Format("q4", 64, "?"), (1, 1)) == 0
    assert core.packed_bytes(core.Format("q4"), (0, 64)) == core.packed_bytes(core.Format("q4"), (1, -1)) == 0
    assert core.packed_bytes(core.Format("q4"), (1, MOST_SIZE + 1)) == 0


@pytest.mark.skipif(not core.available(), reason="the C core is not built: there was no compiler")
def test_sizes_are_those_of_the_core():
    assert len(REAL) > 100
    assert core.lib.QWQ_MOST_SIZE == MOST_SIZE
    for form in EVERY:
        struct = c_format(form)
        for shape in itertools.product(SIZES, SIZES) if exists(form) else ((1, 1), (32, 256)):
            assert core.packed_bytes(form, shape) == core.lib.qwq_packed_bytes(struct, *shape), (form, shape)
            assert exists(form) == (core.packed_bytes(form, shape) > 0), form
