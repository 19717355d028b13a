"""Safetensors files that must be refused: with a typed error of one line that names file and tensor, and cheaply."""

import functools
import json
import os

import numpy as np
import pytest

from qwq_ref.errors import CheckpointError
from qwq_ref.formats import Checkpoint
from qwq_ref.formats.safetensors import SafetensorsFile
from tests.support import refusals
from tests.support.safetensors_files import NORM, WEIGHTS, entry, many, pack, peak_memory, write

refused = functools.partial(refusals.refused, CheckpointError, 500)

A, B = entry("F32", [2, 3], 0, 24), entry("F16", [2], 24, 28)
DATA = bytes(range(28))
GOOD = {"__metadata__": {"format": "pt"}, "a": A, "b": B}
TEXT = json.dumps(GOOD).encode()
M62 = 1 << 62


def test_the_good_file_is_read(tmp_path):
    """All the cases below are this file, and one change."""
    path = tmp_path / "x"
    path.write_bytes(pack(TEXT + b"   ", DATA))  # writers pad the header for alignment
    file = SafetensorsFile(path)
    assert np.array_equal(file.read("a"), np.frombuffer(DATA[:24], "<f4").reshape(2, 3))
    assert np.array_equal(file.read("b"), np.frombuffer(DATA[24:], "<f2").astype(np.float32))
    file.close()
    path.write_bytes(pack({"none": entry("F32", [0, 7], 0, 0), "b": entry("BF16", [], 0, 2)}, b"\0\0"))
    file = SafetensorsFile(path)
    assert (file.read("none").shape, file.read("b").shape) == ((0, 7), ())
    file.close()


