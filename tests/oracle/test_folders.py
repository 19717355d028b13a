"""Folders and archives: every tap comes back, bit by bit; token ids and precision."""

import json
import tracemalloc
import zipfile

import numpy as np
import pytest

from qwq_ref.config import Config
from qwq_ref.errors import UsageError
from qwq_ref.formats.write import write_safetensors
from qwq_ref.oracle.adapters.candidate import fit
from qwq_ref.oracle.adapters.folders import open_candidate
from qwq_ref.oracle.graph import (
    tap_names,
)
from qwq_ref.oracle.packs.record import record
from qwq_ref.spec.ops import to_bf16
from tests.support.candidates import (
    CONFIG,
    IDS,
    NORM,
    PHASES,
    TAPS,
    Q,
    by_phase,
    header,
    in_npy,
    in_safetensors,
    npy,
    refused,
    write,
    write_map,
)
from tests.support.models import config_values, random_weights
from tests.support.processes import open_below


def flat_npy(folder, taps):
    names = {(phase, tap): tap if phase == "prompt" else f"{phase}/{tap}" for phase, tap in taps}
    return write(folder, {f"{names[key]}.npy": array for key, array in taps.items()})


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
    """A pack gives its ids and whole taps. A note names the statistics and sketches, which are left out."""
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
    """ml_dtypes saves it as two bytes without a type."""
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
    """The comparison refuses them later."""
    write(tmp_path, {f"{Q}.npy": np.ones(shape)})
    assert open_candidate(tmp_path, CONFIG).tensors["prompt", Q]().shape == shape


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_opening_reads_no_tensor(writer, tmp_path):
    """The source has eight megabytes; opening it takes almost no memory."""
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
    for writer in WRITERS:
        (tmp_path / writer.__name__).mkdir()
        candidate = open_candidate(writer(tmp_path / writer.__name__, TAPS), CONFIG)
        loads = list(candidate.tensors.values())
        del candidate
        assert loads[-1]().size
        del loads
        assert not open_below(tmp_path)


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
    """The caller overrides the map, which overrides the manifest. A precision may be by tap."""
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
