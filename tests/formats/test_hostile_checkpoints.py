"""Every weight file that must be refused: typed, in one line that names the file and the tensor, and cheaply."""

import functools
import json
import os
import shutil
import signal
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref.config import Config
from qwq_ref.errors import CheckpointError
from qwq_ref.formats import Checkpoint, resolve, safetensors
from qwq_ref.formats.safetensors import SafetensorsFile
from tests.support import refusals
from tests.support.models import config_values, random_weights

INDEX = "model.safetensors.index.json"
VALUES = config_values(num_hidden_layers=1, vocab_size=11, hidden_size=6, intermediate_size=9, head_dim=2)
CONFIG = Config.from_dict(VALUES)
WEIGHTS = random_weights(CONFIG, seed=0)
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def pack(header, data=b"", length=None):
    """A file's bytes; `header` is a dict, or the text itself where no dict could say it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def weights_file(weights):
    header, data = {}, b""
    for name, value in weights.items():
        header[name] = entry("F32", list(value.shape), len(data), len(data) + value.nbytes)
        data += value.tobytes()
    return pack(header, data)


def write(folder, shards, weight_map=None, values=VALUES):
    """A checkpoint folder. `shards`: {file: {name: array} or bytes}; a single file needs no index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    for shard, weights in shards.items():
        (folder / shard).write_bytes(weights if isinstance(weights, bytes) else weights_file(weights))
    if weight_map is not None:
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder


def split():
    """({"a": half of the weights, "b": the rest}, weight_map)."""
    names = list(WEIGHTS)
    shards = {"a": {n: WEIGHTS[n] for n in names[::2]}, "b": {n: WEIGHTS[n] for n in names[1::2]}}
    return shards, {name: shard for shard, weights in shards.items() for name in weights}


refused = functools.partial(refusals.refused, CheckpointError, 500)


@pytest.fixture
def cannot_hang():
    """A FIFO that is opened carelessly blocks for ever."""

    def ring(*_):
        raise AssertionError("blocked on a file that is not regular")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# --- one safetensors file ---

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
    "metadata is null": (pack(GOOD | {"__metadata__": None}, DATA), "__metadata__", "strings to strings"),
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


