"""Checkpoints with arbitrary bytes or header values are refused, or read as their header says."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref.errors import CheckpointError
from qwq_ref.formats import Checkpoint
from tests.support.safetensors_files import EMBEDDING, NORM, WEIGHTS, pack, split, weights_file, write

BLOB = weights_file(WEIGHTS)
HEADER = 8 + int.from_bytes(BLOB[:8], "little")
_place = st.integers(0, HEADER - 1) | st.integers(0, len(BLOB) - 1)
_byte = st.integers(0, 255) | st.sampled_from(list(b'0123456789"{}[],:-.\\ '))


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    return write(tmp_path_factory.mktemp("fuzzed"), {"model.safetensors": WEIGHTS}) / "model.safetensors"


def read_or_refused(path):
    """The tensors, or None where the file was refused. Anything but CheckpointError gets out."""
    try:
        with Checkpoint.open(path) as checkpoint:
            return dict(checkpoint)
    except CheckpointError as error:
        if not str(error).isprintable():
            raise
        return None


@given(edits=st.lists(st.tuples(_place, _byte), min_size=1, max_size=4), cut=st.none() | st.integers(0, len(BLOB)))
def test_edited_bytes(fuzzed, edits, cut):
    """Refused, or read as the good header says: an edit of the data changes that number alone."""
    blob = bytearray(BLOB)
    for place, byte in edits:
        blob[place] = byte
    fuzzed.write_bytes(blob[:cut])
    got = read_or_refused(fuzzed)
    if got is not None:
        assert cut in (None, len(BLOB))
        offset = HEADER
        for name, value in WEIGHTS.items():
            assert got[name].shape == value.shape
            assert got[name].tobytes() == blob[offset : offset + value.nbytes]
            offset += value.nbytes
    if all(place >= HEADER for place, _ in edits) and cut is None:
        assert got is not None


@given(start=st.integers(0, HEADER - 1), length=st.integers(0, 40), text=st.binary(max_size=40))
def test_spliced_header(fuzzed, start, length, text):
    """A piece of the header replaced by another, with the length field kept true."""
    header = BLOB[8:HEADER]
    header = header[:start] + text + header[start + length :]
    fuzzed.write_bytes(pack(header, BLOB[HEADER:]))
    got = read_or_refused(fuzzed)
    if got is not None:
        assert all(np.array_equal(got[name], WEIGHTS[name]) for name in WEIGHTS)


_scalar = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just(1 << 70)
_json = st.recursive(_scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))


@given(
    name=st.sampled_from([NORM, EMBEDDING, "__metadata__", "x"]),
    field=st.sampled_from(["dtype", "shape", "data_offsets", "x", None]),
    value=_json,
)
def test_any_json_in_the_header(fuzzed, name, field, value):
    header = json.loads(BLOB[8:HEADER])
    if field is None:
        header[name] = value
    else:
        header.setdefault(name, {})[field] = value
    fuzzed.write_bytes(pack(header, BLOB[HEADER:]))
    got = read_or_refused(fuzzed)
    if got is not None:
        assert name == "__metadata__" or header == json.loads(BLOB[8:HEADER])
        assert all(np.array_equal(got[name], WEIGHTS[name]) for name in WEIGHTS)


@given(shard=st.text() | st.sampled_from(["a", "b", "../a", "A", "c"]), name=st.sampled_from([*WEIGHTS, "x"]))
def test_any_shard_name(tmp_path_factory, shard, name):
    shards, weight_map = split()
    folder = tmp_path_factory.mktemp("index")
    got = read_or_refused(write(folder, shards, weight_map | {name: shard}))
    shutil.rmtree(folder)
    # Each shard is needed by other tensors, too, and tells which it holds: the index may be wrong about one.
    assert (got is not None) == (name in weight_map and shard in shards)
