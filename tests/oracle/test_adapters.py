"""Candidates: what people have in folders, files and running models comes back as the taps that it is, or is refused.

Every array is compared bit by bit with the one that was written: an adapter computes nothing.
"""

import contextlib
import functools
import io
import json
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2 import modeling_qwen2

from qwq_ref.config import Config
from qwq_ref.errors import GoldenError, UsageError
from qwq_ref.formats.write import write_safetensors
from qwq_ref.oracle.adapters import torch_hooks
from qwq_ref.oracle.adapters.candidate import fit
from qwq_ref.oracle.adapters.folders import open_candidate
from qwq_ref.oracle.adapters.torch_hooks import torch_taps
from qwq_ref.oracle.graph import (
    COS,
    LAYER,
    SIN,
    absolute,
    letters,
    phases_of,
    shape_of,
    split_name,
    tap_names,
)
from qwq_ref.oracle.packs.record import record
from qwq_ref.spec import forward
from qwq_ref.spec.ops import to_bf16
from tests.support import hf, refusals
from tests.support.models import config_values, configs, random_weights

VALUES = config_values()
CONFIG = Config.from_dict(VALUES)
IDS = [3, 1, 4, 1, 5, 9, 2]
PHASES = phases_of(IDS, 2)
Q, NORM = "model.layers.0.self_attn.q_proj", "model.norm"

refused = functools.partial(refusals.refused, GoldenError, 600)


def random_taps(config=CONFIG, phases=PHASES, seed=0):
    """{(phase, tap): float32 array}: no model's numbers, but all different."""
    rng = np.random.default_rng(seed)
    taps = {}
    for phase in phases:
        for tap in tap_names(config):
            taps[phase.name, tap] = rng.standard_normal(shape_of(tap, config, phase)).astype(np.float32)
            if tap.endswith("scores"):
                taps[phase.name, tap][:, 0, phase.start + 1 :] = -np.inf
    return taps


TAPS = random_taps()


def npy(array, version=(1, 0)):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asanyarray(array), version=version)
    return stream.getvalue()


def header(text, data=b"", version=b"\1\0", length=None):
    """A .npy file by hand."""
    width = "<H" if version == b"\1\0" else "<I"
    return b"\x93NUMPY" + version + struct.pack(width, len(text) if length is None else length) + text + data


def write(folder, files):
    """{name: bytes, or an array to be a .npy} -> the folder"""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else npy(content))
    return folder


def write_map(path, values):
    path.write_text(json.dumps(values) if path.suffix == ".json" else yaml.safe_dump(values))
    return path


# --- every kind of source ---


def in_npy(folder, taps):
    write(folder, {f"{phase}/{tap}.npy": array for (phase, tap), array in taps.items()})
    return folder


def flat_npy(folder, taps):
    names = {(phase, tap): tap if phase == "prompt" else f"{phase}/{tap}" for phase, tap in taps}
    return write(folder, {f"{names[key]}.npy": array for key, array in taps.items()})


def by_phase(taps):
    return {phase: {tap: array for (p, tap), array in taps.items() if p == phase} for phase, _ in taps}


def in_safetensors(folder, taps):
    for phase, arrays in by_phase(taps).items():
        write_safetensors(folder / f"{phase}.safetensors", arrays, "F32")
    return folder


def in_npz(folder, taps):
    for phase, arrays in by_phase(taps).items():
        np.savez(folder / f"{phase}.npz", **arrays)
    return folder


def one_name(phase, tap):
    return tap if phase == "prompt" else f"{phase}/{tap}"


def one_safetensors(folder, taps):
    path = folder / "all.safetensors"
    write_safetensors(path, {one_name(*key): array for key, array in taps.items()}, "F32")
    return path


def one_npz(folder, taps, save=np.savez):
    path = folder / "all.npz"
    save(path, **{"/".join(key): array for key, array in taps.items()})
    return path


def one_small_npz(folder, taps):
    return one_npz(folder, taps, np.savez_compressed)


WRITERS = [in_npy, flat_npy, in_safetensors, in_npz, one_safetensors, one_npz, one_small_npz]


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_every_tap_comes_back(writer, tmp_path):
    path = writer(tmp_path, TAPS)
    candidate = open_candidate(path, CONFIG)
    assert set(candidate.tensors) == set(TAPS)
    for key, load in candidate.tensors.items():
        assert np.array_equal(load(), TAPS[key]), key
        assert load().dtype == np.float32
    assert (candidate.source, candidate.token_ids, candidate.precision) == (str(path), None, {})
    assert (candidate.unknown, candidate.notes) == ((), ())


def test_a_golden_pack_is_a_candidate(tmp_path):
    """With its ids; without what it keeps as statistics or sketches, which is said."""
    sizes = {"lm_head": "last", "*.mlp.*": "sketch", "*": "full"}
    pack = record(CONFIG, random_weights(CONFIG, 0), tmp_path / "pack", IDS, 2, sizes=sizes, include_weights=True)
    candidate = open_candidate(pack, CONFIG)
    assert list(candidate.token_ids) == IDS
    assert candidate.unknown == ("model/",)
    assert candidate.notes == ("24 tensors are statistics or sketches of taps, and not compared",)
    taps = [tap for tap in tap_names(CONFIG) if ".mlp." not in tap]
    assert set(candidate.tensors) == {(phase.name, tap) for phase in PHASES for tap in taps}
    assert fit(candidate.tensors["prompt", "lm_head"](), (5, CONFIG.V))[1]

    (tmp_path / "mine").mkdir()
    manifest = json.dumps({"taps": {NORM: "sketch"}}).encode()  # not a pack's
    write(tmp_path / "mine", {"manifest.json": manifest, f"{NORM}.npy": TAPS["prompt", NORM]})
    assert ("prompt", NORM) in open_candidate(tmp_path / "mine", CONFIG).tensors

    sketches = record(CONFIG, random_weights(CONFIG, 0), tmp_path / "sketches", IDS, sizes="sketch")
    refused(lambda: open_candidate(sketches, CONFIG), sketches, None, "nothing but statistics and sketches")


