"""Recording: the contents of a pack, the choice of taps, and interrupted calls, which leave nothing behind."""

import dataclasses
import errno
import hashlib
import json
import math

import numpy as np
import pytest

from qwq_ref import spec
from qwq_ref.config import Config
from qwq_ref.errors import (
    FileError,
    MemoryLimitError,
    UsageError,
)
from qwq_ref.footprint import parameters
from qwq_ref.formats import Checkpoint
from qwq_ref.formats.write import SafetensorsStream
from qwq_ref.host import memory
from qwq_ref.oracle import Golden, compare
from qwq_ref.oracle.distance import error
from qwq_ref.oracle.graph import (
    UNIT,
    shape_of,
    tap_names,
)
from qwq_ref.oracle.packs import record as record_module
from qwq_ref.oracle.packs.manifest import stored_shape
from qwq_ref.oracle.packs.record import record
from tests.support.models import (
    yarn,
)
from tests.support.packs import (
    CONFIG,
    DECODE,
    IDS,
    PHASES,
    PRECISIONS,
    VALUES,
    WEIGHTS,
    contents,
    interrupt,
    loud,
    manifest_of,
    refused,
    spec_run,
    truth,
)


def test_what_was_recorded_is_read_again(recorded):
    with Golden.open(recorded) as golden:
        golden.verify()
        manifest = golden.manifest
        assert (manifest.config, manifest.phases, manifest.token_ids) == (CONFIG, PHASES, IDS)
        assert (manifest.model, golden.model_path) == ("", recorded / "model")
        assert manifest.sizes == dict.fromkeys(tap_names(CONFIG), "full")
        assert golden.nbytes() == 4 * sum(math.prod(shape_of(t, CONFIG, p)) for t in tap_names(CONFIG) for p in PHASES)
        for phase in PHASES:
            for tap, right in truth()[phase.name].items():
                value = golden.read(phase.name, tap)
                assert value.dtype == np.float32
                assert error(value, right) <= 2**-24, tap
                if tap.endswith("scores"):
                    visible = spec.causal_mask(phase.T, phase.S)
                    assert np.array_equal(np.isneginf(value), np.broadcast_to(~visible, value.shape))
                else:
                    assert np.isfinite(value).all()
            with pytest.raises(KeyError):
                golden.read(phase.name, "nothing")
    values = json.loads((recorded / "manifest.json").read_text())
    assert values["rope"]["inv_freq_bits"] == [
        f"{int(bits):08x}" for bits in spec.rope_frequencies(CONFIG.rope, CONFIG.E).view(np.uint32)
    ]
    assert values["rope"]["attention_scaling"] == 1
    assert [entry["sha256"] for entry in values["phases"]] == [
        hashlib.sha256((recorded / f"{phase.name}.safetensors").read_bytes()).hexdigest() for phase in PHASES
    ]


def test_attention_scaling_is_in_the_manifest(tmp_path):
    config = Config.from_dict(VALUES | {"rope_scaling": yarn()})
    folder = record(config, loud(config), tmp_path / "pack", IDS, taps=["lm_head"])
    rope = json.loads((folder / "manifest.json").read_text())["rope"]
    assert rope["attention_scaling"] == pytest.approx(0.1 * math.log(4) + 1)
    assert rope["inv_freq_bits"] != json.loads(json.dumps(rope))["inv_freq_bits"][::-1]


def test_rounding_covers_the_spec_in_each_precision(tmp_path):
    """Without decode steps and in one block, the eager runs are bit-identical to the spec."""
    with Golden.open(record(CONFIG, WEIGHTS, tmp_path / "pack", IDS)) as golden:
        right = spec_run(CONFIG, WEIGHTS, golden.manifest.phases, np.float64)["prompt"]
        for precision, dtype in PRECISIONS.items():
            for tap, value in spec_run(CONFIG, WEIGHTS, golden.manifest.phases, dtype)["prompt"].items():
                measured = golden.manifest.rounding["prompt"][tap][precision]
                least = max(UNIT[precision], error(value, right[tap]))
                assert float(f"{least:.4g}") <= measured <= 10 * least, (precision, tap)


