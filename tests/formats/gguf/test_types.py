"""The table of ggml's types is that of the `gguf` package."""

import pytest

from qwq_ref.formats.gguf.types import REMOVED, TYPES


def test_the_table_is_that_of_the_package():
    constants = pytest.importorskip("gguf.constants")
    theirs = {int(kind): (kind.name, *constants.GGML_QUANT_SIZES[kind]) for kind in constants.GGMLQuantizationType}
    ours = {number: (kind.name, kind.block, kind.nbytes) for number, kind in TYPES.items()}
    assert theirs.items() <= ours.items()  # an older package lacks the newest types
    assert not set(REMOVED) & set(TYPES)


def test_bytes_of_columns():
    assert TYPES[12].bytes_of(512) == 288
    assert TYPES[0].bytes_of(7) == 28