@pytest.mark.parametrize("kind", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_float_of_npy(kind, order, version, tmp_path):
    array = np.asarray(TAPS["prompt", "model.layers.0.self_attn.q_rope"], kind, order=order)
    write(tmp_path, {"model.layers.0.self_attn.q_rope.npy": npy(array, version)})
    got = open_candidate(tmp_path, CONFIG).tensors["prompt", "model.layers.0.self_attn.q_rope"]()
    assert got.dtype == np.dtype(kind).newbyteorder("=")
    assert np.array_equal(got, array)


@pytest.mark.parametrize("descr", ["|V2", "<V2"])
def test_bfloat16_of_ml_dtypes(descr, tmp_path):
    """It is saved as two bytes without a type."""
    wanted = to_bf16(TAPS["prompt", Q])
    data = (wanted.view(np.uint32) >> 16).astype("<u2").tobytes()
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': (5, 80), }}\n".encode()
    write(tmp_path, {f"{Q}.npy": header(text, data), f"{NORM}.npy": TAPS["prompt", NORM]})
    candidate = open_candidate(tmp_path, CONFIG)
    got = candidate.tensors["prompt", Q]()
    assert got.dtype == np.float32
    assert np.array_equal(got, wanted)
    assert candidate.notes == ("1 arrays of two bytes without a type are read as bfloat16, which ml_dtypes saves so",)


def test_bfloat16_of_safetensors(tmp_path):
    write_safetensors(tmp_path / "prompt.safetensors", {Q: TAPS["prompt", Q]}, "BF16")
    assert np.array_equal(open_candidate(tmp_path, CONFIG).tensors["prompt", Q](), to_bf16(TAPS["prompt", Q]))


@pytest.mark.parametrize("shape", [(0, 80), (), (5, 0)])
def test_empty_and_scalar_arrays_are_read(shape, tmp_path):
    """That they do not fit is for the comparison to say."""
    write(tmp_path, {f"{Q}.npy": np.ones(shape)})
    assert open_candidate(tmp_path, CONFIG).tensors["prompt", Q]().shape == shape


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_opening_reads_no_tensor(writer, tmp_path):
    """Eight megabytes in the source, and next to nothing in memory."""
    config = Config.from_dict(config_values(vocab_size=1 << 20))
    taps = {("decode-0", "lm_head"): np.ones((2, config.V), np.float32)}
    path = writer(tmp_path, taps)
    tracemalloc.start()
    try:
        candidate = open_candidate(path, config)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert candidate.tensors["decode-0", "lm_head"]().sum() == 2 * config.V


def test_files_are_closed_when_the_candidate_is_gone(tmp_path):
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    for writer in WRITERS:
        (tmp_path / writer.__name__).mkdir()
        before = descriptors()
        candidate = open_candidate(writer(tmp_path / writer.__name__, TAPS), CONFIG)
        loads = list(candidate.tensors.values())
        del candidate
        assert loads[-1]().size
        del loads
        assert descriptors() == before


def test_what_is_no_tap_is_listed(tmp_path):
    files = {
        f"prompt/{Q}.npy": TAPS["prompt", Q],
        "prompt/Model.Norm.npy": TAPS["prompt", NORM],  # names are as they are written
        "prompt/model.layers.2.self_attn.q_proj.npy": TAPS["prompt", Q],  # of two layers
        "prompt/notes.txt": b"",
        "prompt/deeper/model.norm.npy": TAPS["prompt", NORM],
        "Prompt/model.norm.npy": TAPS["prompt", NORM],
        "decode_0/model.norm.npy": TAPS["prompt", NORM],
        "decode-x/model.norm.npy": TAPS["prompt", NORM],
        "model.safetensors": b"not even one",
        "model.norm.NPY": b"",
        "weight.npy": b"never opened",
        "token_ids.txt": b"",
    }
    write(tmp_path, files)
    np.savez(tmp_path / "decode-0.npz", **{NORM: TAPS["decode-0", NORM], "rest": np.zeros(1)})
    with zipfile.ZipFile(tmp_path / "decode-0.npz", "a") as archive:
        archive.writestr("readme", b"")
    candidate = open_candidate(tmp_path, CONFIG)
    assert set(candidate.tensors) == {("prompt", Q), ("decode-0", NORM)}
    assert set(candidate.unknown) == {
        "prompt/Model.Norm.npy",
        "prompt/model.layers.2.self_attn.q_proj.npy",
        "prompt/notes.txt",
        "prompt/deeper/",
        "Prompt/",
        "decode_0/",
        "decode-x/",
        "model.safetensors",
        "model.norm.NPY",
        "weight.npy",
        "token_ids.txt",
        "decode-0.npz: rest",
        "decode-0.npz: readme",
    }


def test_symbolic_links_are_followed(tmp_path):
    write(tmp_path / "there", {"a.npy": TAPS["prompt", NORM], "steps/model.norm.npy": TAPS["decode-0", NORM]})
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "model.norm.npy").symlink_to(tmp_path / "there" / "a.npy")
    (tmp_path / "here" / "decode-0").symlink_to(tmp_path / "there" / "steps")
    (tmp_path / "here" / "decode-1").symlink_to(tmp_path / "here")  # a loop: its files are those of a phase
    candidate = open_candidate(tmp_path / "here", CONFIG)
    assert set(candidate.tensors) == {("prompt", NORM), ("decode-0", NORM), ("decode-1", NORM)}
    assert candidate.unknown == ("decode-1/decode-0/", "decode-1/decode-1/")


def test_more_phases_than_anybody_asked_for(tmp_path):
    write(tmp_path, {"decode-41/model.norm.npy": TAPS["decode-0", NORM]})
    assert set(open_candidate(tmp_path, CONFIG).tensors) == {("decode-41", NORM)}


# --- token ids and precision ---


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"token_ids.npy": np.array(IDS)}, IDS),
        ({"token_ids.npy": np.array([IDS], ">i4")}, IDS),
        ({"token_ids.npy": np.array(IDS, np.uint8)}, IDS),
        ({"prompt/token_ids.npy": np.array(IDS[:5]), "decode-0/token_ids.npy": np.array(IDS[5:6])}, IDS[:6]),
        ({"prompt/token_ids.npy": np.array(IDS[:5]), "decode-1/token_ids.npy": np.array(IDS[6:])}, IDS[:5]),
        ({"manifest.json": json.dumps({"token_ids": IDS}).encode()}, IDS),
        ({"manifest.json": json.dumps({"token_ids": IDS}).encode(), "token_ids.npy": np.array(IDS[:5])}, IDS),
        ({"manifest.json": b"{}"}, None),
    ],
)
def test_token_ids(files, wanted, tmp_path):
    candidate = open_candidate(write(tmp_path, {f"{NORM}.npy": TAPS["prompt", NORM]} | files), CONFIG)
    assert candidate.token_ids == wanted
    assert candidate.unknown == ()


def test_token_ids_of_an_archive(tmp_path):
    np.savez(tmp_path / "x.npz", **{NORM: TAPS["prompt", NORM], "token_ids": np.array(IDS)})
    assert open_candidate(tmp_path / "x.npz", CONFIG).token_ids == IDS


BAD_IDS = {
    "floats": ("token_ids.npy", np.array([1.0]), None, "must hold integers"),
    "booleans": ("token_ids.npy", np.array([True]), None, "must hold integers"),
    "beyond the vocabulary": ("token_ids.npy", np.array([1, 53]), None, "below vocab_size 53"),
    "negative": ("token_ids.npy", np.array([-1]), None, "below vocab_size 53"),
    "none": ("token_ids.npy", np.array([], int), None, "must be a list of token ids"),
    "a table": ("token_ids.npy", np.array([[1, 2], [3, 4]]), None, "got shape [2, 2]"),
    "a scalar": ("token_ids.npy", np.array(3), None, "got shape []"),
    "an object": ("manifest.json", b'{"token_ids": {}}', "token_ids", "must be a list"),
    "an empty list": ("manifest.json", b'{"token_ids": []}', "token_ids", "must be a list"),
    "a float in a list": ("manifest.json", b'{"token_ids": [1.0]}', "token_ids", "must be a list"),
    "true in a list": ("manifest.json", b'{"token_ids": [true]}', "token_ids", "must be a list"),
    "no JSON": ("manifest.json", b"{", None, "is not JSON"),
    "a precision that is none": ("manifest.json", b'{"precision": "fp8"}', "precision", "fp32, bf16, fp16, got 'fp8'"),
    "a number": ("manifest.json", b'{"precision": 16}', "precision", "got 16"),
    "a list": ("manifest.json", b'{"precision": ["bf16"]}', "precision", "got ['bf16']"),
    "of no tap": (
        "manifest.json",
        b'{"precision": {"model.nrom": "bf16"}}',
        "precision.model.nrom",
        "did you mean model.norm?",
    ),
    "none of a tap": ("manifest.json", b'{"precision": {"lm_head": null}}', "precision.lm_head", "got None"),
}


@pytest.mark.parametrize("case", BAD_IDS)
def test_bad_token_ids_and_manifests(case, tmp_path):
    file, content, field, words = BAD_IDS[case]
    write(tmp_path, {f"{NORM}.npy": TAPS["prompt", NORM], file: content})
    refused(lambda: open_candidate(tmp_path, CONFIG), tmp_path / file, field, words)


def test_token_ids_that_contradict_each_other(tmp_path):
    files = {"manifest.json": json.dumps({"token_ids": IDS}).encode(), "token_ids.npy": np.array(IDS[1:])}
    write(tmp_path, {f"{NORM}.npy": TAPS["prompt", NORM]} | files)
    where = tmp_path / "manifest.json"
    refused(lambda: open_candidate(tmp_path, CONFIG), where, "token_ids", "are not those of token_ids.npy")


def test_token_ids_in_safetensors_cannot_be_integers(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {NORM: TAPS["prompt", NORM], "token_ids": np.ones(3)}, "F32")
    refused(lambda: open_candidate(path, CONFIG), path, "token_ids", "must hold integers")


def test_precision(tmp_path):
    """The caller before the map, the map before the manifest; by tap, or by a name that is in every layer."""
    manifest = {"precision": {"": "fp16", "lm_head": "fp32", "mlp.act": "bf16"}}
    write(tmp_path, {"x.npy": TAPS["prompt", NORM], "manifest.json": json.dumps(manifest).encode()})
    mapping = {"tensors": {"x": NORM}}
    inner = {"model.layers.0.mlp.act": "bf16", "model.layers.1.mlp.act": "bf16"}

    def opened(**changes):
        name_map = write_map(tmp_path / "map.json", mapping | changes)
        return open_candidate(tmp_path, CONFIG, name_map).precision

    assert opened() == {"": "fp16", "lm_head": "fp32"} | inner
    assert opened(precision="bf16") == {"": "bf16", "lm_head": "fp32"} | inner
    assert opened(precision={"lm_head": "bf16"}) == {"": "fp16", "lm_head": "bf16"} | inner
    name_map = tmp_path / "map.json"
    assert open_candidate(tmp_path, CONFIG, name_map, precision="fp32").precision == {"": "fp32"}
    with pytest.raises(UsageError, match="precision: must be one of fp32, bf16, fp16, got int8"):
        open_candidate(tmp_path, CONFIG, name_map, precision="int8")


