"""Sources: one set of attributes and methods for every format, and the choice between formats."""

import os

import numpy as np
import pytest

from qwq_ref import core, files
from qwq_ref.errors import CheckpointError, UsageError
from qwq_ref.files import open_regular, pread_exactly
from qwq_ref.formats import Checkpoint, GenerationConfig, Source, Tensors, open_source
from qwq_ref.formats import packed as packed_file
from qwq_ref.formats.names import packed_form, packed_name
from qwq_ref.formats.packed_folder import PackedFolder
from tests.support.safetensors_files import CONFIG, EMBEDDING, NORM, VALUES, WEIGHTS, write

PLAN = {"n": packed_file.Stored((3,))}


def public(protocol):
    names = {name for base in protocol.__mro__ for name in (*vars(base), *getattr(base, "__annotations__", ()))}
    return {name for name in names if not name.startswith("_")}


@pytest.fixture
def folders(tmp_path):
    """-> (a checkpoint, a folder of packed weights in two forms)"""
    checkpoint = write(tmp_path / "checkpoint", {"model.safetensors": WEIGHTS})
    packed = write(tmp_path / "packed", {})
    for form in ("q8", "q4"):
        packed_file.write_packed(packed / packed_name(form), {"n": np.arange(3, dtype=np.float32)})
    return checkpoint, packed


def test_each_source_has_what_the_protocol_says(folders):
    assert {"config", "tokenizer", "floats", "forms", "open_packed", "generation_config"} <= public(Source)
    for folder, kind in zip(folders, (Checkpoint, PackedFolder), strict=True):
        with open_source(folder) as source:
            assert type(source) is kind
            assert all(hasattr(source, name) for name in public(Source))
            assert (source.config, source.path, source.tokenizer, source.template) == (CONFIG, folder, folder, folder)
            assert source.generation_config() == GenerationConfig((0,))


def test_a_checkpoint_gives_floats(folders):
    with open_source(folders[0]) as source:
        assert isinstance(source.floats, Tensors)
        assert (source.forms, source.dtypes) == ((), {"F32": sum(w.nbytes for w in WEIGHTS.values())})
        for name, value in WEIGHTS.items():
            assert (source.floats.shape(name), source.floats.dtype(name)) == (value.shape, np.float32)
            assert np.array_equal(source.floats[name], value)
            assert np.array_equal(source.floats.rows(name, 1, 3), value[1:3])
            parts = [np.empty((n, *value.shape[1:]), np.float32) for n in (1, 0, len(value) - 2)]
            source.floats.read_into(name, 1, parts)
            assert np.array_equal(np.concatenate(parts), value[1:])
        with pytest.raises(UsageError, match="q4 are not here packed"):
            source.open_packed("q4", {})


def test_what_does_not_fit_a_tensor_is_not_read(folders):
    with open_source(folders[0]) as source:
        for out in ([np.empty((12, 6), np.float32)], [np.empty((2, 5), np.float32)], [np.empty((2, 6), np.float16)]):
            with pytest.raises(AssertionError):
                source.floats.read_into(EMBEDDING, 0, out)
        with pytest.raises(AssertionError):
            source.floats.read_into(NORM, 4, [np.empty(3, np.float32)])


@pytest.mark.skipif(not core.available(), reason="the C core is not built: there was no compiler")
def test_a_folder_of_packed_weights_gives_no_floats(folders):
    with open_source(folders[1]) as source:
        assert source.floats is None
        assert (set(source.forms), source.dtypes) == ({"q8", "q4"}, {})
        with source.open_packed("q4", PLAN) as file:
            assert np.array_equal(file.read()["n"], np.arange(3))
        with pytest.raises(CheckpointError, match=r"n: must be .* by config\.json"):
            source.open_packed("q4", {"n": packed_file.Stored((4,))})
    with open_source(folders[1] / packed_name("q8")) as source:
        assert source.forms == ("q8",)
        assert source.tokenizer == folders[1]


def test_packed_weights_beside_a_checkpoint_are_ignored(folders):
    (folders[1] / packed_name("q4")).rename(folders[0] / packed_name("q4"))
    with open_source(folders[0]) as source:
        assert source.forms == ()


@pytest.mark.parametrize(
    ("name", "form"),
    [("packed-q4.safetensors", "q4"), ("packed-.safetensors", None), ("packed-q4.safetensors.tmp", None)],
)
def test_names_of_packed_files(name, form):
    assert packed_form(name) == form


@pytest.mark.parametrize("at_once", [1, 7, 1 << 20])
@pytest.mark.parametrize("buffers_at_once", [1, 3, 1024])
def test_pread_fills_all_buffers(tmp_path, monkeypatch, at_once, buffers_at_once):
    """The system may return fewer bytes than asked for, and takes a limited number of buffers."""
    preadv = os.preadv

    def short(descriptor, buffers, offset):
        assert len(buffers) <= buffers_at_once
        return (
            preadv(descriptor, [buffers[0][:at_once]], offset)
            if at_once < 1000
            else preadv(descriptor, buffers, offset)
        )

    monkeypatch.setattr(os, "preadv", short)
    monkeypatch.setattr(files, "_MOST_BUFFERS", buffers_at_once)
    data = bytes(range(200))
    (tmp_path / "x").write_bytes(data)
    descriptor = open_regular(tmp_path / "x", CheckpointError)
    buffers = [bytearray(size) for size in (5, 0, 1, 30, 100)]
    pread_exactly(descriptor, [memoryview(buffer) for buffer in buffers], 10, tmp_path / "x", CheckpointError)
    assert b"".join(buffers) == data[10:146]
    with pytest.raises(CheckpointError, match="ends at byte 200: it is shorter"):
        pread_exactly(descriptor, [memoryview(bytearray(100)), memoryview(bytearray(2))], 99, "x", CheckpointError)
    os.close(descriptor)


def test_a_config_is_needed(tmp_path):
    assert VALUES["num_hidden_layers"] == 1
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_source(tmp_path / "none")
