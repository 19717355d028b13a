"""Files of a pack: broken, odd or wrong ones are refused."""

import json
import os
import shutil
import signal

import numpy as np
import pytest

from qwq_ref.errors import (
    GoldenError,
)
from qwq_ref.oracle import Golden, compare
from tests.support.packs import (
    CONFIG,
    PHASES,
    QROPE,
    WEIGHTS,
    changed,
    refused,
    replace,
    rewrite,
    set_value,
    spec_run,
)
from tests.support.processes import open_below

HASH = "0" * 64
SCORES = "model.layers.1.self_attn.scores"
TENSORS = {
    "a tap missing": (lambda tensors: tensors.pop(QROPE), QROPE, "is missing, but manifest.json has it as full"),
    "all missing": (lambda tensors: tensors.clear(), "model.rotary_emb.cos", "is missing"),
    "a tap too many": (
        lambda tensors: tensors.update(x=np.zeros(3, np.float32)),
        "x",
        "is not among the taps of manifest.json",
    ),
    "a row less": (
        replace(QROPE, lambda x: x[:-1]),
        QROPE,
        "is F32 [4, 10, 4], but manifest.json implies F32 [5, 10, 4]",
    ),
    "axes swapped": (replace(QROPE, lambda x: x.swapaxes(0, 1)), QROPE, "is F32 [10, 5, 4]"),
    "heads flattened": (replace(QROPE, lambda x: x.reshape(5, 40)), QROPE, "is F32 [5, 40]"),
    "a batch axis": (replace(QROPE, lambda x: x[None]), QROPE, "is F32 [1, 5, 10, 4]"),
    "half precision": (replace(QROPE, lambda x: x.astype(np.float16)), QROPE, "is F16 [5, 10, 4]"),
    "integers": (replace(QROPE, lambda x: x.astype(np.int32)), QROPE, "dtype must be one of"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_are_not_those_of_the_manifest(pack, case):
    change, field, words = TENSORS[case]
    rewrite(pack / "prompt.safetensors", change)
    refused(lambda: Golden.open(pack), pack / "prompt.safetensors", field, words)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tap", [QROPE, SCORES])
def test_values_that_are_none(pack, tap, value):
    """NaN and infinity are refused when they are read, also without verification."""
    rewrite(pack / "prompt.safetensors", set_value(tap, (2, 1, 0), value))
    right = spec_run(CONFIG, WEIGHTS, PHASES)
    with Golden.open(pack) as golden:
        if (tap, value) == (SCORES, -np.inf):
            assert np.isneginf(golden.read("prompt", tap)[2, 1, 0])
            return
        for call in (lambda: golden.read("prompt", tap), lambda: compare(golden, right, verify=False)):
            refused(call, pack / "prompt.safetensors", tap, "holds a NaN or infinity at [2, 1, 0]")


def test_a_digest_that_lies(pack, recorded):
    """Only the digest shows a changed bit, and only if it is checked."""
    right = {"prompt": {"model.norm": spec_run(CONFIG, WEIGHTS, PHASES)["prompt"]["model.norm"]}}
    rewrite(pack / "prompt.safetensors", set_value("lm_head", (0, 0), 1.0))
    with Golden.open(pack) as golden:
        words = "is not the file that manifest.json names for prompt: its SHA-256 differs"
        refused(golden.verify, pack / "prompt.safetensors", None, words)
        refused(lambda: compare(golden, right), pack / "prompt.safetensors", None, words)
        assert compare(golden, right, verify=False).passed
    file = pack / "manifest.json"
    shutil.copy(recorded / "prompt.safetensors", pack)
    file.write_text(json.dumps(changed(json.loads(file.read_text()), ("phases", 2, "sha256"), HASH)))
    with Golden.open(pack) as golden:
        refused(golden.verify, pack / "decode-1.safetensors", None, "names for decode-1")


def test_phases_swapped(pack):
    """Steps see different numbers of keys. In a pack without scores, the digests show the swap."""
    a, b = (pack / f"decode-{i}.safetensors" for i in (0, 1))
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    refused(lambda: Golden.open(pack), a, "model.layers.0.self_attn.scores", "is F32 [10, 1, 7]")


@pytest.mark.parametrize("left", [0, 7, 8, 100, -1, -4])
def test_a_file_cut_short(pack, left):
    path = pack / "decode-0.safetensors"
    os.truncate(path, left if left >= 0 else path.stat().st_size + left)
    with pytest.raises(GoldenError) as caught:
        Golden.open(pack)
    assert caught.value.file == str(path)
    assert caught.value.field in ("header", "lm_head")
    assert str(caught.value).isprintable()


def test_a_file_that_shrinks_while_open(pack):
    path = pack / "prompt.safetensors"
    with Golden.open(pack) as golden:
        os.truncate(path, path.stat().st_size - 4)
        refused(lambda: golden.read("prompt", "lm_head"), path, None, "shorter than it was when opened")
        refused(golden.verify, path, None, "SHA-256 differs")
        assert golden.read("prompt", QROPE).shape == (5, 10, 4)


@pytest.fixture
def cannot_hang():
    def ring(*_):
        raise AssertionError("blocked on a file that is not regular")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


ODD = {
    "missing": (lambda path, folder: None, "cannot be opened (No such file"),
    "fifo": (lambda path, folder: os.mkfifo(path), "is not a regular file"),
    "folder": (lambda path, folder: path.mkdir(), "is not a regular file"),
    "device": (lambda path, folder: path.symlink_to("/dev/zero"), "is not a regular file"),
    "loop": (lambda path, folder: path.symlink_to(path), "cannot be opened (Too many levels"),
    "dangling": (lambda path, folder: path.symlink_to(folder / "nowhere"), "cannot be opened (No such file"),
}


@pytest.mark.usefixtures("cannot_hang")
@pytest.mark.parametrize("place", ["manifest.json", "prompt.safetensors", "decode-1.safetensors"])
@pytest.mark.parametrize("case", ODD)
def test_odd_files(pack, tmp_path, place, case):
    put, words = ODD[case]
    (pack / place).unlink()
    put(pack / place, tmp_path)
    if (place, case) == ("manifest.json", "missing"):
        refused(lambda: Golden.open(pack), pack, None, "is not a golden pack: manifest.json is missing")
    else:
        refused(lambda: Golden.open(pack), pack / place, None, words)
    assert not open_below(pack)


def test_links_to_what_is_right_are_followed(pack, recorded):
    """The Hugging Face cache consists of such links."""
    for path in pack.iterdir():
        if path.is_file():
            path.unlink()
            path.symlink_to(recorded / path.name)
    with Golden.open(pack) as golden:
        golden.verify()
        assert compare(golden, recorded, coverage=False).passed


@pytest.mark.parametrize("name", ["nothing", "a\0b", "x" * 5000, "manifest.json"])
def test_what_is_no_folder(recorded, name):
    for call in (Golden.open, lambda path: compare(path, {"lm_head": np.zeros((5, 31), np.float32)})):
        with pytest.raises(GoldenError) as caught:
            call(recorded / name)
        assert caught.value.problem.startswith("is not a folder")
        assert str(caught.value).isprintable()