# --- what must be refused ---

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
    """All the cases above are this file, and one change."""
    write(tmp_path, {f"{NORM}.npy": header(SHAPE, BYTES)})
    assert np.array_equal(open_candidate(tmp_path, CONFIG).tensors["prompt", NORM](), TAPS["prompt", NORM])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", NPY)
def test_bad_npy(case, tmp_path):
    """At once, when the folder is opened; also in an archive."""
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
    """The central directory's record of the only member, changed."""
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
    """Its directory is right; the checksum is not."""
    plain = archive_of((f"{NORM}.npy", header(SHAPE, BYTES)), compression=zipfile.ZIP_STORED)
    at = plain.index(BYTES)
    path = write(tmp_path, {"x.npz": plain[: at + 99] + b"!" + plain[at + 100 :]}) / "x.npz"
    refused(lambda: open_candidate(path, CONFIG).tensors["prompt", NORM](), path, NORM, "cannot be read (Bad CRC-32")


@given(st.data())
def test_damaged_sources_give_typed_errors(tmp_path_factory, data):
    """Whatever bytes change or go missing: all is well, or a GoldenError."""
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


# --- name maps ---

GOOD = {
    "tensors": {
        "blk.{layer}.attn_q": "self_attn.q_proj",
        "blk.{layer}.kv": {"split": ["self_attn.k_proj", {"tap": "self_attn.v_proj"}]},
        "norm": {"tap": NORM},
    }
}


def entry(**options):
    """A map with one entry more, for a name in every layer."""
    return {"tensors": GOOD["tensors"] | {"x.{layer}": options}}


def top(**changes):
    return GOOD | changes


X = "tensors.x.{layer}"
MAPS = {
    "no tensors": ({}, "tensors", "must map names to taps, got None"),
    "empty tensors": ({"tensors": {}}, "tensors", "got {}"),
    "tensors is a list": ({"tensors": []}, "tensors", "got []"),
    "unknown key": (top(tensor={}), "tensor", "is unknown; known are tensors, first_layer"),
    "unknown tap": (
        entry(tap="self_attn.q_porj"),
        f"{X}.tap",
        "is no tap of this config; did you mean self_attn.q_proj",
    ),
    "a tap like nothing": (entry(tap="zzz"), f"{X}.tap", "'zzz' is no tap of this config"),
    "a tap of a layer too far": (
        {"tensors": {"x": "model.layers.2.resid_pre"}},
        "tensors.x.tap",
        "is no tap of this config",
    ),
    "a number for a tap": ({"tensors": {"x": 3}}, "tensors.x", "must be a tap, or an object"),
    "an object for a tap": (entry(tap={}), f"{X}.tap", "must be the name of a tap, got {}"),
    "neither tap nor split": (entry(scale=2), X, "must have one of tap and split"),
    "tap and split": (entry(tap="mlp.act", split=[]), X, "must have one of tap and split"),
    "no {layer}": ({"tensors": {"x": "self_attn.q_proj"}}, "tensors.x", "needs {layer} in its name"),
    "a {layer} too many": (entry(tap=NORM), X, "has {layer} in its name, but model.norm is one tap"),
    "{layer} and one layer": (entry(tap=Q), X, "has {layer} in its name, but model.layers.0"),
    "{layer} twice": (
        {"tensors": {"{layer}{layer}": "mlp.act"}},
        "tensors.{layer}{layer}",
        "once, and no other braces",
    ),
    "{Layer}": ({"tensors": {"{Layer}": "mlp.act"}}, "tensors.{Layer}", "once, and no other braces"),
    "{i}": ({"tensors": {"{layer}{i}": "mlp.act"}}, "tensors.{layer}{i}", "once, and no other braces"),
    "a lone brace": ({"tensors": {"a}": NORM}}, "tensors.a}", "once, and no other braces"),
    "a tap twice": (entry(tap="self_attn.q_proj"), X, "gives self_attn.q_proj, and so does blk.{layer}.attn_q"),
    "a tap twice by split": (entry(tap="self_attn.v_proj"), X, "gives self_attn.v_proj, and so does blk.{layer}.kv"),
    "a tap twice in a split": (entry(split=["mlp.act", "mlp.act"]), X, "gives mlp.act twice"),
    "one layer's tap twice": (
        {"tensors": {"a": Q, "b{layer}": "self_attn.q_proj"}},
        "tensors.b{layer}",
        "gives self_attn.q_proj, and so does a",
    ),
    "one tap twice": ({"tensors": {"a": NORM, "b": NORM}}, "tensors.b", "gives model.norm, and so does a"),
    "unknown option": (entry(tap="mlp.act", transposed=[1, 0]), f"{X}.transposed", "is unknown; known are tap"),
    "layout without split": (entry(tap="mlp.act", layout="concat"), f"{X}.layout", "is unknown"),
    "option of a part on a split": (entry(split=["mlp.act", "resid_pre"], scale=2), f"{X}.scale", "is unknown"),
    "option of a tensor on a part": (
        entry(split=["mlp.act", {"tap": "resid_pre", "rows": "last"}]),
        f"{X}.split[1].rows",
        "is unknown; known are tap, repeated",
    ),
    "split of one": (entry(split=["mlp.act"]), f"{X}.split", "two taps or more"),
    "split is text": (entry(split="mlp.act"), f"{X}.split", "two taps or more"),
    "split of numbers": (entry(split=["mlp.act", 2]), f"{X}.split[1]", "must be a tap, or an object with tap, got 2"),
    "split without a tap": (entry(split=["mlp.act", {}]), f"{X}.split[1]", "with tap, got {}"),
    "split of scores": (entry(split=["mlp.act", "self_attn.scores"]), f"{X}.split[1].tap", "has no fixed width"),
    "unknown tap in a split": (entry(split=["mlp.act", "x"]), f"{X}.split[1].tap", "is no tap"),
    "unknown layout": (entry(split=["mlp.act", "resid_pre"], layout="blocks"), f"{X}.layout", "got 'blocks'"),
    "layout is a list": (entry(split=["mlp.act", "resid_pre"], layout=[]), f"{X}.layout", "got []"),
    "interleaved of two widths": (
        entry(split=["mlp.act", "resid_pre"], layout="interleaved"),
        f"{X}.layout",
        "taps of one width",
    ),
    "groups without heads": (
        entry(split=["mlp.act", "self_attn.q_rope"], layout="groups"),
        f"{X}.layout",
        "made of heads",
    ),
    "axes missing": (entry(tap="mlp.act", transpose=[0, 2]), f"{X}.transpose", "every axis once"),
    "axes twice": (entry(tap="mlp.act", transpose=[0, 0]), f"{X}.transpose", "every axis once"),
    "negative axes": (entry(tap="mlp.act", transpose=[-1, 0]), f"{X}.transpose", "every axis once"),
    "no axes": (entry(tap="mlp.act", transpose=[]), f"{X}.transpose", "every axis once"),
    "axes are text": (entry(tap="mlp.act", transpose="10"), f"{X}.transpose", "every axis once"),
    "axes are true": (entry(tap="mlp.act", transpose=[False, True]), f"{X}.transpose", "every axis once"),
    "axes are a number": (
        entry(tap="mlp.act", transpose=1),
        f"{X}.transpose",
        "every axis once, like [1, 0, 2], got 1",
    ),
    "axes are nothing": (entry(tap="mlp.act", transpose=None), f"{X}.transpose", "got None"),
    "nine axes": (entry(tap="mlp.act", transpose=list(range(9))), f"{X}.transpose", "at most 8"),
    "reverse is text": (entry(tap="mlp.act", reverse="yes"), f"{X}.reverse", "must be axes or shape, got 'yes'"),
    "reverse is a number": (entry(tap="mlp.act", reverse=1), f"{X}.reverse", "must be axes or shape, got 1"),
    "rows is a number": (entry(tap="mlp.act", rows=1), f"{X}.rows", "must be last or cache, got 1"),
    "rows of scores from a cache": (entry(tap="self_attn.scores", rows="cache"), f"{X}.rows", "hold all keys anyway"),
    "repeated is text": (entry(tap="self_attn.k_rope", repeated="yes"), f"{X}.repeated", "true or false"),
    "repeated queries": (entry(tap="self_attn.q_rope", repeated=True), f"{X}.repeated", "key and value heads"),
    "repeated residuals": (entry(tap="resid_pre", repeated=True), f"{X}.repeated", "key and value heads"),
    "permute is true": (entry(tap="self_attn.q_rope", permute=True), f"{X}.permute", "pairs-to-halves, got True"),
    "permuted values": (
        entry(tap="mlp.act", permute="pairs-to-halves"),
        f"{X}.permute",
        "heads of q and k, cos, sin; not mlp.act",
    ),
    "halved heads": (entry(tap="self_attn.q_rope", half=True), f"{X}.half", "is for model.rotary_emb.cos and"),
    "half and permute": (
        {"tensors": {"x": {"tap": COS, "half": True, "permute": "pairs-to-halves"}}},
        "tensors.x.permute",
        "has no meaning with half",
    ),
    "scale of 0": (entry(tap="mlp.act", scale=0), f"{X}.scale", "a number that is not 0, got 0"),
    "scale is text": (entry(tap="mlp.act", scale="1/8"), f"{X}.scale", "must be a number"),
    "scale is true": (entry(tap="mlp.act", scale=True), f"{X}.scale", "must be a number"),
    "scale beyond all": (entry(tap="mlp.act", scale=1e40), f"{X}.scale", "must be a number"),
    "scale beyond floats": (entry(tap="mlp.act", scale=10**400), f"{X}.scale", "must be a number"),
    "first layer of -1": (top(first_layer=-1), "first_layer", "must be an integer from 0"),
    "first layer is true": (top(first_layer=True), "first_layer", "must be an integer from 0"),
    "phases is text": (top(phases="step"), "phases", "must be an object"),
    "unknown phase": (top(phases={"decoding": "x"}), "phases.decoding", "known are prompt, decode, first"),
    "prompt is a number": (top(phases={"prompt": 0}), "phases.prompt", "must be the name of a folder"),
    "prompt is nothing": (top(phases={"prompt": ""}), "phases.prompt", "must be the name of a folder"),
    "prompt with {n}": (top(phases={"prompt": "p{n}"}), "phases.prompt", "without braces"),
    "decode without {n}": (top(phases={"decode": "step"}), "phases.decode", "must have {n} in it"),
    "decode with two": (top(phases={"decode": "{n}{n}"}), "phases.decode", "must have {n} in it"),
    "a path for a phase": (top(phases={"decode": "a/{n}"}), "phases.decode", "must be the name of a folder"),
    "first is text": (top(phases={"first": "1"}), "phases.first", "must be an integer"),
    "prompt is a step, too": (
        top(phases={"prompt": "step_0", "decode": "step_{n}"}),
        "phases.first",
        "must be above the number in step_0: that would be decode-0",
    ),
    "token_ids is a list": (top(token_ids=[1]), "token_ids", "must be the name of a tensor"),
    "token_ids is a tap, too": (top(token_ids="norm"), "token_ids", "is among the tensors, too"),
    "precision of nothing": (top(precision="int8"), "precision", "must be one of fp32, bf16, fp16"),
    "precision of no tap": (top(precision={"mlp.actt": "bf16"}), "precision.mlp.actt", "did you mean mlp.act"),
}