def test_steps_share_the_largest_rounding(recorded, tmp_path):
    """One token has few numbers: its own error may be small by chance."""
    rounding = manifest_of(recorded).rounding
    assert rounding["decode-0"] == rounding["decode-1"] != rounding["prompt"]
    alone = manifest_of(record(CONFIG, WEIGHTS, tmp_path / "pack", IDS[:-1], 1)).rounding["decode-0"]
    assert all(alone[tap][p] <= rounding["decode-0"][tap][p] * 1.5 for tap in alone for p in PRECISIONS)


@pytest.mark.parametrize("sizes", ["full", "sketch"])
def test_two_recordings_are_equal_byte_for_byte(tmp_path, sizes):
    options = {"sizes": sizes, "include_weights": True, "name": "x"}
    first, second = (contents(record(CONFIG, WEIGHTS, tmp_path / n, IDS, DECODE, **options)) for n in "ab")
    assert first == second
    assert len(first) == len(PHASES) + 3


def test_weights_are_digested_as_float32(recorded, tmp_path):
    """The digest does not depend on the stored type or on the blocks."""
    wanted = {name: hashlib.sha256(value.astype("<f4").tobytes()).hexdigest() for name, value in WEIGHTS.items()}
    assert manifest_of(recorded).weights == wanted
    with Checkpoint.open(recorded / "model") as checkpoint:
        assert checkpoint.dtypes.keys() == {"BF16"}
        again = record(CONFIG, checkpoint, tmp_path / "again", IDS, taps=["lm_head"], sizes="last")
    doubles = {name: value.astype(np.float64) for name, value in WEIGHTS.items()}
    doubled = record(CONFIG, doubles, tmp_path / "doubled", IDS, taps=["lm_head"])
    assert manifest_of(again).weights == manifest_of(doubled).weights == wanted


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_the_model_in_a_pack_is_the_model(tmp_path, dtype, tied):
    config = Config.from_dict(VALUES | {"tie_word_embeddings": tied})
    weights = loud(config)
    if dtype == "F32":
        weights["model.norm.weight"] = weights["model.norm.weight"] + np.float32(2**-20)
    done = []
    folder = record(config, weights, tmp_path / "pack", IDS, DECODE, include_weights=True, progress=done.append)
    with Checkpoint.open(folder / "model") as checkpoint:
        assert checkpoint.config == config
        assert checkpoint.dtypes.keys() == {dtype}
        assert all(np.array_equal(checkpoint[name], value) for name, value in weights.items())
    assert sum(done) == parameters(config)


