"""Headers of GGUF files: sound ones are read as the `gguf` package reads them, and others refused cheaply."""

import functools
import gc
import os
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from qwq_ref.errors import CheckpointError
from qwq_ref.formats.gguf import header, read_header
from tests.support import refusals
from tests.support.gguf_files import (
    ARRAY,
    BOOL,
    F32,
    I32,
    M64,
    STRING,
    U32,
    array_field,
    field,
    number,
    tensor,
    text,
    whole,
)


@contextmanager
def peak_memory(limit):
    """Bound the memory that the system gives meanwhile. `tracemalloc` makes the loop over strings 100 times slower."""

    def status(name):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    yield
    assert status("VmHWM") - before < limit


refused = functools.partial(refusals.refused, CheckpointError, 500)

NAME = field("general.name", STRING, "a model")
TOKENS = array_field("tokens", STRING, ["Ġ", "", "ab", "日本"])
NUMBERS = array_field("numbers", I32, [1, -2, 3])
FIELDS = [NAME, TOKENS, NUMBERS]
A, B = tensor("a", [3, 2], 0, 0), tensor("b", [32], 8, 32)  # F32 [2, 3] takes 24 bytes and padding, Q8_0 [32] 34
DATA = bytes(range(66))


def test_the_good_file_is_read(tmp_path):
    """All the cases below are this file, and one change."""
    path = tmp_path / "x.gguf"
    for version in (2, 3):
        for rest in (b"", b"\0" * 30):  # some writers fill the last tensor up, too
            path.write_bytes(whole(FIELDS, [A, B], DATA + rest, version=version))
            read = read_header(path)
            assert (read.path, read.version, read.alignment) == (path, version, 32)
            assert read.fields["general.name"] == "a model"
            assert dict(read.types) == {"general.name": "string", "tokens": "array", "numbers": "array"}
            tokens, numbers = read.fields["tokens"], read.fields["numbers"]
            assert (tokens.type, len(tokens), tokens.strings()) == ("string", 4, ["Ġ", "", "ab", "日本"])
            assert (tokens.tolist(), [*tokens], tokens[0], tokens[-1]) == (
                tokens.strings(),
                tokens.tolist(),
                "Ġ",
                "日本",
            )
            assert (numbers.type, len(numbers), numbers.tolist(), [*numbers]) == ("int32", 3, [1, -2, 3], [1, -2, 3])
            assert (numbers[1], numbers[-1]) == (-2, 3)
            assert np.array_equal(numbers.array(), [1, -2, 3])
            for values in (tokens, numbers):
                with pytest.raises(IndexError):
                    values[4]
            begin = len(path.read_bytes()) - len(DATA + rest)
            assert [(n, t.type.name, t.shape, t.begin - begin, t.nbytes) for n, t in read.tensors.items()] == [
                ("a", "F32", (2, 3), 0, 24),
                ("b", "Q8_0", (32,), 32, 34),
            ]
            refused(numbers.strings, path, "numbers", "must be an array of strings, got int32")
            refused(tokens.array, path, "tokens", "must be an array of numbers, got string")