@pytest.fixture
def some(tmp_path):
    """A folder for which `GOOD` is a good map."""
    files = {"blk.0.attn_q": TAPS["prompt", Q], "norm": TAPS["prompt", NORM]}
    return write(tmp_path / "some", {f"{name}.npy": array for name, array in files.items()})


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml", ".YAML"])
def test_the_good_map_is_read(suffix, some, tmp_path):
    """All the cases above are this map, and one change."""
    candidate = open_candidate(some, CONFIG, write_map(tmp_path / f"map{suffix}", GOOD))
    assert set(candidate.tensors) == {("prompt", Q), ("prompt", NORM)}


@pytest.mark.parametrize("case", MAPS)
def test_bad_maps(case, some, tmp_path):
    values, field, words = MAPS[case]
    for name in ("map.json", "map.yaml"):
        path = write_map(tmp_path / name, values)
        refused(lambda path=path: open_candidate(some, CONFIG, path), path, field, words)


TEXTS = {
    "nothing": (b"", None, "must hold a mapping, not None"),
    "a comment": (b"# nothing", None, "must hold a mapping, not None"),
    "a list": (b"- a\n- b\n", None, "must hold a mapping, not ['a', 'b']"),
    "text": (b"hello", None, "must hold a mapping, not 'hello'"),
    "a date": (b"2020-01-01", None, "must hold a mapping, not '2020-01-01'"),
    "not YAML": (b"tensors: {a: b", None, "is not YAML (line 1"),
    "a tab": (b"tensors:\n\ta: b\n", None, "is not YAML (line 2"),
    "a control character": (b"tensors: \x01", None, "is not YAML"),
    "not UTF-8": (b"tensors: \xff", None, "is not UTF-8 (byte 9)"),
    "UTF-16": ("tensors: {}".encode("utf-16"), None, "is not UTF-8"),
    "a key twice": (b"tensors:\n  norm: lm_head\n  norm: model.norm\n", "norm", "appears twice (line 3)"),
    "a top key twice": (b"tensors: {a: model.norm}\ntensors: {a: model.norm}\n", "tensors", "appears twice (line 2)"),
    "an anchor": (b"tensors: &x {a: model.norm}\n", None, "line 1: anchors and aliases are not read"),
    "an alias": (b"tensors:\n  a: *x\n", None, "line 2: anchors and aliases are not read"),
    "an anchored scalar": (b"tensors: {a: &x model.norm}\n", None, "anchors and aliases are not read"),
    "an anchored key": (b"tensors: {&x a: model.norm}\n", None, "anchors and aliases are not read"),
    "a merge": (b"tensors:\n  <<: {a: model.norm}\n", "tensors.<<", "must have one of tap and split"),
    "Python": (b"tensors: !!python/object/apply:os.abort []\n", None, "tags (tag:yaml.org,2002:python/object"),
    "a tagged scalar": (b"tensors: {a: !!str model.norm}\n", None, "tags (tag:yaml.org,2002:str) are not read"),
    "a tagged map": (b"!!map {tensors: {a: model.norm}}\n", None, "tags (tag:yaml.org,2002:map) are not read"),
    "a number for a name": (b"tensors: {1: model.norm}\n", None, "line 1: the key 1 is no string; put it in quotes"),
    "yes for a name": (b"tensors: {yes: model.norm}\n", None, "the key True is no string"),
    "a list for a name": (b"tensors: {[a]: model.norm}\n", None, "the key ['a'] is no string"),
    "two documents": (b"tensors: {a: model.norm}\n---\ntensors: {}\n", None, "line 2: a second document"),
    "nested beyond reason": (b"a: " + b"[" * 20 + b"]" * 20, None, "is nested too deeply"),
    "nested beyond all reason": (b"a: " + b"[" * 50_000, None, "is nested too deeply"),
    "an endless integer": (b"tensors: {a: {tap: lm_head, scale: " + b"9" * 5000 + b"}}", None, "is not YAML"),
    "not a number": (b"tensors: {a: {tap: lm_head, scale: .nan}}", "tensors.a.scale", "got nan"),
    "infinity": (b"tensors: {a: {tap: lm_head, scale: .inf}}", "tensors.a.scale", "got inf"),
    "too long": (b"#" * ((256 << 10) + 1), None, "at most 262,144 are read"),
}
BILLION = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(ord("b"), ord("k"))
)
TEXTS["a billion laughs"] = (BILLION, None, "line 1: anchors and aliases are not read")


@pytest.mark.parametrize("case", TEXTS)
def test_bad_yaml(case, some, tmp_path):
    content, field, words = TEXTS[case]
    path = tmp_path / "map.yaml"
    path.write_bytes(content)
    refused(lambda: open_candidate(some, CONFIG, path), path, field, words)


