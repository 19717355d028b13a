"""Folders and archives that are refused: broken .npy, archives, names."""

import contextlib
import io
import os
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref.errors import GoldenError
from qwq_ref.formats.write import write_safetensors
from qwq_ref.oracle.adapters.folders import open_candidate
from tests.support.candidates import (
    CONFIG,
    IDS,
    NORM,
    TAPS,
    Q,
    header,
    in_npy,
    in_safetensors,
    npy,
    refused,
    write,
    write_map,
)

SHAPE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (5, 24), }\n"
BYTES = TAPS["prompt", NORM].tobytes()
NPY = {
    "empty": (b"", "is 0 bytes long"),
    "seven bytes": (b"\x93NUMPY\1", "is 7 bytes long"),
    "another magic": (b"\x93NUMPZ\1\0" + bytes(200), "does not begin with"),
    "text": (b"1.0 2.0 3.0 4.0", "does not begin with"),
    "version 4": (header(SHAPE, BYTES, b"\4\0"), "version 4.0"),
    "version 1.1": (header(SHAPE, BYTES, b"\1\1"), "version 1.1"),
    "ends in its length": (b"\x93NUMPY\2\0\1\0", "is cut short"),
    "ends in its header": (header(SHAPE[:20], length=60), "ends within its header"),
    "a header of 4 GB": (header(SHAPE, BYTES, b"\2\0", 2**32 - 1), "at most 4,096"),
    "header is a list": (header(b"[1]", BYTES), "descr, fortran_order and shape"),
    "header is no literal": (header(b"__import__('os').abort()"), "not a Python dict"),
    "header is no Python": (header(b"{'descr': <f4}"), "not a Python dict"),
    "header of NULs": (header(bytes(60)), "not a Python dict"),
    "a header that Python warns of": (header(b"{'\\s': 1if 1else 2}"), "not a Python dict"),
    "deep nesting": (header(b"(" * 4000), "not a Python dict"),
    "deep minus": (header(b"-" * 4000 + b"1"), "not a Python dict"),
    "unhashable keys": (header(b"{[]: 1}"), "not a Python dict"),
    "a huge integer": (header(SHAPE.replace(b"24", b"9" * 4000)), "sizes of 0"),
    "a field missing": (header(SHAPE.replace(b"'shape'", b"'shap'"), BYTES), "descr, fortran_order and shape"),
    "a field too many": (header(SHAPE.replace(b"}", b"'x': 1}"), BYTES), "descr, fortran_order and shape"),
    "order is a number": (header(SHAPE.replace(b"False", b"0"), BYTES), "must be True or False"),
    "shape is a list": (header(SHAPE.replace(b"(5, 24)", b"[5, 24]"), BYTES), "shape must be"),
    "shape is a number": (header(SHAPE.replace(b"(5, 24)", b"120"), BYTES), "shape must be"),
    "a negative size": (header(SHAPE.replace(b"24", b"-24"), BYTES), "shape must be"),
    "a size of True": (header(SHAPE.replace(b"5", b"True"), BYTES), "shape must be"),
    "a float size": (header(SHAPE.replace(b"5", b"5.0"), BYTES), "shape must be"),
    "a size beyond all disks": (header(SHAPE.replace(b"5", b"9" * 15), BYTES), "shape must be"),
    "33 axes": (header(SHAPE.replace(b"5", b", ".join([b"1"] * 32)), BYTES), "at most 32"),
    "a terabyte promised": (header(SHAPE.replace(b"5", b"9999999999"), BYTES), "is cut short"),
    "one byte short": (header(SHAPE, BYTES[:-1]), "cut short: 1 bytes are missing, of <f4 [5, 24]"),
    "one byte long": (header(SHAPE, BYTES + b"\0"), "has 1 bytes too many"),
    "no data": (header(SHAPE), "480 bytes are missing"),
    "objects": (npy(np.array([None, {}])), "a pickle"),
    "an object": (header(SHAPE.replace(b"<f4", b"|O"), BYTES), "a pickle"),
    "8-byte objects": (header(SHAPE.replace(b"<f4", b"|O8"), BYTES), "a pickle"),
    "records": (npy(np.zeros(3, [("a", "f4")])), "records"),
    "integers": (npy(np.zeros((5, 24), int)), "is of type <i8"),
    "booleans": (npy(np.zeros((5, 24), bool)), "is of type |b1"),
    "complex": (npy(np.zeros((5, 24), complex)), "is of type <c16"),
    "long double": (header(SHAPE.replace(b"<f4", b"<f16"), bytes(1920)), "is of type <f16"),
    "text array": (npy(np.array(["abc"])), "is of type <U3"),
    "dates": (npy(np.array(["2020-01-01"], "M8[D]")), "is of type <M8[D]"),
    "four bytes without a type": (header(SHAPE.replace(b"<f4", b"|V4"), BYTES), "is of type |V4"),
    "swapped bytes without a type": (header(SHAPE.replace(b"<f4", b">V2"), BYTES[:240]), "is of type >V2"),
    "an unknown type": (header(SHAPE.replace(b"<f4", b"<q4"), BYTES), "is of type <q4"),
    "no type": (header(SHAPE.replace(b"<f4", b""), BYTES), "is of type"),
    "an endless type": (header(SHAPE.replace(b"<f4", b"f" * 3000), BYTES), "is of type fff"),
}