def test_every_type_of_value_is_read_as_the_package_reads_it(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "qwen2")
    values = {"uint8": 255, "int8": -128, "uint16": 65535, "int16": -32768, "uint32": 1 << 31, "int32": -5}
    values |= {"uint64": M64, "int64": -(1 << 63), "float32": 0.1, "float64": 0.1, "bool": True, "string": "ü\0\n"}
    for name, value in values.items():
        getattr(writer, f"add_{name}")(name, value)
    arrays = {"strings": ["a", "日本語", ""], "floats": [0.5, -1.0], "bools": [True, False, True], "integers": [1, 2]}
    for name, value in arrays.items():
        writer.add_array(name, value)
    writer.add_tensor("t", np.zeros((5, 3, 2), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours, theirs = read_header(tmp_path / "x.gguf"), gguf.GGUFReader(tmp_path / "x.gguf")
    for name, kind in theirs.fields.items():
        if not name.startswith("GGUF."):
            value = ours.fields[name]
            assert (value.tolist() if hasattr(value, "tolist") else value) == kind.contents(), name
    for name in values:
        assert ours.types[name] == name
    assert ours.fields["float32"] == np.float32(0.1)
    assert [ours.fields[name].type for name in arrays] == ["string", "float32", "bool", "int32"]
    (found,) = theirs.tensors
    assert ours.tensors["t"] == header.GGUFTensor(header.TYPES[1], (5, 3, 2), found.data_offset, found.data_offset + 60)


def fields_with(*others, **options):
    return whole([*FIELDS, *others], [A, B], DATA, **options)


def second(entry, data=DATA):
    return whole(FIELDS, [A, entry], data)


BIG = number(3 << 24, U32)  # 3, in the other order of bytes
FILES = {
    "empty": (b"", None, "is not a GGUF file"),
    "3 bytes": (b"GGU", None, "is not a GGUF file"),
    "another magic": (whole(magic=b"GGML"), None, "is not a GGUF file"),
    "safetensors": (number(64) + b'{"a":' + b" " * 70, None, "is not a GGUF file, but a safetensors file"),
    "a pointer of git-lfs": (
        b"version https://git-lfs.github.com/spec/v1\n",
        None,
        "is not a GGUF file, but a git-lfs pointer",
    ),
    "no version": (b"GGUF", "version", "ends 4 bytes past the end of the file"),
    "version 0": (whole(version=0), "version", "must be 2 or 3, got 0"),
    "version 1": (whole(version=1), "version", "is 1, a format of 2023"),
    "version 4": (whole(version=4), "version", "must be 2 or 3, got 4"),
    "big-endian": (b"GGUF" + BIG + bytes(16), "version", "is big-endian (version 3)"),
    "no counts": (b"GGUF" + number(3, U32) + bytes(15), "field count", "past the end of the file"),
    "2^64 - 1 fields": (fields_with(counts=(2, M64)), "field count", "is 18,446,744,073,709,551,615, more than the"),
    "more fields than bytes": (fields_with(counts=(2, 50)), "field count", "bytes behind it can hold"),
    "one field more": (fields_with(counts=(2, 4)), "", ""),
    "10,000 fields": (whole([bytes(20)] * 10_000), "field count", "is 10,000; at most 4,096 are read"),
    "2^63 tensors": (fields_with(counts=(1 << 63, 3)), "tensor count", "is 9,223,372,036,854,775,808, more than"),
    "10,000 tensors": (whole([], [bytes(40)] * 10_000), "tensor count", "is 10,000; at most 8,192 are read"),
    "empty key": (fields_with(field("", U32, 1)), "field 3", "has an empty key"),
    "key of 2^64 - 1 bytes": (fields_with(text(b"k", M64)), "field 3", "has a key of 18,446,744,073,709,551,615 bytes"),
    "key past the end": (fields_with(text(b"k", 60_000)), "field 3", "past the end of the file"),
    "key not UTF-8": (fields_with(field(b"\xff", U32, 1)), "field 3", "has a key that is not UTF-8 (byte 0)"),
    "key twice": (fields_with(NAME), "general.name", "appears twice"),
    "key twice, of two types": (fields_with(field("numbers", U32, 1)), "numbers", "appears twice"),
    "unknown type": (fields_with(text("k") + number(13, U32) + bytes(8)), "k", "has the unknown type 13"),
    "type 2^32 - 1": (fields_with(text("k") + b"\xff" * 4), "k", "has the unknown type 4294967295"),
    "bool of 2": (fields_with(field("k", BOOL, 2)), "k", "must be 0 or 1, being a bool, got 2"),
    "bools of 255": (fields_with(array_field("k", BOOL, [1, 0, 255])), "k", "must hold only 0 and 1, being bools"),
    "value not UTF-8": (fields_with(field("k", STRING, b"a\xc3")), "k", "has a value that is not UTF-8 (byte 1)"),
    "value past the end": (
        fields_with(text("k") + number(STRING, U32) + number(1 << 40)),
        "k",
        "past the end of the file",
    ),
    "value of 2^64 - 1 bytes": (fields_with(text("k") + number(STRING, U32) + number(M64)), "k", "past the end of"),
    "arrays in an array": (fields_with(array_field("k", ARRAY, b"", 1)), "k", "holds arrays in an array"),
    "elements of an unknown type": (fields_with(array_field("k", 99, b"", 1)), "k", "elements of the unknown type 99"),
    "2^61 numbers": (fields_with(array_field("k", U32, b"", 1 << 61)), "k", "is 2,305,843,009,213,693,952, more than"),
    "numbers that wrap to 0 bytes": (fields_with(array_field("k", U32, b"", 1 << 62)), "k", "bytes behind it can hold"),
    "2^64 - 1 strings": (fields_with(array_field("k", STRING, b"", M64)), "k", "bytes behind it can hold"),
    "string past the end": (
        fields_with(array_field("k", STRING, text("a") + number(1 << 40) + b"b", 2)),
        "k",
        "element 1 has 1,099,511,627,776 bytes, and ends past the end of the file",
    ),
    "string of 2^64 - 1 bytes": (
        fields_with(array_field("k", STRING, text("a") + number(M64) + b"b", 2)),
        "k",
        "element 1 has 18,446,744,073,709,551,615 bytes",
    ),
    "length of a string past the end": (
        whole([array_field("k", STRING, text("a" * 7) + b"\0", 2)]),
        "k",
        "ends 7 bytes past the end of the file",
    ),
    "string not UTF-8": (fields_with(array_field("k", STRING, ["a", b"\xff", "b"])), "k", "element 1 is not UTF-8"),
    "character cut by the end of a string": (
        fields_with(array_field("k", STRING, ["a", b"\xe6\x97", b"\xa5"])),
        "k",
        "element 1 is not UTF-8",
    ),
    "alignment 0": (fields_with(field("general.alignment", U32, 0)), "general.alignment", "a power of two"),
    "alignment 48": (fields_with(field("general.alignment", U32, 48)), "general.alignment", "a power of two"),
    "alignment 2^31": (fields_with(field("general.alignment", U32, 1 << 31)), "general.alignment", "up to 1,048,576"),
    "alignment of a string": (fields_with(field("general.alignment", STRING, "32")), "general.alignment", "(string)"),
    "alignment of a float": (fields_with(field("general.alignment", F32, 32.0)), "general.alignment", "(float32)"),
    "alignment of an array": (
        fields_with(array_field("general.alignment", U32, [32])),
        "general.alignment",
        "got 'an array' (array)",
    ),
    "trailing byte": (whole(FIELDS, [A, B], DATA + bytes(31)), None, "has 1 bytes behind its last tensor"),
    "data but no tensors": (whole(FIELDS, [], DATA), None, "behind its last tensor that the header does not account"),
    "data cut short": (
        whole(FIELDS, [A, B], DATA[:-1]),
        "b",
        "ends 1 bytes past the end of the file, which is cut off",
    ),
    "no data": (
        whole(FIELDS, [A, B]),
        "a",
        f"ends 24 bytes past the end of the file, which is cut off and lacks {len(DATA)} bytes in all: download it",
    ),
}
del FILES["one field more"]
ENTRIES = {
    "empty name": (tensor("", [32], 8, 32), "tensor 1", "has an empty name"),
    "name of 65 bytes": (tensor("b" * 65, [32], 8, 32), "tensor 1", "has a name of 65 bytes; at most 64"),
    "name not UTF-8": (tensor(b"b\xff", [32], 8, 32), "tensor 1", "has a name that is not UTF-8"),
    "name twice": (tensor("a", [32], 8, 32), "a", "appears twice"),
    "no dimensions": (tensor("b", [], 0, 32), "b", "must have 1 to 4 dimensions, got 0"),
    "5 dimensions": (tensor("b", [32, 1, 1, 1, 1], 8, 32), "b", "must have 1 to 4 dimensions, got 5"),
    "2^32 - 1 dimensions": (text("b") + b"\xff" * 40, "b", "must have 1 to 4 dimensions, got 4,294,967,295"),
    "dimension 0": (tensor("b", [32, 0], 8, 32), "b", "dimensions must be 1 to"),
    "dimension 2^63": (tensor("b", [32, 1 << 63], 8, 32), "b", "dimensions must be 1 to"),
    "size wraps to 32": (tensor("b", [1 << 32, 1 << 32, 1 << 32], 8, 32), "b", "past the end of the file"),
    "unknown type": (tensor("b", [32], 42, 32), "b", "has the unknown type 42"),
    "removed type": (tensor("b", [32], 31, 32), "b", "has the type Q4_0_4_4, which llama.cpp has removed"),
    "columns that are no block": (tensor("b", [33], 8, 32), "b", "has rows of 33 columns, no multiple of Q8_0's 32"),
    "columns of a super-block": (tensor("b", [32], 12, 32), "b", "no multiple of Q4_K's 256"),
    "rows that are blocks, columns that are none": (tensor("b", [1, 32], 8, 32), "b", "has rows of 1 columns"),
    "offset not aligned": (tensor("b", [32], 8, 24), "b", "offset: 24 is no multiple of the alignment 32"),
    "offset 2^64 - 32": (tensor("b", [32], 8, M64 - 31), "b", "offset: leaves a hole before it"),
    "overlap": (tensor("b", [32], 8, 0), "b", "offset: overlaps what stands before it"),
    "hole": (tensor("b", [32], 8, 64), "b", "offset: leaves a hole before it"),
    "longer than the file": (tensor("b", [32, 1 << 30], 8, 32), "b", "past the end of the file, which is cut off"),
}
FILES |= {f"b: {case}": (second(entry), where, words) for case, (entry, where, words) in ENTRIES.items()}


@pytest.mark.parametrize("case", FILES)
def test_a_bad_header(tmp_path, case):
    data, where, words = FILES[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    refused(lambda: read_header(path), path, where, words)


def test_every_shorter_file_is_refused(tmp_path):
    data, path = whole(FIELDS, [A, B], DATA), tmp_path / "x.gguf"
    for end in range(len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(CheckpointError):
            read_header(path)


def test_the_order_of_tensors_is_free(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(whole(FIELDS, [B, A], DATA))
    assert list(read_header(path).tensors) == ["b", "a"]


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096])
def test_another_alignment(tmp_path, alignment):
    path, end = tmp_path / "x.gguf", -(-24 // alignment) * alignment
    fields = [field("general.alignment", U32, alignment)]
    entries = [tensor("a", [3, 2], 0, 0), tensor("b", [32], 8, end)]
    path.write_bytes(whole(fields, entries, bytes(end + 34), alignment=alignment))
    tensors = read_header(path).tensors
    assert [t.begin % alignment for t in tensors.values()] == [0, 0]
    assert tensors["b"].end == path.stat().st_size


def test_the_header_of_a_cut_file(tmp_path):
    """Tokens and template are whole where the weights are cut off."""
    path = tmp_path / "x.gguf"
    path.write_bytes(whole(FIELDS, [A, B], DATA[:10]))
    assert read_header(path, whole=False).fields["tokens"].strings()[2] == "ab"
    with pytest.raises(CheckpointError, match="cut off"):
        read_header(path)
    path.write_bytes(whole(FIELDS, [A, tensor("b", [32], 8, 64)], DATA))
    with pytest.raises(CheckpointError, match="hole"):
        read_header(path, whole=False)


def test_other_kinds_of_files(tmp_path):
    refused(lambda: read_header(tmp_path), str(tmp_path), None, "is not a regular file")
    os.mkfifo(tmp_path / "f")
    refused(lambda: read_header(tmp_path / "f"), tmp_path / "f", None, "is not a regular file")
    refused(lambda: read_header(tmp_path / "none"), tmp_path / "none", None, "cannot be opened")


def test_a_file_that_shrinks(tmp_path, monkeypatch):
    path = tmp_path / "x.gguf"
    path.write_bytes(whole(FIELDS, [A, B], DATA))
    fstat = os.fstat

    def longer(descriptor):
        found = fstat(descriptor)
        return os.stat_result((*found[:6], 5000, *found[7:10])) if found.st_size else found

    monkeypatch.setattr(os, "fstat", longer)
    with pytest.raises(CheckpointError, match="is shorter than it was when opened"):
        read_header(path)


MANY = {
    "fields": lambda: whole([field(f"{i:x}", 0, 1) for i in range(4096)]),
    "arrays": lambda: whole([array_field(f"{i:x}", 0, [1]) for i in range(4096)]),
    "tensors": lambda: whole([], [tensor(f"{i:x}", [1], 0, 32 * i) for i in range(8192)], bytes(32 * 8192)),
    "empty strings": lambda: whole([array_field("k", STRING, bytes(8 << 20), 1 << 20)]),
    "long strings": lambda: whole([array_field("k", STRING, [b"a" * (1 << 20)] * 20)]),
    "wide strings": lambda: whole([array_field("k", STRING, ["\U0001f600" * (1 << 18)] * 20)]),
    "a wide value": lambda: whole([field("k", STRING, "\U0001f600" * ((1 << 19) - 1))]),
    "numbers": lambda: whole([array_field("k", 0, bytes(20 << 20), 20 << 20)]),
    "bools": lambda: whole([array_field("k", BOOL, bytes(20 << 20), 20 << 20)]),
}


@pytest.mark.parametrize("case", MANY)
def test_the_largest_headers_are_cheap(tmp_path, case):
    path = tmp_path / "x.gguf"
    path.write_bytes(MANY[case]())
    with peak_memory(50e6):
        read_header(path)
    begin = time.process_time()
    read_header(path)
    assert time.process_time() - begin < 1


TOO_MANY = {
    "strings": (lambda: [array_field("k", STRING, bytes(8 << 20) + bytes(8), (1 << 20) + 1)], "k", "at most 1,048,576"),
    "strings of two arrays": (
        lambda: [array_field(key, STRING, bytes(5 << 20), 5 << 17) for key in "kl"],
        "l",
        "is 655,360; at most 393,216 are read",
    ),
    "text": (
        lambda: [field(f"k{i}", STRING, "a" * (1 << 20)) for i in range(3)],
        "k1",
        "makes the strings of the header",
    ),
    "bytes": (lambda: [array_field("k", 0, bytes(24 << 20), 24 << 20)], "k", "longer than the 25,165,824 bytes"),
    "bytes of a string": (lambda: [array_field("k", STRING, [bytes(1 << 20)] * 24)], "k", "longer than the 25,165,824"),
    "bytes of one string": (
        lambda: [array_field("k", STRING, [bytes((1 << 20) + 1)])],
        "k",
        "element 0 has 1,048,577 bytes; at most 1,048,576 are read",
    ),
}


@pytest.mark.parametrize("case", TOO_MANY)
def test_a_header_that_is_too_large(tmp_path, case):
    fields, where, words = TOO_MANY[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(whole(fields()))
    with peak_memory(50e6):
        refused(lambda: read_header(path), path, where, words)


def test_lying_counts_cost_nothing(tmp_path):
    path = tmp_path / "x.gguf"
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # the file has the bytes that the counts speak of, and all are zeros
        file.write(whole([array_field("k", STRING, b"", 1 << 20)]))
    with peak_memory(50e6), pytest.raises(CheckpointError):
        read_header(path)
    with open(path, "r+b") as file:
        file.write(whole([array_field("k", I32, b"", 1 << 37)]))
    with peak_memory(1e6):
        refused(lambda: read_header(path), path, "k", "at most")


def test_a_vocabulary_is_read_fast(tmp_path):
    path = tmp_path / "x.gguf"
    tokens = [f"Ġtoken{i}" for i in range(150_000)]
    path.write_bytes(whole([array_field("k", STRING, tokens)]))
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        found = read_header(path).fields["k"]
        seconds.append(time.process_time() - begin)
    assert min(seconds) < 0.3
    assert found.strings() == tokens