def test_yaml_is_what_it_looks_like(some, tmp_path):
    text = """\ufeff# a map
    tensors:
      'blk.{layer}.attn_q': {tap: self_attn.q_proj, scale: 1e-3, transpose: [0, 1], reverse: no}
      "norm":
        tap: model.norm
        scale: -2
      "1": lm_head
      'no': model.embed_tokens
      '1e3': model.rotary_emb.sin
      2020-01-01: model.rotary_emb.cos
    """
    (tmp_path / "map.yaml").write_text(text)
    tensors = open_candidate(some, CONFIG, tmp_path / "map.yaml").tensors
    assert np.array_equal(tensors["prompt", Q](), TAPS["prompt", Q] * np.float32(1e-3))
    assert np.array_equal(tensors["prompt", NORM](), TAPS["prompt", NORM] * -2)


def test_bad_files_for_maps(some, tmp_path):
    for name, content, field, words in [
        ("map.toml", b"", None, "must be a .yaml or a .json file"),
        ("map.json", b"[]", None, "must hold a JSON object"),
        ("map.json", b'{"tensors": {"a": "lm_head", "a": "lm_head"}}', "a", "appears twice"),
        ("map.json", b'{"first_layer": NaN}', None, "holds NaN"),
    ]:
        path = tmp_path / name
        path.write_bytes(content)
        refused(lambda path=path: open_candidate(some, CONFIG, path), path, field, words)
    refused(lambda: open_candidate(some, CONFIG, tmp_path / "x.yaml"), tmp_path / "x.yaml", None, "cannot be opened")