def test_the_good_npy_is_read(tmp_path):
    """Each case above is this file with one change."""
    write(tmp_path, {f"{NORM}.npy": header(SHAPE, BYTES)})
    assert np.array_equal(open_candidate(tmp_path, CONFIG).tensors["prompt", NORM](), TAPS["prompt", NORM])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", NPY)
def test_bad_npy(case, tmp_path):
    """A bad file is refused when the folder or archive is opened."""
    content, words = NPY[case]
    write(tmp_path, {f"{NORM}.npy": content})
    refused(lambda: open_candidate(tmp_path, CONFIG), tmp_path / f"{NORM}.npy", None, words)
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{NORM}.npy", content)
    refused(lambda: open_candidate(path, CONFIG), path, NORM, words)


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    for writer in (in_npy, in_safetensors):
        folder = tmp_path / writer.__name__
        folder.mkdir()
        load = open_candidate(writer(folder, {("prompt", NORM): TAPS["prompt", NORM]}), CONFIG).tensors["prompt", NORM]
        (path,) = (path for path in folder.rglob("*") if path.is_file())
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(GoldenError, match=r"cut short|shorter"):
            load()
        path.unlink()
        if writer is in_npy:
            refused(load, path, None, "cannot be opened")


def test_a_file_that_becomes_another_after_it_was_opened(tmp_path):
    write(tmp_path, {f"{NORM}.npy": TAPS["prompt", NORM]})
    load = open_candidate(tmp_path, CONFIG).tensors["prompt", NORM]
    write(tmp_path, {f"{NORM}.npy": np.zeros(3, int)})
    refused(load, tmp_path / f"{NORM}.npy", None, "is of type <i8")


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / f"{NORM}.npy")
    refused(lambda: open_candidate(tmp_path, CONFIG), tmp_path / f"{NORM}.npy", None, "is not a regular file")
    os.unlink(tmp_path / f"{NORM}.npy")
    (tmp_path / f"{NORM}.npy").symlink_to("nowhere")
    refused(lambda: open_candidate(tmp_path, CONFIG), tmp_path / f"{NORM}.npy", None, "cannot be opened")
    for name in ("x.npz", "x.safetensors"):
        os.mkfifo(tmp_path / name)
        refused(lambda name=name: open_candidate(tmp_path / name, CONFIG), tmp_path / name, None, "not a regular")


def test_sources_that_are_none(tmp_path):
    refused(lambda: open_candidate(tmp_path / "x", CONFIG), tmp_path / "x", None, "no such file or folder")
    with pytest.raises(GoldenError, match=r"a\\x00b: no such file"):
        open_candidate("a\0b", CONFIG)
    write(tmp_path, {f"{NORM}.npy": TAPS["prompt", NORM]})
    refused(
        lambda: open_candidate(tmp_path / f"{NORM}.npy", CONFIG), tmp_path / f"{NORM}.npy", None, "must be a folder"
    )
    bad = write(tmp_path / "bad", {"prompt.safetensors": b"\0" * 9})
    refused(lambda: open_candidate(bad, CONFIG), bad / "prompt.safetensors", "header", "does not start with {")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_must_not_be_listed(tmp_path):
    (tmp_path / "prompt").mkdir(mode=0)
    refused(lambda: open_candidate(tmp_path, CONFIG), tmp_path / "prompt", None, "cannot be listed")


