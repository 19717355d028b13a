"""Checkpoints that must be refused: config, index and shards that disagree, and files that are no regular files."""

import functools
import json
import os
import signal

import numpy as np
import pytest

from qwq_ref.config import Config
from qwq_ref.errors import CheckpointError
from qwq_ref.formats import Checkpoint, resolve, safetensors
from tests.support import refusals
from tests.support.models import random_weights
from tests.support.processes import open_below
from tests.support.safetensors_files import (
    CONFIG,
    EMBEDDING,
    HEAD,
    INDEX,
    NORM,
    VALUES,
    WEIGHTS,
    many,
    peak_memory,
    split,
    write,
)

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

SHARD_NAMES = ["../a", "/etc/passwd", "a/../b", "a//b", "a/", "", ".", "..", "a\0", "a\\b", None, 1, ["a"]]


@pytest.mark.parametrize("name", SHARD_NAMES, ids=repr)
def test_shard_name(tmp_path, name):
    shards, weight_map = split()
    (tmp_path / "a").write_bytes(b"")
    folder = write(tmp_path / "m", shards, weight_map | {NORM: name})
    refused(lambda: Checkpoint.open(folder), folder / INDEX, NORM, "must be mapped to the name of a file")


DISAGREE = {
    "a tensor in two shards, of one other bit": ("both", "differs from the tensor of this name in "),
    "a tensor in no shard": ("gone", f"is not here, but {INDEX} says so"),
    "a tensor that neither index nor config has": ("added", f"unexpected: config.json and {INDEX} do not imply it"),
}


@pytest.mark.parametrize("direction", ["ab", "ba"])
@pytest.mark.parametrize("case", DISAGREE)
def test_index_and_shards_disagree(tmp_path, case, direction):
    change, words = DISAGREE[case]
    source, target = direction
    shards, weight_map = split()
    name = next(iter(shards[source]))
    if change == "both":
        shards[target][name] = WEIGHTS[name].copy()
        shards[target][name].view(np.uint32).reshape(-1)[-1] ^= 1
    if change == "gone":
        del shards[source][name]
    if change == "added":
        name = "score.weight"
        shards[target][name] = zeros(3, np.float32)
    write(tmp_path, shards, weight_map)
    file = {"both": "b", "gone": source, "added": target}[change]
    refused(lambda: Checkpoint.open(tmp_path), tmp_path / file, name, words)


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
    for _ in range(3):
        with pytest.raises(CheckpointError):
            Checkpoint.open(tmp_path)
    assert not open_below(tmp_path)


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