def test_json_needs_no_yaml(some, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    assert open_candidate(some, CONFIG, write_map(tmp_path / "map.json", GOOD)).tensors
    path = tmp_path / "map.yaml"
    path.write_text("{}")
    refused(lambda: open_candidate(some, CONFIG, path), path, None, "PyYAML is not installed")


@given(st.text(st.sampled_from("{}[]:,-&*!<'\"\n a0|>?#%@`~.") | st.characters(), max_size=60))
def test_no_text_breaks_the_reader_of_maps(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp() / "texts"
    folder.mkdir(exist_ok=True)
    path = folder / "map.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(GoldenError) as caught:
        open_candidate(folder, CONFIG, path)
    assert str(caught.value).isprintable()


def test_names_that_two_entries_fit(some, tmp_path):
    values = {"tensors": {"blk.{layer}.attn_q": "self_attn.q_proj", "blk.0.attn_{layer}q": "mlp.act", "norm": NORM}}
    assert open_candidate(some, CONFIG, write_map(tmp_path / "map.json", values)).tensors
    values = {"tensors": {"blk.{layer}.attn_q": "self_attn.k_proj", "blk.0.attn_q": Q}}
    path = write_map(tmp_path / "map.json", values)
    field = "tensors.blk.{layer}.attn_q"
    refused(lambda: open_candidate(some, CONFIG, path), path, field, "matches blk.0.attn_q, and so does blk.0.attn_q")


def test_names_that_are_right_need_no_entry(some, tmp_path):
    write(some, {"lm_head.npy": TAPS["prompt", "lm_head"]})
    name_map = write_map(tmp_path / "map.json", GOOD)
    assert ("prompt", "lm_head") in open_candidate(some, CONFIG, name_map).tensors
    write(some, {"model.norm.npy": TAPS["prompt", NORM]})
    refused(lambda: open_candidate(some, CONFIG, name_map), some, NORM, "as model.norm.npy, and as norm.npy")
    swapped = write_map(tmp_path / "map.json", {"tensors": {"model.norm": "lm_head", "lm_head": "model.norm"}})
    got = open_candidate(some, CONFIG, swapped).tensors["prompt", "lm_head"]()
    assert np.array_equal(got, TAPS["prompt", NORM])


def test_numbers_of_layers(tmp_path):
    for value, number in enumerate(("0", "01", "2", "3", "x", "-1", "²")):
        write(tmp_path, {f"blk.{number}.q.npy": np.full((5, 80), value, np.float32)})
    name_map = write_map(tmp_path / "map.json", {"tensors": {"blk.{layer}.q": "self_attn.q_proj"}, "first_layer": 1})
    candidate = open_candidate(tmp_path, CONFIG, name_map)
    assert {tap: load()[0, 0] for (_, tap), load in candidate.tensors.items()} == {
        Q: 1,
        "model.layers.1.self_attn.q_proj": 2,
    }
    unknown = {"map.json"} | {f"blk.{n}.q.npy" for n in ("0", "3", "x", "-1", "²")}
    assert set(candidate.unknown) == unknown


LOADS = {
    "another number of axes": ({"transpose": [0, 2, 1]}, (5, 80), "has 2 axes [5, 80]; transpose lists 3"),
    "half of the heads": ({"permute": "pairs-to-halves"}, (5, 40), "shape [5, 40], but its last axes must make up 80"),
    "heads before tokens": ({"permute": "pairs-to-halves"}, (10, 5, 8), "last axes must make up 80 values"),
    "no axes at all": ({"permute": "pairs-to-halves"}, (), "last axes must make up 80 values"),
    "no values": ({"permute": "pairs-to-halves"}, (5, 0), "last axes must make up 80 values"),
    "two sequences": ({"rows": "last"}, (2, 5, 80), "shape [2, 5, 80], where rows needs [tokens, 80]"),
    "no rows": ({"rows": "last"}, (0, 80), "where rows needs [tokens, 80]"),
}


@pytest.mark.parametrize("case", LOADS)
def test_tensors_that_the_map_does_not_fit(case, tmp_path):
    options, shape, words = LOADS[case]
    name_map = write_map(tmp_path / "m.json", {"tensors": {"q{layer}": {"tap": "self_attn.q_proj"} | options}})
    write(tmp_path, {"q0.npy": np.zeros(shape, np.float32)})
    refused(open_candidate(tmp_path, CONFIG, name_map).tensors["prompt", Q], tmp_path / "q0.npy", None, words)
    np.savez(tmp_path / "x.npz", q0=np.zeros(shape, np.float32))
    refused(open_candidate(tmp_path / "x.npz", CONFIG, name_map).tensors["prompt", Q], tmp_path / "x.npz", "q0", words)


def test_heads_that_are_not_what_they_should_repeat(tmp_path):
    """Tiled heads are a mistake of theirs: taking every fifth would hide it. NaN is a copy of NaN."""
    k = TAPS["prompt", "model.layers.0.self_attn.k_rope"].copy()
    k[0, 0, 0] = np.nan
    name_map = write_map(
        tmp_path / "map.json", {"tensors": {"k{layer}": {"tap": "self_attn.k_rope", "repeated": True}}}
    )
    path = tmp_path / "k0.npy"
    key = ("prompt", "model.layers.0.self_attn.k_rope")
    write(tmp_path, {"k0.npy": np.repeat(k, CONFIG.G, axis=1)})
    got = fit(open_candidate(tmp_path, CONFIG, name_map).tensors[key](), k.shape)[0]
    assert np.array_equal(got, k, equal_nan=True)
    write(tmp_path, {"k0.npy": np.tile(k, (1, CONFIG.G, 1))})
    load = open_candidate(tmp_path, CONFIG, name_map).tensors[key]
    refused(load, path, None, "is mapped as repeated 5 times, but head 1 is no copy of head 0")
    last = np.repeat(k, CONFIG.G, axis=1)
    last[-1, -1, -1] += 1
    write(tmp_path, {"k0.npy": last})
    refused(load, path, None, "head 9 is no copy of head 5")


def test_scale_of_float16_is_taken_in_float32(tmp_path):
    values = {"tensors": {"norm": {"tap": NORM, "scale": 3e4}}}
    write(tmp_path, {"norm.npy": np.full((5, 24), 7, np.float16)})
    got = open_candidate(tmp_path, CONFIG, write_map(tmp_path / "map.json", values)).tensors["prompt", NORM]()
    assert got.dtype == np.float32
    assert (got == 210_000).all()
    write(tmp_path, {"norm.npy": np.full((5, 24), 0.1)})
    got = open_candidate(tmp_path, CONFIG, tmp_path / "map.json").tensors["prompt", NORM]()
    assert got.dtype == np.float64
    assert (got == 3e4 * 0.1).all()


@pytest.mark.parametrize("shape", ["full", "one row", "one row of three axes"])
@pytest.mark.parametrize("kind", ["scores", "probs"])
def test_the_last_row_of_scores(kind, shape, tmp_path):
    tap = f"model.layers.1.self_attn.{kind}"
    whole = TAPS["prompt", tap]
    stored = {"full": whole[None], "one row": whole[:, -1], "one row of three axes": whole[:, -1:]}[shape]
    values = {"tensors": {"s{layer}": {"tap": f"self_attn.{kind}", "rows": "last"}}}
    write(tmp_path, {"s1.npy": stored})
    got = open_candidate(tmp_path, CONFIG, write_map(tmp_path / "map.json", values)).tensors["prompt", tap]()
    assert np.array_equal(got, whole[:, -1:])
    for bad in (np.zeros(5), np.zeros((2, 10, 5, 5)), np.zeros((10, 0, 5))):
        write(tmp_path, {"s1.npy": bad})
        with pytest.raises(GoldenError, match=r"rows: last needs \[10, tokens, keys\]"):
            open_candidate(tmp_path, CONFIG, tmp_path / "map.json").tensors["prompt", tap]()


def test_names_of_phases(tmp_path):
    phases = {"prompt": "step_0", "decode": "step_{n}", "first": 1}
    names = {"step_0": 0, "step_1": 1, "step_02": 2, "step_x": 3, "step_": 4, "prompt": 5, "decode-0": 6}
    for name, value in names.items():
        write(tmp_path, {f"{name}/norm.npy": np.full((1, 24), value, np.float32)})
    write_safetensors(tmp_path / "step_7.safetensors", {"norm": np.full((1, 24), 7)}, "F32")
    name_map = write_map(tmp_path / "map.json", {"tensors": {"norm": NORM}, "phases": phases})
    candidate = open_candidate(tmp_path, CONFIG, name_map)
    wanted = {"prompt": 0, "decode-0": 1, "decode-1": 2, "decode-6": 7}
    assert {phase: load()[0, 0] for (phase, _), load in candidate.tensors.items()} == wanted
    assert set(candidate.unknown) == {"step_x/", "step_/", "prompt/", "decode-0/", "map.json"}

    path = tmp_path / "x.npz"
    np.savez(path, **{"step_1/norm": np.zeros((1, 24)), "step_0/norm": np.ones((1, 24)), "step_x/norm": np.zeros(1)})
    candidate = open_candidate(path, CONFIG, name_map)
    assert {phase: load()[0, 0] for (phase, _), load in candidate.tensors.items()} == {"prompt": 1, "decode-0": 0}
    assert candidate.unknown == ("step_x/norm",)


def test_ids_by_another_name(tmp_path):
    write(tmp_path, {"p/norm.npy": TAPS["prompt", NORM], "p/inp_tokens.npy": IDS[:5], "s9/inp_tokens.npy": IDS[5:6]})
    values = {
        "tensors": {"norm": NORM},
        "token_ids": "inp_tokens",
        "phases": {"prompt": "p", "decode": "s{n}", "first": 9},
    }
    candidate = open_candidate(tmp_path, CONFIG, write_map(tmp_path / "map.json", values))
    assert candidate.token_ids == IDS[:6]
    assert candidate.unknown == ("map.json",)


# --- a map says how tensors were laid out, and undoes it ---


class Layout:
    """Lays taps out in ways that the map's options name, each written here by itself, and from the other side."""

    def __init__(self, draw, config):
        self.draw = draw
        self.config = config

    def chance(self):
        return self.draw(st.integers(0, 2)) == 0

    def piece(self, tap):
        """-> (options, function from the tap's flat rows [T, n] to stored ones)"""
        kind, config = split_name(tap)[1], self.config
        options, steps = {}, []
        letter = letters(tap)
        if self.chance():
            options["scale"] = self.draw(st.sampled_from([0.5, 4, -2]))
            steps.append(lambda x: x / options["scale"])
        if "S" in letter:
            return options, steps
        if kind in (COS, SIN) and self.chance():
            options["half"] = True
            steps.append(lambda x: x[:, : config.E // 2])
        elif (kind in (COS, SIN) or kind.startswith(("self_attn.q", "self_attn.k"))) and self.chance():
            options["permute"] = "pairs-to-halves"
            order = np.arange(config.E).reshape(2, -1).T.ravel()  # 0, E/2, 1, E/2 + 1, ...
            steps.append(lambda x: np.concatenate([h[:, order] for h in np.split(x, x.shape[1] // config.E, 1)], 1))
        if letter[-1] in ("K*E", "E") and "K" in "".join(letter) and self.chance():
            options["repeated"] = True
            steps.append(lambda x: np.repeat(x.reshape(len(x), -1, config.E), config.G, axis=1).reshape(len(x), -1))
        return options, steps

    def fuse(self, parts, layout):
        """Rows of several taps -> rows of one tensor"""
        if layout == "interleaved":
            return np.stack(parts, axis=-1).reshape(len(parts[0]), -1)
        if layout == "groups":
            parts = [np.split(part, self.config.K, axis=1) for part in parts]
            return np.concatenate([one for group in zip(*parts, strict=True) for one in group], axis=1)
        return np.concatenate(parts, axis=1)

    def whole(self, headed, has_keys):
        """-> (options, function from (phase, rows) to the stored array)"""
        options, steps = {}, []
        rows = self.draw(st.sampled_from([None, None, "last"] + ["cache"] * (not has_keys)))
        if rows:
            options["rows"] = rows
        if headed and self.chance():
            steps.append(lambda x: x.reshape(len(x), -1, self.config.E))
        rank = 3 if has_keys else 2 + len(steps)
        if self.chance():
            steps.append(lambda x: x[None])
            rank += 1
        if self.chance():
            axes = self.draw(st.permutations(range(rank)))
            options["transpose"] = axes
            steps.append(lambda x: np.transpose(x, np.argsort(axes)))
        reverse = self.draw(st.sampled_from([None, True, "axes", "shape"]))
        if reverse:
            options["reverse"] = reverse
            steps.append((lambda x: x.reshape(x.shape[::-1])) if reverse == "shape" else (lambda x: x.T))

        def store(phase, x):
            tokens = 1 if has_keys else 0
            if rows == "last" and self.draw(st.booleans()):
                x = np.take(x, [-1], axis=tokens)
            elif rows == "cache" and phase != "prompt":
                x = np.concatenate([np.full((3, x.shape[1]), np.float32(np.nan)), x])
            for step in steps:
                x = step(x)
            return np.asarray(x, order=self.draw(st.sampled_from("CF")))

        return options, store

    def entries(self):
        """-> [(taps, relative names, options of the tensor, function from (phase, taps) to the stored array)]"""
        draw = self.draw
        families = [[op.tap] for op in LAYER] + [[tap] for tap in tap_names(self.config) if split_name(tap)[0] is None]
        if draw(st.booleans()):
            families += [draw(st.permutations([f"self_attn.{x}_proj" for x in "qkv"]))]
        if draw(st.booleans()):
            families += [draw(st.permutations(["mlp.gate_proj", "mlp.up_proj"]))]
        if draw(st.booleans()):
            families += [["self_attn.k_rope", "self_attn.v_matmul"], ["resid_pre", "mlp.act", "resid_mid"]]
        fused = {tap for family in families if len(family) > 1 for tap in family}
        return [self.entry(family) for family in families if len(family) > 1 or family[0] not in fused]

    def entry(self, family):
        pieces = [self.piece(tap) for tap in family]
        headed = all(set("".join(letters(tap))) & set("HK") for tap in family)
        has_keys = "S" in letters(family[0])
        options, store = self.whole(headed and not has_keys, has_keys)
        layout = "concat"
        if len(family) == 1:
            options |= {"tap": family[0]} | pieces[0][0]
        else:
            possible = ["concat"] + ["groups"] * headed
            if family[0].startswith("mlp") and family[1].startswith("mlp"):
                possible.append("interleaved")
            layout = self.draw(st.sampled_from(possible))
            options["split"] = [{"tap": tap} | pieces[i][0] for i, tap in enumerate(family)]
            options |= {"layout": layout} if layout != "concat" else {}

        def stored(phase, arrays):
            parts = []
            for array, (_, steps) in zip(arrays, pieces, strict=True):
                x = array if has_keys else array.reshape(len(array), -1)
                for step in steps:
                    x = step(x)
                parts.append(x)
            return store(phase, parts[0] if len(parts) == 1 else self.fuse(parts, layout))

        return family, options, stored


@settings(max_examples=settings.default.max_examples // 2)
@given(st.data())
def test_tensors_laid_out_by_a_random_map_come_back(tmp_path_factory, data):
    config = Config.from_dict(data.draw(configs()) | {"num_hidden_layers": 2, "layer_types": None})
    length, decode = data.draw(st.integers(1, 7)), data.draw(st.integers(0, 2))
    phases = phases_of([1] * (length + decode), decode)
    taps = random_taps(config, phases, data.draw(st.integers(0, 99)))
    for (phase, tap), array in taps.items():
        if tap in (COS, SIN):
            taps[phase, tap] = np.tile(array[:, : config.E // 2], 2)
    first_layer, first = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 3))
    names, tensors, stored = {}, {}, {}
    for i, (family, options, store) in enumerate(Layout(data.draw, config).entries()):
        in_layers = family[0] in {op.tap for op in LAYER}
        pattern = f"t{i}.{{layer}}/x" if in_layers else f"t{i}"
        short = set(options) == {"tap"} and data.draw(st.booleans())
        names[pattern] = options["tap"] if short else options
        for phase in phases:
            for layer in range(config.L) if in_layers else [0]:
                full = [absolute(layer, tap) for tap in family]
                key = f"s{phase.start and first + phase.start - length}/" + pattern.replace(
                    "{layer}", str(layer + first_layer)
                )
                stored[key] = store(phase.name, [taps[phase.name, tap] for tap in full])
                tensors |= {(phase.name, tap): options.get("rows") for tap in full}

    folder = tmp_path_factory.mktemp("map", numbered=True)
    suffix = data.draw(st.sampled_from([".json", ".yaml"]))
    values = {
        "tensors": names,
        "first_layer": first_layer,
        "phases": {"prompt": "s0", "decode": "s{n}", "first": first},
    }
    name_map = write_map(folder / f"map{suffix}", values)
    if data.draw(st.booleans()):
        source = folder / "x.npz"
        np.savez(source, **stored)
    else:
        source = folder / "x.safetensors"
        write_safetensors(source, stored, "F32")
    candidate = open_candidate(source, config, name_map)
    assert set(candidate.tensors) == set(tensors)
    assert candidate.unknown == ()
    for phase in phases:
        for tap in tap_names(config):
            got, wanted = candidate.tensors[phase.name, tap](), taps[phase.name, tap]
            if tensors[phase.name, tap] == "last":
                wanted = np.take(wanted, [-1], axis=letters(tap).index("T"))
            assert np.array_equal(fit(got, wanted.shape)[0], wanted), (phase.name, tap, values)


# --- running torch models ---


def phases_and_spec(values, decode=2, seed=0, count=9, **kwargs):
    """-> (config, weights, phases, {(phase, tap): what the spec says})"""
    config = Config.from_dict(values)
    weights = random_weights(config, seed)
    phases = phases_of(np.random.default_rng(seed).integers(0, config.V, count).tolist(), decode)
    wanted, cache = {}, None
    for phase in phases:
        taps, cache = hf.spec_taps(forward, config, weights, phase.ids, cache, **kwargs)
        wanted |= {(phase.name, tap): array for tap, array in taps.items()}
    return config, weights, phases, wanted


def close(got, wanted):
    finite = np.isfinite(wanted)
    assert got.shape == wanted.shape
    assert np.array_equal(got[~finite], wanted[~finite])
    assert hf.nmse(got[finite], wanted[finite]) < 1e-10


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("windowed", [False, True])
def test_hooks_on_hugging_face(attention, windowed):
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1} if windowed else {}
    values = config_values(**window)
    config, weights, phases, wanted = phases_and_spec(values)
    model = hf.build(config, values, weights)
    model.set_attn_implementation(attention)
    candidate = torch_taps(model, phases)
    if attention == "sdpa":
        wanted = {key: array for key, array in wanted.items() if not key[1].endswith(("scores", "probs"))}
    assert set(candidate.tensors) == set(wanted)
    for key, load in candidate.tensors.items():
        assert load().dtype == np.float32
        keys = load().shape[-1] if key[1].endswith(("scores", "probs")) else None  # a sliding cache forgets others
        close(load(), wanted[key][..., -keys:] if keys else wanted[key])
    assert list(candidate.token_ids) == [token for phase in phases for token in phase.ids]
    assert (candidate.source, candidate.precision) == ("Qwen2ForCausalLM", {"": "fp32"})
    notes = []
    if attention == "sdpa":
        notes = ["sdpa attention has no scores and probabilities to look at; eager has"]
    assert list(candidate.notes) == notes


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float64, None)])
def test_hooks_on_other_types(dtype, name):
    config, weights, phases, wanted = phases_and_spec(VALUES)
    candidate = torch_taps(hf.build(config, VALUES, weights, dtype), phases)
    assert candidate.precision == ({"": name} if name else {})
    assert set(candidate.tensors) == set(wanted)
    for key, load in candidate.tensors.items():
        got, right = load(), wanted[key]
        assert got.dtype == (np.float32 if name else np.float64)
        finite = np.isfinite(right)
        assert hf.nmse(got[finite], right[finite]) < (1e-3 if name else 1e-10), key


def test_a_model_of_two_types_declares_none():
    config, weights, phases, _ = phases_and_spec(VALUES, decode=0)
    model = hf.build(config, VALUES, weights)
    model.lm_head.double()
    model.lm_head.register_forward_pre_hook(lambda m, args: (args[0].double(),))
    candidate = torch_taps(model, phases)
    assert candidate.precision == {}
    assert "parameters are of torch.float32 and torch.float64: none is declared" in candidate.notes
    assert candidate.tensors["prompt", "lm_head"]().dtype == np.float64


def test_only_some_taps():
    config, weights, phases, wanted = phases_and_spec(VALUES)
    candidate = torch_taps(hf.build(config, VALUES, weights), phases, taps=("*.1.mlp.*", "lm_head"))
    assert set(candidate.tensors) == {key for key in wanted if ".1.mlp." in key[1] or key[1] == "lm_head"}


def test_hooks_leave_nothing_behind():
    """Not even when the model fails in the middle of its attention."""
    config, weights, phases, wanted = phases_and_spec(VALUES)
    model = hf.build(config, VALUES, weights)
    rotate, softmax = modeling_qwen2.apply_rotary_pos_emb, torch.nn.functional.softmax

    def untouched():
        hooks = [m._forward_hooks or m._forward_pre_hooks for m in model.modules()]
        same = (modeling_qwen2.apply_rotary_pos_emb, torch.nn.functional.softmax) == (rotate, softmax)
        return same and not any(hooks) and not torch.overrides._get_current_function_mode_stack()

    torch_taps(model, phases)
    assert untouched()
    true_forward = model.model.layers[1].self_attn.o_proj.forward

    def broken(*_):
        raise RuntimeError("broken")

    model.model.layers[1].self_attn.o_proj.forward = broken
    with pytest.raises(RuntimeError, match="broken"):
        torch_taps(model, phases)
    assert untouched()
    model.model.layers[1].self_attn.o_proj.forward = true_forward
    close(torch_taps(model, phases).tensors["decode-1", "lm_head"](), wanted["decode-1", "lm_head"])


def test_attention_that_turns_its_heads_by_other_code(monkeypatch):
    config, weights, phases, wanted = phases_and_spec(VALUES, decode=0)
    model = hf.build(config, VALUES, weights)
    monkeypatch.setattr(torch_hooks, "_ROTATE", "of_another_name")
    missing = {key for key in wanted if key[1].endswith("_rope")}
    assert set(torch_taps(model, phases).tensors) == set(wanted) - missing


def test_projections_that_are_no_matrices():
    """A quantised one, say: its product before the bias cannot be had."""
    config, weights, phases, wanted = phases_and_spec(VALUES, decode=0)
    model = hf.build(config, VALUES, weights)

    class Quantised(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.inner = [linear]

        def forward(self, x):
            return self.inner[0](x)

    attn = model.model.layers[0].self_attn
    attn.q_proj = Quantised(attn.q_proj)
    assert set(wanted) - set(torch_taps(model, phases).tensors) == {("prompt", "model.layers.0.self_attn.q_matmul")}


def test_what_torch_taps_refuses(tmp_path):
    config, weights, phases, _ = phases_and_spec(VALUES)
    model = hf.build(config, VALUES, weights)
    for bad in ((), phases[1:], phases[::2]):
        with pytest.raises(UsageError, match="phases: must begin at position 0"):
            torch_taps(model, bad)
    with pytest.raises(UsageError, match="model: Linear is not built like Qwen2ForCausalLM; give a name map"):
        torch_taps(torch.nn.Linear(2, 2).eval(), phases)
    with pytest.raises(UsageError, match="training mode"):
        torch_taps(model.train(), phases)
    name_map = write_map(tmp_path / "map.json", GOOD)
    with pytest.raises(UsageError, match="config: is needed with a name map"):
        torch_taps(model.eval(), phases, name_map=name_map, call=print)
    with pytest.raises(UsageError, match="call: is needed with a name map"):
        torch_taps(model.eval(), phases, name_map=name_map, config=config)


class Attention(torch.nn.Module):
    """One fused projection, in groups; RoPE on neighbours."""

    def __init__(self, config, weights, layer):
        super().__init__()
        path = f"model.layers.{layer}.self_attn"
        self.config = config
        order = self.pair_up(config)

        def joined(kind):
            rows = []
            for k in range(config.K):
                for name, heads in (("q", range(k * config.G, (k + 1) * config.G)), ("k", [k]), ("v", [k])):
                    w = weights[f"{path}.{name}_proj.{kind}"].reshape(-1, config.E, *([24] * (kind == "weight")))
                    rows += [w[h][order] if name in "qk" else w[h] for h in heads]
            return torch.nn.Parameter(torch.from_numpy(np.concatenate(rows)))

        self.wqkv = torch.nn.Linear(1, 1)
        self.wqkv.weight, self.wqkv.bias = joined("weight"), joined("bias")
        self.wo = torch.nn.Linear(1, 1, bias=False)
        self.wo.weight = torch.nn.Parameter(torch.from_numpy(weights[f"{path}.o_proj.weight"]))

    @staticmethod
    def pair_up(config):
        return np.arange(config.E).reshape(2, -1).T.ravel()

    def forward(self, x, past):
        c = self.config
        qkv = self.wqkv(x).view(x.shape[1], c.K, c.G + 2, c.E)
        q, k, v = qkv[:, :, : c.G].reshape(-1, c.H, c.E), qkv[:, :, c.G], qkv[:, :, c.G + 1]
        start = 0 if past is None else len(past[0])
        inv = c.rope.theta ** (-torch.arange(0, c.E, 2, dtype=torch.float64) / c.E)
        angles = (torch.arange(start, start + len(q))[:, None] * inv)[:, None]

        def turn(y):
            turned = torch.view_as_complex(y.double().reshape(*y.shape[:-1], -1, 2)) * torch.polar(
                angles * 0 + 1, angles
            )
            return torch.view_as_real(turned).reshape(y.shape).float()

        q, k = turn(q), turn(k)
        if past is not None:
            k, v = torch.cat([past[0], k]), torch.cat([past[1], v])
        full = [y.repeat_interleave(c.G, dim=1).transpose(0, 1) for y in (k, v)]
        mask = torch.ones(len(q), len(k), dtype=torch.bool).tril(start)
        mixed = torch.nn.functional.scaled_dot_product_attention(q.transpose(0, 1), *full, attn_mask=mask)
        return self.wo(mixed.transpose(0, 1).reshape(1, len(q), -1)), (k, v)


class Mlp(torch.nn.Module):
    """Gate and up in one matrix, row by row in turn."""

    def __init__(self, weights, layer):
        super().__init__()
        parts = [weights[f"model.layers.{layer}.mlp.{name}_proj.weight"] for name in ("gate", "up")]
        self.w13, self.w2 = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
        self.w13.weight = torch.nn.Parameter(torch.from_numpy(np.stack(parts, 1).reshape(-1, parts[0].shape[1])))
        self.w2.weight = torch.nn.Parameter(torch.from_numpy(weights[f"model.layers.{layer}.mlp.down_proj.weight"]))

    def forward(self, x):
        both = self.w13(x)
        return self.w2(torch.nn.functional.silu(both[..., ::2]) * both[..., 1::2])


class Own(torch.nn.Module):
    """A model of the architecture that shares no code with Hugging Face."""

    def __init__(self, config, weights):
        super().__init__()

        def norm(name):
            module = torch.nn.RMSNorm(config.D, config.rms_norm_eps)
            module.weight = torch.nn.Parameter(torch.from_numpy(weights[f"{name}.weight"]))
            return module

        self.table = torch.nn.Embedding.from_pretrained(torch.from_numpy(weights["model.embed_tokens.weight"]))
        paths = [f"model.layers.{i}" for i in range(config.L)]
        self.h = torch.nn.ModuleList(
            torch.nn.ModuleDict(
                {
                    "n1": norm(f"{path}.input_layernorm"),
                    "attn": Attention(config, weights, i),
                    "n2": norm(f"{path}.post_attention_layernorm"),
                    "mlp": Mlp(weights, i),
                }
            )
            for i, path in enumerate(paths)
        )
        self.n = norm("model.norm")
        self.out = torch.nn.Linear(1, 1, bias=False)
        self.out.weight = torch.nn.Parameter(torch.from_numpy(weights["lm_head.weight"]))

    def step(self, ids, cache):
        x, longer = self.table(ids), []
        for i, block in enumerate(self.h):
            mixed, kv = block["attn"](block["n1"](x), cache[i] if cache else None)
            longer.append(kv)
            x = x + mixed
            x = x + block["mlp"](block["n2"](x))
        self.out(self.n(x)[:, -1:])
        return longer


OWN = """
first_layer: 0
tensors:
  table: model.embed_tokens
  h.{layer}.n1:input: resid_pre
  h.{layer}.n1: input_layernorm
  h.{layer}.attn.wqkv:
    layout: groups
    split:
      - {tap: self_attn.q_proj, permute: pairs-to-halves}
      - {tap: self_attn.k_proj, permute: pairs-to-halves}
      - self_attn.v_proj
  h.{layer}.attn.wo:input: self_attn.heads
  h.{layer}.attn: self_attn.o_proj
  h.{layer}.n2:input: resid_mid
  h.{layer}.n2: post_attention_layernorm
  h.{layer}.mlp.w13: {split: [mlp.gate_proj, mlp.up_proj], layout: interleaved}
  h.{layer}.mlp.w2:input: mlp.act
  h.{layer}.mlp: mlp.down_proj
  n: {tap: model.norm}
  out: lm_head
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.yaml").write_text(OWN)
    config, weights, phases, wanted = phases_and_spec(VALUES)
    return Own(config, weights).eval(), config, phases, wanted, tmp_path / "own.yaml"


def test_hooks_on_a_model_of_ones_own(own):
    model, config, phases, wanted, name_map = own
    candidate = torch_taps(model, phases, name_map=name_map, config=config, call=model.step)
    inner = {op.tap for op in LAYER} - {f"self_attn.{x}_matmul" for x in "qkv"}
    inner -= {f"self_attn.{x}" for x in ("q_rope", "k_rope", "scores", "probs")} | {"resid_post"}
    taps = {absolute(layer, tap) for layer in range(2) for tap in inner} | {"model.embed_tokens", NORM, "lm_head"}
    assert set(candidate.tensors) == {(phase.name, tap) for phase in phases for tap in taps}
    for key, load in candidate.tensors.items():
        got, last = fit(load(), wanted[key].shape)
        close(got, wanted[key][-1:] if last else wanted[key])
    assert candidate.source == "Own"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    few = torch_taps(model, phases, name_map=name_map, config=config, call=model.step, taps=("lm_head",))
    assert set(few.tensors) == {(phase.name, "lm_head") for phase in phases}


def test_what_hooks_on_a_model_of_ones_own_refuse(own):
    model, config, phases, _, name_map = own

    def taps(call=model.step):
        return torch_taps(model, phases, name_map=name_map, config=config, call=call)

    def twice(ids, cache):
        model.step(ids, cache)
        return model.step(ids, cache)

    refused(lambda: taps(twice), name_map, "tensors.table", "ran twice in prompt, so it cannot be model.embed_tokens")
    model.n.register_forward_hook(lambda m, args, result: {"x": result})
    model.out.register_forward_pre_hook(lambda m, args: (args[0]["x"],) if isinstance(args[0], dict) else None)
    model.step = lambda ids, cache: model.n(model.table(ids))
    refused(lambda: taps(model.step), name_map, "tensors.n", "is no tensor, but a dict")
    name_map.write_text("tensors: {x: model.norm}")
    refused(taps, name_map, "tensors", "none is a module of this model, whose first are table, h, h.0")
    name_map.write_text("tensors: {table: {tap: model.norm, transpose: [0, 1]}}")
    refused(taps, name_map, "tensors.table", "has 3 axes [1, 7, 24]; transpose lists 2")
    assert not any(m._forward_pre_hooks for name, m in model.named_modules() if name != "out")