def test_nothing_that_fits(tmp_path):
    refused(
        lambda: open_candidate(tmp_path, CONFIG),
        tmp_path,
        None,
        "holds no tensors; expected are names like model.embed_tokens, model.layers.0.self_attn.q_proj, lm_head",
    )
    names = ["blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v", "blk.0.attn_w"]
    write(tmp_path, {f"{name}.npy": TAPS["prompt", Q] for name in names})
    problem = "found blk.0.attn_k.npy, blk.0.attn_q.npy, blk.0.attn_v.npy; expected are names like model.embed"
    refused(lambda: open_candidate(tmp_path, CONFIG), tmp_path, None, problem)
    refused(lambda: open_candidate(tmp_path, CONFIG), tmp_path, None, "a name map translates others")
    name_map = write_map(tmp_path / "map.json", {"tensors": {"blk.{layer}.q": "self_attn.q_proj"}})
    with pytest.raises(GoldenError) as caught:
        open_candidate(tmp_path, CONFIG, name_map)
    assert str(caught.value).endswith("expected are names like blk.{layer}.q")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("model.norm.npy", "prompt/model.norm.npy"),
        ("model.norm.npy", "prompt.safetensors"),
        ("prompt.npz", "prompt.safetensors"),
        ("decode-1/model.norm.npy", "decode-01/model.norm.npy"),
    ],
)
def test_one_tap_twice(first, second, tmp_path):
    for name in (first, second):
        if name.endswith(".safetensors"):
            write_safetensors(tmp_path / name, {NORM: TAPS["prompt", NORM]}, "F32")
        elif name.endswith(".npz"):
            np.savez(tmp_path / name, **{NORM: TAPS["prompt", NORM]})
        else:
            write(tmp_path, {name: TAPS["prompt", NORM]})
    labels = sorted((first, second), key=lambda name: name.partition("/")[0])
    words = "is there twice in " + ("decode-1" if "decode" in first else "prompt")
    refused(lambda: open_candidate(tmp_path, CONFIG), tmp_path, NORM, words)
    refused(lambda: open_candidate(tmp_path, CONFIG), tmp_path, NORM, f": as {labels[0]}")
    refused(lambda: open_candidate(tmp_path, CONFIG), tmp_path, NORM, f"and as {labels[1]}")


def test_ids_twice(tmp_path):
    write(
        tmp_path, {f"{NORM}.npy": TAPS["prompt", NORM]} | dict.fromkeys(("token_ids.npy", "prompt/token_ids.npy"), IDS)
    )
    refused(lambda: open_candidate(tmp_path, CONFIG), tmp_path, "token_ids", "is there twice in prompt")


def archive_of(*members, compression=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def patched(data, **changes):
    """Change the central directory's record of the only member."""
    at = data.index(b"PK\1\2")
    places = {"flags": (8, "<H"), "method": (10, "<H"), "crc": (16, "<I"), "packed": (20, "<I"), "size": (24, "<I")}
    result = bytearray(data)
    for name, value in changes.items():
        struct.pack_into(places[name][1], result, at + places[name][0], value)
    return bytes(result)


ONE = archive_of((f"{NORM}.npy", header(SHAPE, BYTES)))
ARCHIVES = {
    "empty": (b"", None, "is no .npz archive"),
    "text": (b"hello" * 10, None, "is no .npz archive"),
    "cut short": (ONE[:-30], None, "is no .npz archive"),
    "encrypted": (patched(ONE, flags=1), NORM, "is encrypted"),
    "bzip2": (archive_of((f"{NORM}.npy", header(SHAPE, BYTES)), compression=zipfile.ZIP_BZIP2), NORM, "NumPy never"),
    "lzma": (archive_of((f"{NORM}.npy", header(SHAPE, BYTES)), compression=zipfile.ZIP_LZMA), NORM, "NumPy never"),
    "four gigabytes in 500 bytes": (patched(ONE, size=2**32 - 2), NORM, "cannot be 4,294,967,294 bytes long"),
    "a name twice": (
        archive_of((f"{NORM}.npy", header(SHAPE, BYTES)), (f"prompt/{NORM}.npy", header(SHAPE, BYTES))),
        NORM,
        "is there twice in prompt",
    ),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_bad_archives(case, tmp_path):
    content, field, words = ARCHIVES[case]
    write(tmp_path, {"x.npz": content})
    refused(lambda: open_candidate(tmp_path / "x.npz", CONFIG), tmp_path / "x.npz", field, words)


def test_an_archive_whose_data_are_damaged(tmp_path):
    """The directory of the archive is right; the checksum is wrong."""
    plain = archive_of((f"{NORM}.npy", header(SHAPE, BYTES)), compression=zipfile.ZIP_STORED)
    at = plain.index(BYTES)
    path = write(tmp_path, {"x.npz": plain[: at + 99] + b"!" + plain[at + 100 :]}) / "x.npz"
    refused(lambda: open_candidate(path, CONFIG).tensors["prompt", NORM](), path, NORM, "cannot be read (Bad CRC-32")


@given(st.data())
def test_damaged_sources_give_typed_errors(tmp_path_factory, data):
    """Changed or missing bytes give a candidate or a GoldenError."""
    folder = tmp_path_factory.mktemp("damaged", numbered=True)
    whole = {
        "x.npz": archive_of((f"{NORM}.npy", header(SHAPE, BYTES)), (f"decode-0/{NORM}.npy", header(SHAPE, BYTES))),
        f"{NORM}.npy": header(SHAPE, BYTES),
    }
    name = data.draw(st.sampled_from(sorted(whole)))
    damaged = bytearray(whole[name])
    places = st.one_of(st.integers(0, min(200, len(damaged) - 1)), st.integers(0, len(damaged) - 1))
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(places)] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(len(damaged) // 2, len(damaged))) :]
    write(folder, {name: bytes(damaged)})
    with contextlib.suppress(GoldenError):
        candidate = open_candidate(folder / name if name == "x.npz" else folder, CONFIG)
        for load in candidate.tensors.values():
            load()