FILES = {
    "empty": (b"", "header", "is missing"),
    "7 bytes": (b"\1" + b"\0" * 6, "header", "is missing"),
    "header past EOF": (pack(TEXT, DATA, length=len(TEXT) + 29), "header", "the file ends after"),
    "header over the cap": (pack(b"{" + b" " * (1 << 20) + b"}"), "header", "at most 1,048,576"),
    "header of 2^64 - 1 bytes": (pack(TEXT, DATA, length=2**64 - 1), "header", "at most 1,048,576"),
    "header of no bytes": (pack(b"", DATA), "header", "does not start with {"),
    "header is a list": (pack(b"[" + TEXT + b"]", DATA), "header", "does not start with {"),
    "header starts with a space": (pack(b" " + TEXT, DATA), "header", "does not start with {"),
    "header starts with a BOM": (pack(b"\xef\xbb\xbf" + TEXT, DATA), "header", "does not start with {"),
    "header is not JSON": (pack(TEXT[:-1] + b",}", DATA), "header", "is not JSON"),
    "two objects": (pack(TEXT + b"{}", DATA), "header", "is not JSON"),
    "bad UTF-8": (pack(TEXT.replace(b"pt", b"p\xff"), DATA), "header", "is not UTF-8"),
    "deep nesting": (pack(b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}"), "header", "nested too deeply"),
    "NaN in the header": (pack(TEXT.replace(b'"pt"', b"NaN"), DATA), "header", "holds NaN"),
    "duplicate tensor": (pack(TEXT[:-1] + b', "a": ' + json.dumps(A).encode() + b"}", DATA), "a", "appears twice"),
    "duplicate field": (
        pack(TEXT.replace(b'"dtype": "F16"', b'"dtype": "F16", "dtype": "F16"'), DATA),
        "dtype",
        "twice",
    ),
    "duplicate metadata": (pack(TEXT.replace(b'"pt"', b'"pt", "format": "pt"'), DATA), "format", "appears twice"),
    "metadata is a list": (pack(GOOD | {"__metadata__": []}, DATA), "__metadata__", "strings to strings"),
    "metadata of an integer": (pack(GOOD | {"__metadata__": {"n": 1}}, DATA), "__metadata__", "strings to strings"),
    "trailing byte": (pack(GOOD, DATA + b"\0"), "header", "last 1 bytes"),
    "data but no tensors": (pack({}, DATA), "header", "last 28 bytes"),
    "data cut short": (pack(GOOD, DATA[:-1]), "b", "ends 1 bytes past the end"),
    "no data": (pack(GOOD), "a", "ends 24 bytes past the end"),
}
ENTRIES = {
    "not an object": ([], "must be an object"),
    "null": (None, "must be an object"),
    "unknown field": (B | {"strides": [1]}, "unknown field strides"),
    "no dtype": ({key: B[key] for key in ("shape", "data_offsets")}, "dtype is missing"),
    "no shape": ({key: B[key] for key in ("dtype", "data_offsets")}, "shape is missing"),
    "no offsets": ({key: B[key] for key in ("dtype", "shape")}, "data_offsets is missing"),
    "unknown dtype": (B | {"dtype": "F17"}, "dtype must be one of F32, F16, BF16, got F17"),
    "dtype of another case": (B | {"dtype": "f16"}, "dtype must be one of"),
    "integer dtype": (B | {"dtype": "I32"}, "dtype must be one of"),
    "dtype is a list": (B | {"dtype": ["F16"]}, "dtype must be one of"),
    "dtype is null": (B | {"dtype": None}, "dtype must be one of"),
    "dtype of another size": (B | {"dtype": "F32"}, "spans 4 bytes; F32 [2] takes 8"),
    "shape is an integer": (B | {"shape": 2}, "shape must list"),
    "negative dimension": (B | {"shape": [-2]}, "shape must list"),
    "two negative dimensions": (B | {"shape": [-1, -2]}, "shape must list"),
    "boolean dimension": (B | {"shape": [True, 2]}, "shape must list"),
    "float dimension": (B | {"shape": [2.0]}, "shape must list"),
    "dimension is a string": (B | {"shape": ["2"]}, "shape must list"),
    "huge dimension": (B | {"shape": [0, 1 << 41]}, "shape must list"),
    "size wraps to 2": (B | {"shape": [2, 119_537_721, 77_158_673_929]}, "spans 4 bytes"),  # 2 (2^63 + 1)
    "bytes wrap to 4": (B | {"shape": [2, 242_243_305, 19_037_413_721]}, "spans 4 bytes"),  # 4 (2^62 + 1)
    "too many dimensions": (B | {"shape": [1] * 8 + [2]}, "shape must list at most 8"),
    "wrong shape": (B | {"shape": [3]}, "spans 4 bytes; F16 [3] takes 6"),
    "empty shape": (B | {"shape": []}, "spans 4 bytes; F16 [] takes 2"),
    "one offset": (B | {"data_offsets": [24]}, "must be two integers"),
    "three offsets": (B | {"data_offsets": [24, 28, 28]}, "must be two integers"),
    "offsets are an object": (B | {"data_offsets": {"0": 24}}, "must be two integers"),
    "end before begin": (B | {"data_offsets": [28, 24]}, "must be two integers, 0 <= begin <= end"),
    "negative begin": (B | {"data_offsets": [-4, 0]}, "must be two integers"),
    "boolean begin": (entry("F16", [0], True, 1), "must be two integers"),
    "float offsets": (B | {"data_offsets": [24.0, 28.0]}, "must be two integers"),
    "offsets of 5,000 bits": (B | {"data_offsets": [1 << 5000, (1 << 5000) + 4]}, "must be two integers"),
    "overlap": (B | {"data_offsets": [20, 24]}, "overlaps the tensor before it"),
    "the same bytes": (entry("F32", [2, 3], 0, 24), "overlaps the tensor before it"),
    "inside another": (entry("F16", [2], 4, 8), "overlaps the tensor before it"),
    "hole": (B | {"data_offsets": [26, 30]}, "leaves a hole before it"),
    "far past the end": (B | {"data_offsets": [M62, M62 + 4]}, "leaves a hole before it"),
    "longer than the file": (entry("F16", [1 << 40], 24, 24 + (2 << 40)), "past the end of the file"),
}
FILES |= {f"b: {case}": (pack(GOOD | {"b": value}, DATA), "b", words) for case, (value, words) in ENTRIES.items()}


@pytest.mark.parametrize("case", FILES)
def test_safetensors_file(tmp_path, case):
    data, field, words = FILES[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    refused(lambda: SafetensorsFile(path), path, field, words)


def test_hostile_names_stay_on_one_line(tmp_path):
    path = tmp_path / "x"
    for name in ("\n\x1b[2J", "\ud800", "\0", "n" * 10**5):
        path.write_bytes(pack({name: 1}))
        with pytest.raises(CheckpointError, match="must be an object") as caught:
            SafetensorsFile(path)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 1500


def full(item, count=1 << 20):
    """`{"a":[item,item,...]}`, as long as a header may be."""
    return b'{"a":[' + b",".join([item] * ((count - 8) // (len(item) + 1))) + b"]}"


COSTLY = {
    "objects": full(b'{"":0}'),
    "empty objects": full(b"{}"),
    "lists": full(b"[]"),
    "floats": full(b"9.9"),
    "long floats": full(b"1." + b"7" * 790 + b"e-300"),
    "long integers": full(b"9" * 4300),
    "strings": full(b'"\\u00e9"'),
    "wide text": b'{"a":"' + "😀".encode() + b"x" * ((1 << 20) - 12) + b'"}',
    "small entries": many("{}"),
    "empty tensors": many(json.dumps(entry("F32", [0], 0, 0))) + b" ",
    "a million dimensions": b'{"a":{"dtype":"F32","data_offsets":[0,4],"shape":'
    + full(b"9", (1 << 20) - 60)[5:]
    + b"}",
    "deep": b'{"a":' + b"[" * ((1 << 20) - 5),
}


@pytest.mark.parametrize("case", COSTLY)
def test_costly_header_is_cheap(tmp_path, case):
    """The dearest headers that fit under the cap, refused (or found harmless) within 50 MB."""
    text = COSTLY[case]
    assert 0.8 * (1 << 20) < len(text) <= 1 << 20
    path = write(tmp_path, {"model.safetensors": pack(text)}) / "model.safetensors"
    del text
    with peak_memory(50_000_000), pytest.raises(CheckpointError):
        Checkpoint.open(path)


@pytest.mark.parametrize("shown", [100 << 20, 1 << 40])
def test_header_length_is_not_believed(tmp_path, shown):
    """A sparse file really is that long; none of it may be read."""
    path = tmp_path / "x"
    path.write_bytes(pack(b"{", length=shown))
    os.truncate(path, shown + 8)
    with peak_memory(1_000_000):
        refused(lambda: SafetensorsFile(path), path, "header", "at most")


def test_large_claims_allocate_nothing(tmp_path):
    """64 GiB that are not in the file; then 64 GiB that are, in a sparse file, but not in the model."""
    path = write(tmp_path, {"model.safetensors": b""}) / "model.safetensors"
    header = {name: entry("F32", [0], 0, 0) for name in WEIGHTS} | {NORM: entry("F32", [1 << 34], 0, 1 << 36)}
    path.write_bytes(pack(header))
    with peak_memory(1_000_000):
        refused(lambda: Checkpoint.open(path), path, NORM, "ends 68,719,476,736 bytes past the end")
    os.truncate(path, path.stat().st_size + (1 << 36))
    with peak_memory(1_000_000), pytest.raises(CheckpointError, match="15 tensors of a wrong shape"):
        Checkpoint.open(path)