def many(value):
    text = ",".join(f'"{i}":{value}' for i in range((1 << 20) // (len(value) + 10)))
    return b"{" + text.encode() + b"}"


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


@contextmanager
def peak_memory(limit):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


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


# --- the tensors against the config ---


def changed(**changes):
    """WEIGHTS with some names replaced, or removed where None."""
    return {name: value for name, value in (WEIGHTS | changes).items() if value is not None}


def test_the_good_checkpoint_is_read(tmp_path):
    shards, weight_map = split()
    for folder in (write(tmp_path / "1", {"model.safetensors": WEIGHTS}), write(tmp_path / "2", shards, weight_map)):
        with Checkpoint.open(folder) as checkpoint:
            assert list(checkpoint) == list(CONFIG.tensors())
            assert all(np.array_equal(checkpoint[name], WEIGHTS[name]) for name in WEIGHTS)
            checkpoint.check_finite()


LAYER = "model.layers.0."
BIAS = f"{LAYER}self_attn.o_proj.bias"
Q, K, V = (f"{LAYER}self_attn.{name}_proj.bias" for name in "qkv")
zeros = np.zeros
CONTRACT = {
    "missing": (changed(**{NORM: None}), {}, NORM, "missing: 1 of"),
    "four missing": (changed(**{Q: None, K: None, V: None, NORM: None}), {}, f"{Q}, {K}, {V}", "missing: 4 of"),
    "a layer missing": (WEIGHTS, {"num_hidden_layers": 2}, None, "missing: 12 of"),
    "no head": (changed(**{HEAD: None}), {}, HEAD, "is tie_word_embeddings: true missing there?"),
    "a layer too many": (
        WEIGHTS | random_weights(Config.from_dict(VALUES | {"num_hidden_layers": 2}), 1),
        {},
        None,
        "unexpected: 12",
    ),
    "unexpected bias": (changed(**{BIAS: zeros(6, np.float32)}), {}, BIAS, "unexpected: 1"),
    "inv_freq by another name": (changed(inv_freq=zeros(6, np.float32)), {}, "inv_freq", "unexpected: 1"),
    "head of a tied model differs": (WEIGHTS, {"tie_word_embeddings": True}, HEAD, f"differs from {EMBEDDING}"),
    "head of a tied model has another shape": (
        changed(**{HEAD: WEIGHTS[EMBEDDING].reshape(6, 11)}),
        {"tie_word_embeddings": True},
        HEAD,
        f"differs from {EMBEDDING}",
    ),
    "transposed": (
        changed(**{f"{LAYER}mlp.down_proj.weight": zeros((9, 6), np.float32)}),
        {},
        f"{LAYER}mlp.down_proj.weight",
        "shape [9, 6], but config.json implies [6, 9] (1 tensors",
    ),
    "a column for a vector": (changed(**{NORM: zeros((6, 1), np.float32)}), {}, NORM, "shape [6, 1]"),
    "a vocabulary of another size": (WEIGHTS, {"vocab_size": 12}, f"{EMBEDDING}, {HEAD}", "(2 tensors"),
    "all of another width": (WEIGHTS, {"hidden_size": 8}, None, "(12 tensors"),
}


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("case", CONTRACT)
def test_tensors_and_config_disagree(tmp_path, case, sharded):
    weights, changes, field, words = CONTRACT[case]
    if sharded:
        write(tmp_path, {"s": weights}, dict.fromkeys(weights, "s"), VALUES | changes)
        # What the names alone tell, the index tells before any shard is opened.
        file = tmp_path / (INDEX if "missing" in words or "unexpected" in words else "s")
    else:
        file = write(tmp_path, {"model.safetensors": weights}, None, VALUES | changes) / "model.safetensors"
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tmp_path)
    field = field or caught.value.field
    assert field.count(", ") <= 2
    refused(lambda: Checkpoint.open(tmp_path), file, field, words)


def test_tied_head_of_one_other_bit(tmp_path, monkeypatch):
    """In the last of several blocks; equal bytes are accepted, and the embedding is the head."""
    monkeypatch.setattr(safetensors, "_BLOCK_BYTES", 64)
    head = WEIGHTS[EMBEDDING].copy()
    tied = VALUES | {"tie_word_embeddings": True}
    with Checkpoint.open(write(tmp_path, {"model.safetensors": changed(**{HEAD: head})}, None, tied)) as checkpoint:
        assert HEAD not in checkpoint
        assert len(checkpoint) == len(WEIGHTS) - 1
    head.view(np.uint32)[-1, -1] ^= 1
    write(tmp_path, {"model.safetensors": changed(**{HEAD: head})}, None, tied)
    refused(lambda: Checkpoint.open(tmp_path), tmp_path / "model.safetensors", HEAD, "differs from")


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_not_finite(tmp_path, monkeypatch, value, word):
    monkeypatch.setattr(safetensors, "_BLOCK_BYTES", 64)
    weights = {name: array.copy() for name, array in WEIGHTS.items()}
    weights[HEAD][7, 4] = weights[HEAD][9, 0] = value
    shards = {"a": changed(**{HEAD: None}), "b": {HEAD: weights[HEAD]}}
    write(tmp_path, shards, {name: "b" if name == HEAD else "a" for name in WEIGHTS})
    with Checkpoint.open(tmp_path) as checkpoint:
        refused(checkpoint.check_finite, tmp_path / "b", HEAD, f"holds {word} at [7, 4]")


@pytest.mark.parametrize(
    ("dtype", "bits", "word"),
    [
        ("F16", 0x7C01, "NaN"),
        ("F16", 0xFC00, "infinity"),
        ("F16", 0x7BFF, None),
        ("BF16", 0x7F81, "NaN"),
        ("BF16", 0xFF80, "infinity"),
        ("BF16", 0x7F7F, None),
        ("BF16", 0xFFFF, "NaN"),
        ("F32", 0x7F800001, "NaN"),
        ("F32", 0xFF800000, "infinity"),
        ("F32", 0xFF7FFFFF, None),
    ],
)
def test_first_non_finite(dtype, bits, word):
    block = np.array([0, 1, bits, bits], np.uint32 if dtype == "F32" else np.uint16)
    assert safetensors.first_non_finite(block, dtype) == (word and (2, word))


# --- indexes and shards ---

SHARD_NAMES = ["../a", "/etc/passwd", "a/b", "./a", "", ".", "..", "a\0", "a\\b", None, 1, ["a"]]


@pytest.mark.parametrize("name", SHARD_NAMES, ids=repr)
def test_shard_name(tmp_path, name):
    shards, weight_map = split()
    (tmp_path / "a").write_bytes(b"")
    folder = write(tmp_path / "m", shards, weight_map | {NORM: name})
    refused(lambda: Checkpoint.open(folder), folder / INDEX, NORM, "must be mapped to the name of a file")


DISAGREE = {
    "a tensor in two shards": ("both", f"is here, but {INDEX} has it in"),
    "a tensor in the other shard": ("moved", f"is here, but {INDEX} has it in"),
    "a tensor in no shard": ("gone", f"is not here, but {INDEX} says so"),
    "a tensor that the index does not list": ("added", f"is here, but {INDEX} has it in no file"),
}


@pytest.mark.parametrize("direction", ["ab", "ba"])
@pytest.mark.parametrize("case", DISAGREE)
def test_index_and_shards_disagree(tmp_path, case, direction):
    change, words = DISAGREE[case]
    source, target = direction
    shards, weight_map = split()
    name = next(iter(shards[source]))
    if change in ("both", "moved"):
        shards[target][name] = WEIGHTS[name]
    if change in ("gone", "moved"):
        del shards[source][name]
    if change == "added":
        name = "rotary_emb.inv_freq"  # even one that would be ignored
        shards[target][name] = zeros(3, np.float32)
    write(tmp_path, shards, weight_map)
    refused(lambda: Checkpoint.open(tmp_path), tmp_path / (source if change == "gone" else target), name, words)


@pytest.mark.parametrize("index", [{}, {"weight_map": None}, {"weight_map": ["a"]}, {"weight_map": "a"}], ids=repr)
def test_index_without_a_map(tmp_path, index):
    write(tmp_path, {})
    (tmp_path / INDEX).write_text(json.dumps(index))
    refused(lambda: Checkpoint.open(tmp_path), tmp_path / INDEX, "weight_map", "must be an object")


def test_index_that_is_not_sound_json(tmp_path):
    shards, weight_map = split()
    text = json.dumps({"weight_map": weight_map})
    write(tmp_path, shards)
    for data, field, words in (
        (text.replace("}}", f', "{NORM}": "a"}}}}').encode(), NORM, "appears twice"),
        (text[:-1].encode(), None, "is not JSON"),
        (text.encode() + b" " * (1 << 20), None, "bytes long"),
        (b"\xff" + text.encode(), None, "is not UTF-8"),
    ):
        (tmp_path / INDEX).write_bytes(data)
        refused(lambda: Checkpoint.open(tmp_path), tmp_path / INDEX, field, words)


def test_costly_index_is_cheap(tmp_path):
    write(tmp_path, {})
    text = b'{"weight_map":' + many('"s"') + b"}"
    assert 0.8 * (1 << 20) < len(text) <= 1 << 20
    (tmp_path / INDEX).write_bytes(text)
    with peak_memory(50_000_000), pytest.raises(CheckpointError, match="missing"):
        Checkpoint.open(tmp_path)


def put_fifo(path, folder):
    os.mkfifo(path)


def put_folder(path, folder):
    path.mkdir()


def put_loop(path, folder):
    path.symlink_to(path)


def put_two_step_loop(path, folder):
    path.symlink_to(folder / "back")
    (folder / "back").symlink_to(path)


def put_dangling(path, folder):
    path.symlink_to(folder / "nowhere")


def put_device(path, folder):
    path.symlink_to("/dev/zero")


def put_link_to_fifo(path, folder):
    os.mkfifo(folder / "fifo")
    path.symlink_to(folder / "fifo")


ODD_FILES = {
    put_fifo: "is not a regular file",
    put_folder: "is not a regular file",
    put_device: "is not a regular file",
    put_link_to_fifo: "is not a regular file",
    put_loop: "cannot be opened (Too many levels",
    put_two_step_loop: "cannot be opened (Too many levels",
    put_dangling: "cannot be opened (No such file",
}


@pytest.mark.usefixtures("cannot_hang")
@pytest.mark.parametrize("put", ODD_FILES)
@pytest.mark.parametrize("place", ["b", INDEX, "model.safetensors"])
def test_odd_file(tmp_path, put, place):
    shards, weight_map = split()
    folder = write(tmp_path / "m", shards, weight_map)
    (folder / place).unlink(missing_ok=True)
    put(folder / place, tmp_path)
    refused(lambda: Checkpoint.open(folder), folder / place, None, ODD_FILES[put])
    if put is not put_folder:  # which is no file at all
        (folder / place).rename(folder / "x.safetensors")
        refused(lambda: resolve(folder / "x.safetensors"), folder / "x.safetensors", None, "is neither")


def test_folder_without_weights(tmp_path):
    write(tmp_path, {"pytorch_model.bin": b"never unpickled"})
    refused(lambda: Checkpoint.open(tmp_path), tmp_path, None, "holds neither model.safetensors nor")
    refused(lambda: Checkpoint.open(tmp_path / "no"), tmp_path / "no", None, "no such file or folder")


def test_failed_open_closes_its_files(tmp_path):
    shards, weight_map = split()
    write(tmp_path, shards | {"b": b"broken"}, weight_map)
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(CheckpointError):
            Checkpoint.open(tmp_path)
    assert len(set(os.listdir("/proc/self/fd")) - before) == 0


@pytest.mark.parametrize("left", [0, 100, -4])
def test_file_that_shrinks_while_open(tmp_path, left):
    """The last tensor is lost, wholly or by one number; in a map this would be a SIGBUS."""
    path = write(tmp_path, {"model.safetensors": WEIGHTS}) / "model.safetensors"
    with Checkpoint.open(tmp_path) as checkpoint:
        os.truncate(path, left if left >= 0 else path.stat().st_size + left)
        refused(lambda: checkpoint[HEAD], path, None, "shorter than it was when opened")
        refused(checkpoint.check_finite, path, None, "shorter than it was when opened")
        if left < 0:
            assert np.array_equal(checkpoint[NORM], WEIGHTS[NORM])


# --- fuzzing ---

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
    assert (got is not None) == (weight_map.get(name) == shard)
