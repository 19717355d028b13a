"""Files of packed weights that must be refused: no header, metadata or size is trusted."""

import json
import os
import tracemalloc

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st

from qwq_ref import core
from qwq_ref.core import Format
from qwq_ref.errors import CheckpointError, MemoryLimitError
from qwq_ref.formats import packed
from qwq_ref.formats.safetensors import SafetensorsFile
from tests.core.test_matmul import random_weight  # skips where the core is not built

WEIGHTS = {
    "w": random_weight(np.random.default_rng(0), Format("u4", 32, "zero"), 5, 64)[0],
    "v": random_weight(np.random.default_rng(1), Format("q8", 16), 33, 70)[0],
    "n": np.arange(5, dtype=np.float32),
}
ENTRY = {"codes": "u4", "group": 32, "scales": "zero", "zero": 0, "shape": [5, 64]}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "good"
    packed.write_packed(path, WEIGHTS)
    return path.read_bytes()


def parts(blob):
    """(header, what is packed according to its metadata, data)"""
    end = 8 + int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8:end])
    return header, json.loads(header["__metadata__"]["packed"]), blob[end:]


def joined(header, data, text=None, aligned=True):
    if text is not None:
        header["__metadata__"]["packed"] = text if isinstance(text, str) else json.dumps(text)
    head = json.dumps(header).encode()
    head += b" " * (-(len(head) + 8) % 64 + (0 if aligned else 8))
    return len(head).to_bytes(8, "little") + head + data