def test_float16_that_overflows_has_no_rounding(tmp_path):
    """Published models overflow float16. Their packs are valid; those taps are not judged in float16."""
    weights = WEIGHTS | {"model.layers.0.mlp.down_proj.weight": 1e7 * WEIGHTS["model.layers.0.mlp.down_proj.weight"]}
    folder = record(CONFIG, weights, tmp_path / "pack", IDS, DECODE)
    values = json.loads((folder / "manifest.json").read_text())
    assert values["rounding"]["prompt"]["model.layers.0.resid_post"]["fp16"] is None
    assert values["rounding"]["prompt"]["model.layers.0.resid_post"]["bf16"] < 0.1
    assert values["rounding"]["prompt"]["model.layers.0.resid_mid"]["fp16"] < 0.1
    with Golden.open(folder) as golden:
        assert golden.manifest.rounding["decode-1"]["lm_head"]["fp16"] == math.inf
        assert golden.manifest.to_dict() == values
        report = compare(golden, folder, model=weights, precision="fp16", coverage=False)
        assert report.passed
        json.dumps(report.to_dict(), allow_nan=False)
        with np.errstate(all="ignore"):
            overflown = spec_run(CONFIG, weights, PHASES, "float16")
        assert compare(golden, overflown, model=weights).first.status == "nan"


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_weights_that_make_no_numbers_make_no_pack(tmp_path, value):
    weights = WEIGHTS | {"model.norm.weight": np.full(CONFIG.D, value, np.float32)}
    words = "is no number that float32 holds, in prompt"
    refused(lambda: record(CONFIG, weights, tmp_path / "pack", IDS), tmp_path / "pack", "model.norm", words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("after", [0, 5, 25])
@pytest.mark.parametrize("error_type", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_recording_leaves_nothing(tmp_path, error_type, after):
    with pytest.raises(error_type):
        record(CONFIG, WEIGHTS, tmp_path / "pack", IDS, progress=interrupt(error_type, after), include_weights=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("after", [0, 2, 40, 130])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, after):
    """The disk fills in the headers, in the tensors, or in the model."""
    full = interrupt(OSError, after, errno.ENOSPC, "No space left on device")
    write = SafetensorsStream._write
    monkeypatch.setattr(SafetensorsStream, "_write", lambda self, data: (full(), write(self, data)))
    with pytest.raises(FileError, match=r"pack: cannot be written \(No space left on device\)"):
        record(CONFIG, WEIGHTS, tmp_path / "pack", IDS, DECODE, include_weights=True)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_at_the_manifest_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(record_module, "write_manifest", interrupt(OSError, 0, errno.ENOSPC, "No space left on device"))
    with pytest.raises(FileError, match=r"pack: cannot be written \(No space left on device\)"):
        record(CONFIG, WEIGHTS, tmp_path / "pack", IDS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_exists_is_left_alone(tmp_path, kind):
    out = tmp_path / "pack"
    if kind == "folder":
        out.mkdir()
    elif kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="exists already"):
        record(CONFIG, WEIGHTS, out, IDS)
    assert list(tmp_path.iterdir()) == [out]
    assert not out.is_dir() or not list(out.iterdir())


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileError, match=r"cannot be written \(Not a directory\)"):
        record(CONFIG, WEIGHTS, tmp_path / "file" / "pack", IDS)
    record(CONFIG, WEIGHTS, tmp_path / "new" / "newer" / "pack", IDS, taps=["lm_head"])


def test_too_little_memory_is_told_before_anything_is_read_or_written(recorded, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "rows", interrupt(AssertionError, 0, "read"))
    with Checkpoint.open(recorded / "model") as checkpoint:
        with pytest.raises(MemoryLimitError, match=r"needs .* MiB are available"):
            record(CONFIG, checkpoint, tmp_path / "pack", IDS, max_memory=1 << 20)
        spare = memory.peak_bytes() + (20 << 20)
        with pytest.raises(AssertionError, match="read"):
            record(CONFIG, checkpoint, tmp_path / "pack", IDS, max_memory=spare)
        wide = dataclasses.replace(CONFIG, vocab_size=1 << 20)
        monkeypatch.setattr(record_module, "check_weights", lambda *_: "")
        with pytest.raises(MemoryLimitError, match="copying the weights"):
            record(wide, checkpoint, tmp_path / "pack", [1], include_weights=True, max_memory=spare)
    assert not list(tmp_path.iterdir())


USAGE = {
    "no tokens": ({"token_ids": []}, "token_ids", "at least one id below vocab_size 31"),
    "an id too large": ({"token_ids": [1, 31]}, "token_ids", "below vocab_size 31"),
    "a negative id": ({"token_ids": [-1]}, "token_ids", "below vocab_size 31"),
    "nothing but steps": ({"decode": len(IDS)}, "decode", "0 to 6, got 7"),
    "negative steps": ({"decode": -1}, "decode", "0 to 6, got -1"),
    "a size that is none": ({"sizes": "half"}, "size", "one of full, last, stats, sketch, got half"),
    "one of several": ({"sizes": {"lm_head": "full", "*": "all"}}, "size", "got all"),
    "a size of nothing": (
        {"sizes": {"MODEL.NORM": "last"}},
        "size",
        "MODEL.NORM matches no tap (did you mean model.norm?)",
    ),
    "a pattern of nothing": ({"taps": ["lm_head", "*.q_porj"]}, "taps", "*.q_porj matches no tap"),
    "a layer too many": ({"layers": [0, 2]}, "layers", "must be 0 to 1, got 2"),
    "a negative layer": ({"layers": [-1]}, "layers", "must be 0 to 1, got -1"),
    "nothing left": ({"taps": ["model.layers.0.*"], "layers": [1]}, "taps", "nothing to keep"),
    "too many steps": ({"token_ids": [1] * 10_000, "decode": 9_999}, "decode", "makes 10000 phases of 47 taps"),
    "a tensor missing": (
        {"weights": {name: value for name, value in WEIGHTS.items() if name != "model.norm.weight"}},
        "weights",
        "there is no model.norm.weight",
    ),
    "a tensor of another shape": (
        {"weights": WEIGHTS | {"model.norm.weight": np.ones(1, np.float32)}},
        "weights",
        "model.norm.weight has shape [1], and the config implies [12]",
    ),
}


@pytest.mark.parametrize("case", USAGE)
def test_impossible_options(tmp_path, case):
    options, field, words = USAGE[case]
    arguments = {"config": CONFIG, "weights": WEIGHTS, "out": tmp_path / "pack", "token_ids": IDS} | options
    with pytest.raises(UsageError) as caught:
        record(**arguments)
    assert caught.value.field == field
    assert words in caught.value.problem
    assert not list(tmp_path.iterdir())


OUTSIDE = [tap for tap in tap_names(CONFIG) if "layers" not in tap]
MLP = ["gate_proj", "up_proj", "act", "down_proj"]
KEPT = {
    "all": ({}, dict.fromkeys(tap_names(CONFIG), "full")),
    "one layer": (
        {"layers": [1]},
        dict.fromkeys([tap for tap in tap_names(CONFIG) if "layers.0" not in tap], "full"),
    ),
    "no layer": ({"layers": []}, dict.fromkeys(OUTSIDE, "full")),
    "patterns": (
        {"taps": ["*.q_rope", "lm_head"], "layers": {0}},
        {"model.layers.0.self_attn.q_rope": "full", "lm_head": "full"},
    ),
    "one size": ({"taps": ["lm_head"], "sizes": "stats"}, {"lm_head": "stats"}),
    "the first pattern that fits": (
        {"sizes": {"lm_head": "last", "*.mlp.*": "sketch", "*.act": "stats", "*": "full"}},
        dict.fromkeys(tap_names(CONFIG), "full")
        | {f"model.layers.{layer}.mlp.{name}": "sketch" for layer in (0, 1) for name in MLP}
        | {"lm_head": "last"},
    ),
    "what no pattern fits is kept whole": (
        {"taps": ["*.act", "model.norm"], "sizes": {"*.act": "stats"}},
        {"model.layers.0.mlp.act": "stats", "model.layers.1.mlp.act": "stats", "model.norm": "full"},
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_which_taps_are_kept_and_how(tmp_path, case):
    options, wanted = KEPT[case]
    with Golden.open(record(CONFIG, WEIGHTS, tmp_path / "pack", IDS, DECODE, **options)) as golden:
        assert golden.manifest.sizes == wanted
        assert list(golden.manifest.sizes) == [tap for tap in tap_names(CONFIG) if tap in wanted]
        for phase in PHASES:
            assert set(golden._files[phase.name].tensors) == set(wanted)
            for tap, size in wanted.items():
                assert golden.read(phase.name, tap).shape == stored_shape(tap, size, CONFIG, phase)