def refused(path, field, words):
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            packed.read_packed(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert (caught.value.file, caught.value.field) == (str(path), field)
    assert words in caught.value.problem
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500 + len(str(path))


META = "__metadata__"
METADATA = {
    "none": ({}, "format is not qwq-packed"),
    "of a checkpoint": ({"format": "pt"}, "format is not qwq-packed"),
    "no version": ({"format": "qwq-packed", "packed": "{}"}, "version must be 1, got None"),
    "next version": ({"format": "qwq-packed", "version": "2", "packed": "{}"}, "version must be 1, got '2'"),
    "version of another form": ({"format": "qwq-packed", "version": "1.0", "packed": "{}"}, "version must be 1"),
    "not packed": ({"format": "qwq-packed", "version": "1"}, "packed is missing"),
}
TEXTS = {
    "empty": ("", "packed: is not JSON"),
    "a list": ("[]", "packed: must hold a JSON object"),
    "cut short": ('{"w":', "packed: is not JSON"),
    "twice": ('{"w":1,"w":1}', "packed: w appears twice"),
    "a field twice": ('{"w":{"zero":0,"zero":0}}', "packed: zero appears twice"),
    "NaN": ('{"w":NaN}', "packed: holds NaN"),
    "deep": ('{"w":' + "[" * 10**5, "packed: is nested too deeply"),
    "a surrogate": ('{"\ud800":1}', "packed: is not UTF-8"),
}
ENTRIES = {
    "null": (None, "must be an object"),
    "a list": ([], "must be an object"),
    "unknown field": (ENTRY | {"x": 1}, "unknown field x"),
    **{f"no {key}": ({k: v for k, v in ENTRY.items() if k != key}, f"{key} is missing") for key in ENTRY},
    "codes unknown": (ENTRY | {"codes": "u7"}, "there is no format of codes u7"),
    "codes of another kind": (ENTRY | {"codes": "q4"}, "there is no format of codes q4"),
    "codes long": (ENTRY | {"codes": "q" * 10**5}, "there is no format of codes qqq"),
    "codes a list": (ENTRY | {"codes": ["u4"]}, "codes is impossible"),
    "codes a number": (ENTRY | {"codes": 1}, "codes is impossible"),
    "codes null": (ENTRY | {"codes": None}, "codes is impossible"),
    "group of 33": (ENTRY | {"group": 33}, "there is no format"),
    "group of 0": (ENTRY | {"group": 0}, "there is no format"),
    "group of 2^32 + 32": (ENTRY | {"group": (1 << 32) + 32}, "group is impossible"),
    "group of 2^70": (ENTRY | {"group": 1 << 70}, "group is impossible"),
    "group below 0": (ENTRY | {"group": -32}, "group is impossible"),
    "group a boolean": (ENTRY | {"group": True}, "group is impossible"),
    "group a float": (ENTRY | {"group": 32.0}, "group is impossible"),
    "scales unknown": (ENTRY | {"scales": "none"}, "there is no format"),
    "scales a number": (ENTRY | {"scales": 1}, "scales is impossible"),
    "zero where there are zeros": (ENTRY | {"zero": 8}, "there is no format"),
    "zero of 2^31": (ENTRY | {"zero": 1 << 31}, "zero is impossible"),
    "shape of three": (ENTRY | {"shape": [5, 64, 1]}, "shape is impossible"),
    "shape of one": (ENTRY | {"shape": [5]}, "shape is impossible"),
    "shape a number": (ENTRY | {"shape": 5}, "shape is impossible"),
    "shape of strings": (ENTRY | {"shape": ["5", "64"]}, "shape is impossible"),
    "shape of booleans": (ENTRY | {"shape": [True, True]}, "shape is impossible"),
    "shape below 0": (ENTRY | {"shape": [-5, -64]}, "shape is impossible"),
    "no rows": (ENTRY | {"shape": [0, 64]}, "there is no format"),
    "no columns": (ENTRY | {"shape": [5, 0]}, "there is no format"),
    "a panel more": (ENTRY | {"shape": [33, 64]}, "shape must be [2432] for"),
    "a block more": (ENTRY | {"shape": [5, 65]}, "shape must be [2432] for"),
    "huge": (ENTRY | {"shape": [1 << 30, 1 << 30]}, "shape must be [684547143360315392] for"),
    "too huge": (ENTRY | {"shape": [1 << 62, 4]}, "shape is impossible"),
    "other scales": (ENTRY | {"scales": "offset"}, "shape must be [1280] for"),
}


@pytest.mark.parametrize("case", METADATA)
def test_metadata(tmp_path, good, case):
    metadata, words = METADATA[case]
    header, _, data = parts(good)
    (tmp_path / "x").write_bytes(joined(header | {META: metadata}, data))
    refused(tmp_path / "x", META, words)


@pytest.mark.parametrize("case", TEXTS)
def test_text_of_what_is_packed(tmp_path, good, case):
    text, words = TEXTS[case]
    header, _, data = parts(good)
    (tmp_path / "x").write_bytes(joined(header, data, text))
    refused(tmp_path / "x", META, words)


@pytest.mark.parametrize("case", ENTRIES)
def test_entry_of_a_packed_weight(tmp_path, good, case):
    entry, words = ENTRIES[case]
    header, entries, data = parts(good)
    (tmp_path / "x").write_bytes(joined(header, data, entries | {"w": entry}))
    refused(tmp_path / "x", "w", words)


def test_metadata_and_tensors_disagree(tmp_path, good):
    path = tmp_path / "x"
    for name, change, words in (
        ("w", {"w": None}, "the metadata does not say what its bytes are"),
        ("z", {"z": ENTRY}, "there is no such tensor"),
        ("n", {"n": ENTRY}, "is F32, but in the metadata it is packed"),
    ):
        header, entries, data = parts(good)
        entries = {key: value for key, value in (entries | change).items() if value is not None}
        path.write_bytes(joined(header, data, entries))
        refused(path, name, words)


def test_tensors(tmp_path, good):
    path = tmp_path / "x"
    header, _, data = parts(good)
    path.write_bytes(joined(header, data, aligned=False))
    refused(path, "w", "no multiple of 64: was the file rewritten?")
    header["w"]["shape"] = [2, header["w"]["shape"][0] // 2]
    path.write_bytes(joined(header, data))
    refused(path, "w", "shape must be [1216] for codes u4, group 32")
    header, _, data = parts(good)
    header["n"]["dtype"] = "U32"
    path.write_bytes(joined(header, data))
    refused(path, "n", "dtype must be one of U8, F32, BF16, I32, got U32")
    header["n"]["dtype"] = "I32"
    path.write_bytes(joined(header, data))
    refused(path, "n", "is I32, but no order of the columns of a packed weight")


def test_rewritten_by_the_library(tmp_path, good):
    """It sorts by the size of numbers: floats come first."""
    path = tmp_path / "x"
    path.write_bytes(good)
    with safetensors.safe_open(path, "numpy") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    safetensors.numpy.save_file(tensors, path, metadata)
    refused(path, "v", "was the file rewritten?")


def test_strangers(tmp_path, good):
    path = tmp_path / "model.safetensors"
    (tmp_path / "config.json").write_text('{"x": 1}')
    path.write_bytes(good)
    with pytest.raises(CheckpointError, match="w: dtype must be one of F32, F16, BF16, got U8"):
        SafetensorsFile(path)
    safetensors.numpy.save_file({"x": np.ones(3, np.float32)}, path)
    refused(path, META, "this is no file of packed weights")


@pytest.mark.parametrize("left", [0, 1000, -1, -21])
def test_a_file_that_shrinks(tmp_path, good, left):
    path = tmp_path / "x"
    path.write_bytes(good)
    with packed.PackedFile(path) as file:
        os.truncate(path, left if left >= 0 else len(good) + left)
        with pytest.raises(CheckpointError, match="it is shorter than it was when opened"):
            file.read()


def test_claims_allocate_nothing(tmp_path, good):
    """550 GB that are not in the file."""
    header, entries, data = parts(good)
    size = core.packed_bytes(Format("q8"), (1 << 20, 1 << 19))
    entries["n"] = {"codes": "q8", "group": 64, "scales": "plain", "zero": 0, "shape": [1 << 20, 1 << 19]}
    begin = header["n"]["data_offsets"][0]
    header["n"] = {"dtype": "U8", "shape": [size], "data_offsets": [begin, begin + size]}
    (tmp_path / "x").write_bytes(joined(header, data, entries))
    refused(tmp_path / "x", "n", "past the end of the file")


def test_memory_that_there_is_not(tmp_path, monkeypatch):
    def none(size):
        raise MemoryError

    monkeypatch.setattr(core, "aligned", none)
    packed.write_packed(tmp_path / "x", {"n": np.ones(3, np.float32)})
    with pytest.raises(MemoryLimitError, match="needs 12 bytes of memory, which the system does not give"):
        packed.read_packed(tmp_path / "x")


def read_or_refused(path):
    """The weights, or None; anything but CheckpointError gets out, and so does memory beyond the file's size."""
    limit = 1_000_000 + 10 * path.stat().st_size
    tracemalloc.start()
    try:
        return packed.read_packed(path)
    except CheckpointError as problem:
        if problem.file != str(path) or not str(problem).isprintable():
            raise
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < limit


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzed") / "x"


_byte = st.integers(0, 255) | st.sampled_from(list(b'0123456789"{}[],:-.\\ '))


@given(
    edits=st.lists(st.tuples(st.integers(0, 700) | st.integers(0, 1 << 20), _byte), max_size=4),
    cut=st.none() | st.integers(0, 1 << 20),
)
@example([], 1)
def test_edited_bytes(good, fuzzed, edits, cut):
    blob = bytearray(good)
    for place, byte in edits:
        blob[place % len(blob)] = byte
    cut = None if cut is None else cut % len(blob)
    fuzzed.write_bytes(blob[:cut])
    got = read_or_refused(fuzzed)
    assert cut is None or got is None
    begin = len(good) - sum(packed.Stored.of(weight).nbytes for weight in WEIGHTS.values())
    if blob[:begin] == good[:begin] and cut is None:
        assert got["w"].packed.tobytes() == blob[begin : begin + got["w"].packed.nbytes]
        assert got["n"].tobytes() == blob[-20:]


_scalar = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just(1 << 70)
_json = st.recursive(_scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
_value = _json | st.sampled_from(["u5", "q8", "fp32", "super", 16, 64, 128, [32, 64], [5, 63], [1 << 30, 1 << 30]])


@given(
    name=st.sampled_from(["w", "v", "n", "x"]),
    changes=st.dictionaries(st.sampled_from([*ENTRY, "x"]), _value, min_size=1, max_size=3),
    whole=st.none() | _json,
)
def test_any_lie_in_the_metadata(good, fuzzed, name, changes, whole):
    """Refused, or read as it says, with as many bytes as that needs."""
    header, entries, data = parts(good)
    entries[name] = entries.get(name, ENTRY) | changes if whole is None else whole
    fuzzed.write_bytes(joined(header, data, entries))
    got = read_or_refused(fuzzed)
    for key, weight in (got or {}).items():
        assert isinstance(weight, core.Packed) == (key in entries)
        if key in entries:
            assert packed.Stored.of(weight).nbytes == weight.packed.nbytes
            assert list(weight.shape) == entries[key]["shape"]


@pytest.mark.parametrize("depth", [50, 300, 900, 2000, 20_000])
def test_deep_values(good, fuzzed, depth):
    header, _, data = parts(good)
    for text in ('{"w":%s}', '{"w":{"codes":%s,"group":0,"scales":"","zero":0,"shape":[]}}'):
        fuzzed.write_bytes(joined(header, data, text % ("[" * depth + "]" * depth)))
        assert read_or_refused(fuzzed) is None
