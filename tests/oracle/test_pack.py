"""Golden packs: the table is the spec; packs say what they hold; what is broken is refused; vectors; `qwq golden`."""

import copy
import dataclasses
import errno
import functools
import hashlib
import io
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from qwq_ref import oracle, spec
from qwq_ref.cli import main
from qwq_ref.config import Config
from qwq_ref.errors import (
    CheckpointError,
    GoldenError,
    MemoryLimitError,
    UsageError,
)
from qwq_ref.footprint import parameters
from qwq_ref.formats import Checkpoint, resolve
from qwq_ref.formats.write import SafetensorsStream, write_json, write_safetensors
from qwq_ref.host import memory
from qwq_ref.oracle import Candidate, Golden, compare
from qwq_ref.oracle.distance import error
from qwq_ref.oracle.explain.mistakes import MISTAKES
from qwq_ref.oracle.graph import (
    UNIT,
    Arithmetic,
    letters,
    phases_of,
    shape_of,
    tap_names,
)

from qwq_ref.oracle.judge.metrics import MARGIN
from qwq_ref.oracle.packs import record as record_module
from qwq_ref.oracle.judge import vectors as judge_vectors
from qwq_ref.oracle.packs import shipped_models, vector_cases, vectors
from qwq_ref.oracle.packs.manifest import stored_shape
from qwq_ref.oracle.packs.record import record
from qwq_ref.oracle.packs.sizes import SIZES, reduce
from qwq_ref.oracle.walk import Stream, Weights, walk
from qwq_ref.spec import forward
from qwq_ref.spec.ops import to_bf16, to_fp16
from qwq_ref.text import load_tokenizer
from qwq_ref.text.template import load_chat_template
from tests.support import hf, refusals
from tests.support.models import (
    config_values,
    configs,
    random_weights,
    token_ids,
    yarn,
)
from tests.support.paths import DOCS

PRECISIONS = {"fp32": np.float32, "bf16": "bfloat16", "fp16": "float16"}  # as a pack names them, and as the spec does
EXACT = {
    np.float64: Arithmetic(np.float64),
    np.float32: Arithmetic(np.float32),
    "bfloat16": Arithmetic(np.float32, to_bf16),
    "float16": Arithmetic(np.float32, to_fp16),
}
VALUES = config_values(num_hidden_layers=2, vocab_size=31, hidden_size=12, intermediate_size=20, head_dim=4)
CONFIG = Config.from_dict(VALUES)
IDS, DECODE = [3, 1, 4, 1, 5, 9, 2], 2
PHASES = phases_of(IDS, DECODE)
LAST = f"model.layers.{CONFIG.L - 1}."
ONE_BLOCK = 1 << 30
seeds = st.integers(0, 2**31)


def loud(config, seed=0):
    """Weights that every operation shows in: matrices keep their input's size. bfloat16 holds them."""
    rng = np.random.default_rng(seed)
    weights = random_weights(config, seed)
    for name, shape in config.tensors().items():
        if len(shape) == 2 and "embed" not in name:
            weights[name] = rng.standard_normal(shape).astype(np.float32) / np.sqrt(np.float32(shape[-1]))
        elif name.endswith("bias"):
            weights[name] = rng.standard_normal(shape).astype(np.float32) / 2
    return {name: to_bf16(value) for name, value in weights.items()}


WEIGHTS = loud(CONFIG)


def spec_run(config, weights, phases, dtype=np.float32):
    """{phase: {tap: array}} of the spec, a phase at a time behind its cache."""
    seen, cache = {}, None
    for phase in phases:
        seen[phase.name], cache = hf.spec_taps(forward, config, weights, phase.ids, cache, dtype=dtype)
    return seen


def manifest_of(folder):
    with Golden.open(folder) as golden:
        return golden.manifest


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@functools.cache
def truth():
    return spec_run(CONFIG, WEIGHTS, PHASES, np.float64)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A pack of the small model, with the model in it; nobody changes it."""
    return record(CONFIG, WEIGHTS, tmp_path_factory.mktemp("recorded") / "pack", IDS, DECODE, include_weights=True)


@pytest.fixture
def pack(recorded, tmp_path):
    """A copy of it, to be broken."""
    return Path(shutil.copytree(recorded, tmp_path / "pack"))


refused = functools.partial(refusals.refused, GoldenError, 700)


# --- the table of operations is the spec ---


def table_run(config, weights, phases, block_bytes=ONE_BLOCK, digest=False):
    """({phase: {tap: array}} of each of EXACT, the reader)."""
    seen = [{phase.name: {} for phase in phases} for _ in EXACT]

    def visit(p, tap, results):
        assert set(results) == set(range(len(EXACT)))
        for s, value in results.items():
            seen[s][phases[p].name][tap] = value

    reader = Weights(weights, block_bytes, digest)
    with np.errstate(all="ignore"):  # float16 may overflow, in both alike
        walk(config, phases, [Stream(arithmetic) for arithmetic in EXACT.values()], reader, visit)
    return seen, reader


@given(configs(), seeds, st.booleans(), st.data())
def test_the_table_is_the_spec_to_the_bit(values, seed, harsh, data):
    config = Config.from_dict(values)
    weights = random_weights(config, seed, harsh)
    phases = phases_of(data.draw(token_ids(values, largest=12)), 0)
    ours, _ = table_run(config, weights, phases)
    for (dtype, arithmetic), seen in zip(EXACT.items(), ours, strict=True):
        with np.errstate(all="ignore"):
            taps = spec_run(config, weights, phases, dtype)["prompt"]
        assert list(seen["prompt"]) == tap_names(config)
        assert set(taps) == set(tap_names(config))
        for tap, value in seen["prompt"].items():
            assert value.dtype == arithmetic.dtype, tap
            assert value.shape == shape_of(tap, config, phases[0]), tap
            assert np.array_equal(value, taps[tap], equal_nan=True), (dtype, tap)


@given(configs(smallest_head=4), seeds, st.integers(1, 4), st.data())
def test_steps_of_decoding_are_the_specs_to_rounding(values, seed, decode, data):
    """All phases share one matrix product, so sums may run in another order."""
    config = Config.from_dict(values)
    weights = random_weights(config, seed)
    ids = data.draw(st.lists(st.integers(0, config.V - 1), min_size=decode + 1, max_size=12))
    phases = phases_of(ids, decode)
    ours, _ = table_run(config, weights, phases)
    theirs = [spec_run(config, weights, phases, dtype) for dtype in EXACT]
    for phase in phases:
        for tap, right in theirs[0][phase.name].items():
            assert error(ours[0][phase.name][tap], right) <= 1e-10, (phase, tap)  # a score may cancel to nothing
    for s, (unit, arithmetic) in enumerate(zip(UNIT.values(), list(EXACT.values())[1:], strict=True), start=1):
        ratios = []
        for tap in tap_names(config):
            right, a, b = (
                np.concatenate([run[p.name][tap].ravel() for p in phases]) for run in (theirs[0], theirs[s], ours[s])
            )
            assert b.dtype == arithmetic.dtype
            assert np.array_equal(arithmetic.rnd(b), b), tap
            ratios.append(error(b, right) / max(unit, error(a, right)))
        assert np.median(ratios) <= 3


@settings(max_examples=settings.default.max_examples // 3)
@given(configs(), seeds, st.sampled_from([1, 100, 1000, 5000]))
def test_blocks_change_nothing_but_rounding(values, seed, block_bytes):
    config = Config.from_dict(values)
    weights = random_weights(config, seed)
    phases = phases_of([1, 2, 3, 4, 5], 2)
    whole, all_at_once = table_run(config, weights, phases, digest=True)
    parts, in_blocks = table_run(config, weights, phases, block_bytes, digest=True)
    for tap in tap_names(config):
        for phase in phases:
            assert error(parts[0][phase.name][tap], whole[0][phase.name][tap]) <= 1e-13, tap
            assert error(parts[1][phase.name][tap], whole[1][phase.name][tap]) <= 1e-4, tap
    assert in_blocks.digests == all_at_once.digests
    assert set(in_blocks.digests) == set(config.tensors())


# --- recording ---


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
    """Without steps of decoding, and in one block, the eager runs are the spec's to the bit."""
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
    """Whatever they are stored in, and however they are read."""
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
    """The published models do that. A pack of them is a pack all the same; nothing is said of those taps in float16."""
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


def interrupt(error_type, after, *arguments):
    """A function that raises at its n-th call."""
    calls = []

    def call(*_):
        calls.append(1)
        if len(calls) > after:
            raise error_type(*arguments)

    return call


@pytest.mark.parametrize("after", [0, 5, 25])
@pytest.mark.parametrize("error_type", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_recording_leaves_nothing(tmp_path, error_type, after):
    with pytest.raises(error_type):
        record(CONFIG, WEIGHTS, tmp_path / "pack", IDS, progress=interrupt(error_type, after), include_weights=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("after", [0, 2, 40, 130])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, after):
    """In the headers, in the tensors, in the model."""
    full = interrupt(OSError, after, errno.ENOSPC, "No space left on device")
    write = SafetensorsStream._write
    monkeypatch.setattr(SafetensorsStream, "_write", lambda self, data: (full(), write(self, data)))
    with pytest.raises(UsageError, match=r"pack: cannot be written \(No space left on device\)"):
        record(CONFIG, WEIGHTS, tmp_path / "pack", IDS, DECODE, include_weights=True)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_at_the_manifest_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(record_module, "write_manifest", interrupt(OSError, 0, errno.ENOSPC, "No space left on device"))
    with pytest.raises(UsageError, match=r"pack: cannot be written \(No space left on device\)"):
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
    with pytest.raises(UsageError, match=r"cannot be written \(Not a directory\)"):
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
    "case counts": ({"taps": ["*norm"], "sizes": {"MODEL.NORM": "last"}, "layers": []}, {"model.norm": "full"}),
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


# --- sizes ---


def bin_and_sign(i):
    """SplitMix64 with seed 0, in Python's integers."""
    mask = (1 << 64) - 1
    z = (i + 1) * 0x9E3779B97F4A7C15 & mask
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    z = z ^ (z >> 31)
    return z & 63, -1 if z >> 63 else 1


def plainly(tap, dims, size):
    """`reduce`, a number at a time."""
    tokens = dims.index("T")
    T = tap.shape[tokens]
    if size == "full":
        return tap
    if size == "last":
        return tap[tuple(slice(T - 1, T) if axis == tokens else slice(None) for axis in range(tap.ndim))]
    rows = []
    for t in range(T):
        values = [0.0 if x == -math.inf else float(x) for x in np.take(tap, t, axis=tokens).ravel()]
        if size == "stats":
            square = math.fsum(x * x for x in values) / len(values)
            rows.append([math.fsum(values) / len(values), math.sqrt(square), min(values), max(values)])
        else:
            sums = [0.0] * 64
            for i, x in enumerate(values):
                where, sign = bin_and_sign(i)
                sums[where] += sign * x
            rows.append(sums)
    return np.array(rows)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tap", [*tap_names(CONFIG)[:24], "model.norm", "lm_head"])
def test_reductions_are_what_they_are_said_to_be(tap, size):
    for phase in PHASES:
        value = truth()[phase.name][tap]
        got = reduce(value, letters(tap), size)
        assert got.shape == stored_shape(tap, size, CONFIG, phase)
        np.testing.assert_allclose(got, plainly(value, letters(tap), size), rtol=1e-12, atol=1e-14)


@given(st.integers(1, 5), st.integers(1, 300), st.integers(1, 4), st.booleans(), seeds)
def test_reductions_of_any_shape(T, n, heads, first, seed):
    """Few values leave bins empty."""
    rng = np.random.default_rng(seed)
    dims, shape = (("H", "T", "S"), (heads, T, n)) if first else (("T", "H", "E"), (T, heads, n))
    value = rng.standard_normal(shape).astype(np.float32)
    value[rng.random(shape) < 0.2] = -np.inf
    for size in SIZES:
        np.testing.assert_allclose(reduce(value, dims, size), plainly(value, dims, size), rtol=1e-12, atol=1e-12)


def test_a_sketch_estimates_lengths():
    """Without bias, to 18 % for a token; also of values that are all alike, or one of which is all there is."""
    rng = np.random.default_rng(0)
    for n in (40, 500, 5120):
        x = rng.standard_normal((400, n)) * np.exp(rng.standard_normal(n))
        ratio = np.sum(reduce(x, ("T", "D"), "sketch") ** 2, axis=1) / np.sum(x**2, axis=1)
        assert abs(ratio.mean() - 1) < 0.06
        assert 0.05 < ratio.std() < 0.25
    spike = np.eye(1, 5120, 77)
    assert np.sum(reduce(spike, ("T", "D"), "sketch") ** 2) == 1
    flat = np.ones((1, 5120))
    assert 0.4 < np.sum(reduce(flat, ("T", "D"), "sketch") ** 2) / 5120 < 2
    bins, signs = np.transpose([bin_and_sign(i) for i in range(64_000)])
    assert abs(np.bincount(bins, minlength=64) - 1000).max() < 150
    assert abs(signs.sum()) < 1000


@pytest.fixture(scope="module")
def reduced(tmp_path_factory):
    """Size -> a pack without its model, so that nothing but the golden values judges."""
    folder = tmp_path_factory.mktemp("reduced")
    return {size: record(CONFIG, WEIGHTS, folder / size, IDS, DECODE, sizes=size) for size in SIZES}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", SIZES)
def test_a_pack_of_every_size_tells_right_from_wrong(reduced, size, precision):
    """Of each tap alone, without what it is made from."""
    right = spec_run(CONFIG, WEIGHTS, PHASES, PRECISIONS[precision])
    report = compare(reduced[size], right)
    assert report.passed, report
    assert report.comparison.precision.startswith(precision)
    assert all(r.distance is not None and r.distance.error <= r.allowed for r in report.comparison.results)
    rng = np.random.default_rng(0)
    for tap in tap_names(CONFIG):
        wrong = {}
        for phase in PHASES:
            noise = rng.standard_normal(right[phase.name][tap].shape)
            finite = np.abs(truth()[phase.name][tap][np.isfinite(truth()[phase.name][tap])])
            wrong[phase.name] = {tap: right[phase.name][tap] + 0.5 * np.sqrt(np.mean(finite**2)) * noise}
        report = compare(reduced[size], wrong, explain=False, precision=precision)
        assert not report.passed, (tap, report)
        assert {r.status for r in report.comparison.results} == {"introduced" if "rotary" in tap else "beyond"}
        if size == "sketch":
            estimates = [r.distance.error for r in report.comparison.results if r.phase == "prompt"]
            assert 0.2 < estimates[0] < 1.2, tap


def test_one_row_of_a_prompt_is_held_against_the_row(reduced):
    right = spec_run(CONFIG, WEIGHTS, PHASES)["prompt"]["lm_head"]
    for size, measured in (("full", True), ("last", True), ("stats", False), ("sketch", False)):
        for scale in (1, 1.1):
            report = compare(reduced[size], {"lm_head": scale * right[-1:]}, model=WEIGHTS, explain=False)
            result = report.comparison.results[0]
            assert result.note == "the last token alone"
            assert (result.distance is not None) == measured
            assert report.passed == (scale == 1)


# --- packs that must be refused ---


@pytest.fixture(scope="module")
def schema():
    return validator("golden-pack.schema.json")


def validator(name):
    values = json.loads((DOCS / name).read_text())
    jsonschema.Draft202012Validator.check_schema(values)
    return jsonschema.Draft202012Validator(values)


@pytest.mark.parametrize("name", oracle.conformance())
def test_shipped_packs_fit_the_schema(schema, name):
    schema.validate(json.loads((oracle.path(name) / "manifest.json").read_text()))


@pytest.mark.parametrize("size", SIZES)
def test_new_packs_fit_the_schema(schema, reduced, size):
    schema.validate(json.loads((reduced[size] / "manifest.json").read_text()))


@settings(max_examples=settings.default.max_examples // 6)
@given(configs())
def test_packs_of_any_config_fit_the_schema(schema, tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("packs")
    config = Config.from_dict(values)
    record(config, random_weights(config, 0), folder / "pack", [1, 2, 3], 1, sizes={"lm_head": "last", "*": "stats"})
    values = json.loads((folder / "pack" / "manifest.json").read_text())
    schema.validate(values)
    with Golden.open(folder / "pack") as golden:
        assert golden.manifest.config == config
        assert golden.manifest.to_dict() == values
    shutil.rmtree(folder)


GONE = object()


def changed(values, path, value):
    """A copy of nested dicts and lists with one place set, or removed where GONE."""
    values = copy.deepcopy(values)
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    if value is GONE:
        del inner[path[-1]]
    elif isinstance(inner, list) and path[-1] == len(inner):
        inner.append(value)
    else:
        inner[path[-1]] = value
    return values


QROPE = "model.layers.0.self_attn.q_rope"
P0, R0 = ("phases", 0), ("rounding", "prompt", "lm_head")
HASH = "0" * 64
NAMES = ["../prompt.safetensors", "/prompt.safetensors", "a/b.safetensors", "a\\b.safetensors", "a\0.safetensors", ""]
# Case: (where, value, who refuses it: reader, schema or both; the reader's field and words)
MANIFESTS = {
    "no format": (("format",), GONE, "both", "format", "must be qwq-golden, got None"),
    "another format": (("format",), "gguf", "both", "format", "must be qwq-golden, got gguf"),
    "vectors": (("format",), "qwq-vectors", "both", "format", "must be qwq-golden"),
    "format is a list": (("format",), ["qwq-golden"], "both", "format", "must be qwq-golden"),
    "no version": (("version",), GONE, "both", "version", "must be MAJOR.MINOR, got None"),
    "version 2.0": (("version",), "2.0", "both", "version", "is 2.0; this reader knows 1.x"),
    "version 0.9": (("version",), "0.9", "both", "version", "this reader knows 1.x"),
    "version 10.0": (("version",), "10.0", "both", "version", "this reader knows 1.x"),
    "version is a number": (("version",), 1.0, "both", "version", "must be MAJOR.MINOR"),
    "version of one part": (("version",), "1", "both", "version", "must be MAJOR.MINOR, got 1"),
    "version of three parts": (("version",), "1.0.0", "both", "version", "must be MAJOR.MINOR"),
    "version of other digits": (("version",), "1.٣", "both", "version", "must be MAJOR.MINOR"),
    "version with a line end": (("version",), "1.0\n", "reader", "version", "must be MAJOR.MINOR"),
    "version with a sign": (("version",), "1.-1", "both", "version", "must be MAJOR.MINOR"),
    "version of many digits": (("version",), "1." + "9" * 5000, "both", "version", "must be MAJOR.MINOR"),
    "no maker": (("made_by",), GONE, "schema", None, None),
    "no model": (("model",), GONE, "both", "model", "must be an object, got None"),
    "model is a list": (("model",), [], "both", "model", "must be an object"),
    "no name": (("model", "name"), GONE, "schema", None, None),
    "no config": (("model", "config"), GONE, "both", "model.config", "must be an object"),
    "another model": (("model", "config", "model_type"), "llama", "both", "model.config.model_type", "must be 'qwen2'"),
    "no layers": (("model", "config", "num_hidden_layers"), 0, "both", "model.config.num_hidden_layers", "must be 1"),
    "a huge width": (("model", "config", "hidden_size"), 10**30, "reader", "model.config.hidden_size", "must be 1 to"),
    "a width of text": (("model", "config", "hidden_size"), "12", "both", "model.config.hidden_size", "an integer"),
    "an odd head": (("model", "config", "head_dim"), 5, "both", "model.config.head_dim", "is odd"),
    "eps 0": (("model", "config", "rms_norm_eps"), 0, "both", "model.config.rms_norm_eps", "positive"),
    "theta 1": (("model", "config", "rope_theta"), 1, "both", "model.config.rope_theta", "must be > 1"),
    "heads that do not divide": (
        ("model", "config", "num_key_value_heads"),
        3,
        "reader",
        "model.config.num_key_value_heads",
        "does not divide",
    ),
    "a layer more than there is": (
        ("model", "config", "num_hidden_layers"),
        3,
        "reader",
        "weights.model.layers.2.input_layernorm.weight",
        "must be a string",
    ),
    "a layer less than there is": (
        ("model", "config", "num_hidden_layers"),
        1,
        "reader",
        "taps.model.layers.1.resid_pre",
        "is no tap of this config",
    ),
    "a vocabulary that is too small": (
        ("model", "config", "vocab_size"),
        9,
        "reader",
        "token_ids",
        "below vocab_size 9",
    ),
    "no frequencies": (("rope", "inv_freq_bits"), GONE, "schema", None, None),
    "frequencies as numbers": (("rope", "inv_freq_bits"), [1.0, 0.1], "schema", None, None),
    "frequencies of seven digits": (("rope", "inv_freq_bits", 0), "3f80000", "schema", None, None),
    "no scaling": (("rope", "attention_scaling"), 0, "schema", None, None),
    "no rope": (("rope",), GONE, "schema", None, None),
    "no tokens": (("token_ids",), [], "both", "token_ids", "must be a list of token ids below vocab_size 31"),
    "tokens are text": (("token_ids",), "abc", "both", "token_ids", "must be a list, got abc"),
    "a token too large": (("token_ids", 2), 31, "reader", "token_ids", "below vocab_size 31"),
    "a negative token": (("token_ids", 2), -1, "both", "token_ids", "below vocab_size"),
    "half a token": (("token_ids", 2), 1.5, "both", "token_ids", "must be a list of token ids"),
    "a token that is true": (("token_ids", 2), True, "both", "token_ids", "must be a list of token ids"),
    "a huge token": (("token_ids", 2), 10**300, "reader", "token_ids", "below vocab_size"),
    "a token more": (("token_ids", 7), 1, "reader", "phases", "cover 7 of 8 token_ids"),
    "a token less": (("token_ids", 6), GONE, "reader", "phases[2].tokens", "is 1, of 6 token_ids that begin at 6"),
    "no phases": (("phases",), [], "both", "phases", "cover 0 of 7"),
    "phases are an object": (("phases",), {}, "both", "phases", "must be a list"),
    "a phase less": (("phases", 2), GONE, "reader", "phases", "cover 6 of 7 token_ids"),
    "a phase is a name": (("phases", 0), "prompt", "both", "phases[0]", "must be an object"),
    "a phase without a name": ((*P0, "name"), GONE, "both", "phases[0].name", "must be a string"),
    "a phase twice": (("phases", 2, "name"), "decode-0", "reader", "phases[2].name", "decode-0 is used twice"),
    "a phase that climbs": ((*P0, "name"), "../x", "both", "phases[0].name", "must be letters, digits"),
    "a phase of two lines": ((*P0, "name"), "prompt\n", "reader", "phases[0].name", "must be letters, digits"),
    "a phase without letters": ((*P0, "name"), "", "both", "phases[0].name", "must be letters, digits"),
    "a phase by a long name": ((*P0, "name"), "p" * 65, "both", "phases[0].name", "must be letters, digits"),
    "phases that overlap": (("phases", 1, "start"), 4, "reader", "phases[1].start", "must be 5"),
    "phases with a hole": (("phases", 1, "start"), 6, "reader", "phases[1].start", "must be 5"),
    "a prompt that starts late": (("phases", 0, "start"), 1, "reader", "phases[0].start", "must be 0"),
    "a start of text": (("phases", 1, "start"), "5", "both", "phases[1].start", "must be an integer"),
    "a phase without tokens": (("phases", 1, "tokens"), 0, "both", "phases[1].tokens", "is 0, of 7"),
    "a phase of negative length": (("phases", 0, "tokens"), -1, "both", "phases[0].tokens", "is -1"),
    "a phase too long": (("phases", 2, "tokens"), 2, "reader", "phases[2].tokens", "is 2, of 7 token_ids"),
    "a phase of huge length": (("phases", 0, "tokens"), 10**40, "reader", "phases[0].tokens", "of 7 token_ids"),
    "true tokens": (("phases", 1, "tokens"), True, "both", "phases[1].tokens", "must be an integer"),
    "half a phase": (("phases", 0, "tokens"), 4.5, "both", "phases[0].tokens", "must be an integer"),
    "another kind of file": ((*P0, "file"), "prompt.npz", "both", "phases[0].file", "must be the name of a"),
    "a file that is no name": ((*P0, "file"), 1, "both", "phases[0].file", "must be a string"),
    "a file twice": (
        ("phases", 2, "file"),
        "decode-0.safetensors",
        "reader",
        "phases[2].file",
        "decode-0.safetensors is used twice",
    ),
    "a short digest": ((*P0, "sha256"), "00", "both", "phases[0].sha256", "must be a SHA-256"),
    "a digest in capitals": ((*P0, "sha256"), "A" * 64, "both", "phases[0].sha256", "must be a SHA-256"),
    "no digest": ((*P0, "sha256"), GONE, "both", "phases[0].sha256", "must be a string"),
    "no taps": (("taps",), GONE, "both", "taps", "must be an object"),
    "nothing kept": (("taps",), {}, "both", "taps", "is empty"),
    "taps are a list": (("taps",), ["lm_head"], "both", "taps", "must be an object"),
    "an unknown tap": (("taps", "lm_haed"), "full", "both", "taps.lm_haed", "is no tap of this config"),
    "a tap of no layer": (
        ("taps", "model.layers.2.resid_pre"),
        "full",
        "reader",
        "taps.model.layers.2.resid_pre",
        "no tap",
    ),
    "a layer with a zero": (
        ("taps", "model.layers.01.resid_pre"),
        "full",
        "both",
        "taps.model.layers.01.resid_pre",
        "no tap",
    ),
    "an unknown size": (
        ("taps", "lm_head"),
        "half",
        "both",
        "taps.lm_head",
        "one of full, last, stats, sketch, got half",
    ),
    "a size of a list": (("taps", "lm_head"), ["full"], "both", "taps.lm_head", "must be one of"),
    "no rounding": (("rounding",), GONE, "both", "rounding", "must be an object"),
    "no rounding of a phase": (("rounding", "decode-1"), GONE, "reader", "rounding.decode-1", "must be an object"),
    "no rounding of a tap": (R0, GONE, "reader", "rounding.prompt.lm_head", "must be an object, got None"),
    "no rounding in a precision": ((*R0, "bf16"), GONE, "both", "rounding.prompt.lm_head.bf16", "got nothing"),
    "negative rounding": ((*R0, "bf16"), -1e-9, "both", "rounding.prompt.lm_head.bf16", "must be a number >= 0"),
    "rounding of text": ((*R0, "bf16"), "1", "both", "rounding.prompt.lm_head.bf16", "must be a number >= 0"),
    "true rounding": ((*R0, "bf16"), True, "both", "rounding.prompt.lm_head.bf16", "must be a number >= 0"),
    "huge rounding": ((*R0, "bf16"), 1e300, "both", "rounding.prompt.lm_head.bf16", "must be a number >= 0"),
    "rounding of 400 digits": ((*R0, "bf16"), 10**400, "both", "rounding.prompt.lm_head.bf16", "must be a number"),
    "no weights": (("weights",), GONE, "both", "weights", "must be an object"),
    "a weight missing": (
        ("weights", "model.norm.weight"),
        GONE,
        "reader",
        "weights.model.norm.weight",
        "must be a string",
    ),
    "a weight's number": (("weights", "model.norm.weight"), 7, "both", "weights.model.norm.weight", "must be a string"),
    "a weight's digest": (("weights", "model.norm.weight"), "x" * 64, "both", "weights.model.norm.weight", "a SHA-256"),
}
for name in NAMES:
    words = "must be the name of a .safetensors file"
    MANIFESTS[f"file {name!r}"] = ((*P0, "file"), name, "both", "phases[0].file", words)
for name in ("../model", "/etc", "a/b", "a\\b", "a\0", "", ".", "..", 5, ["model"]):
    MANIFESTS[f"folder {name!r}"] = (("model", "folder"), name, "both", "model.folder", "must be the name of a folder")


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_broken_manifest(pack, schema, case):
    where, value, who, field, words = MANIFESTS[case]
    file = pack / "manifest.json"
    values = changed(json.loads(file.read_text()), where, value)
    file.write_text(json.dumps(values))
    assert schema.is_valid(values) == (who == "reader")
    if who == "schema":
        Golden.open(pack).close()
    else:
        refused(lambda: Golden.open(pack), file, field, words)


LIES = {
    "hidden_size": (13, "model.embed_tokens", "F32 [5, 12], but manifest.json implies F32 [5, 13] (full)"),
    "intermediate_size": (21, "model.layers.0.mlp.gate_proj", "implies F32 [5, 21]"),
    "vocab_size": (32, "lm_head", "implies F32 [5, 32]"),
    "head_dim": (6, "model.rotary_emb.cos", "implies F32 [5, 6]"),
    "num_attention_heads": (12, "model.layers.0.self_attn.q_matmul", "implies F32 [5, 48]"),
    "num_key_value_heads": (5, "model.layers.0.self_attn.k_matmul", "implies F32 [5, 20]"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_config_that_is_of_another_model(pack, name):
    value, tap, words = LIES[name]
    file = pack / "manifest.json"
    file.write_text(json.dumps(changed(json.loads(file.read_text()), ("model", "config", name), value)))
    refused(lambda: Golden.open(pack), pack / "prompt.safetensors", tap, words)


@pytest.mark.parametrize("size", ["last", "stats", "sketch"])
def test_a_size_that_is_not_so(pack, size):
    file = pack / "manifest.json"
    file.write_text(json.dumps(changed(json.loads(file.read_text()), ("taps", QROPE), size)))
    refused(lambda: Golden.open(pack), pack / "prompt.safetensors", QROPE, f"({size})")


TEXTS = {
    "empty": (lambda text: b"", None, "is not JSON"),
    "cut": (lambda text: text[: len(text) // 2], None, "is not JSON"),
    "cut before its end": (lambda text: text.rstrip()[:-1], None, "is not JSON"),
    "two of them": (lambda text: text + text, None, "is not JSON"),
    "a list": (lambda text: b"[" + text + b"]", None, "must hold a JSON object, not a list"),
    "a BOM": (lambda text: b"\xef\xbb\xbf" + text, None, "is not JSON"),
    "not UTF-8": (lambda text: text.replace(b"qwq_ref", b"qwq\xff"), None, "is not UTF-8"),
    "deep": (lambda text: b'{"a":' + b"[" * 10**5 + text, None, "nested too deeply"),
    "a tap twice": (
        lambda text: text.replace(b'"lm_head": "full"', b'"lm_head": "full", "lm_head": "last"'),
        "lm_head",
        "twice",
    ),
    "a phase twice": (lambda text: text.replace(b'"rounding": {', b'"rounding": {"prompt": {}, '), "prompt", "twice"),
    "a field twice": (lambda text: text.replace(b'"version"', b'"version": "2.0", "version"'), "version", "twice"),
    "NaN": (lambda text: re.sub(rb'"fp32": [^,]*', b'"fp32": NaN', text, count=1), None, "holds NaN"),
    "infinity": (lambda text: re.sub(rb'"fp32": [^,]*', b'"fp32": Infinity', text, count=1), None, "holds Infinity"),
    "minus infinity": (lambda text: re.sub(rb'"fp32": [^,]*', b'"fp32": -Infinity', text, count=1), None, "-Infinity"),
    "1e999": (lambda text: re.sub(rb'"fp32": [^,]*', b'"fp32": 1e999', text, count=1), None, "beyond the range"),
    "9,999 digits": (
        lambda text: re.sub(rb'"fp32": [^,]*', b'"fp32": ' + b"9" * 9999, text, count=1),
        None,
        "is not JSON",
    ),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_manifest_that_is_not_sound_json(pack, case):
    change, field, words = TEXTS[case]
    file = pack / "manifest.json"
    before = file.read_bytes()
    file.write_bytes(change(before))
    assert file.read_bytes() != before
    refused(lambda: Golden.open(pack), file, field, words)


def test_a_manifest_that_is_too_long(pack):
    os.truncate(pack / "manifest.json", 1 << 40)
    refused(lambda: Golden.open(pack), pack / "manifest.json", None, "bytes long; at most 67,108,864 are read")


def test_a_later_minor_version_is_read(pack, recorded):
    """With keys that nobody knows, wherever there can be any."""
    file = pack / "manifest.json"
    values = json.loads(file.read_text())
    extra = {"new": [1, {"x": None}]}
    values |= {"version": "1.7", **extra, "model": values["model"] | extra, "rope": values["rope"] | extra}
    values["model"]["config"] |= extra
    values["phases"] = [phase | extra for phase in values["phases"]]
    values["rounding"]["prompt"]["lm_head"]["fp8"] = 0.06
    file.write_text(json.dumps(values))
    validator("golden-pack.schema.json").validate(values)
    with Golden.open(pack) as later, Golden.open(recorded) as golden:
        assert later.manifest == golden.manifest


def blob(header, data=b""):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def rewrite(path, change):
    """A safetensors file with other tensors: change({tap: array}) in place; dtype of an array is that of the file."""
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for tap, entry in json.loads(data[8:begin]).items():
        if tap != "__metadata__":
            first, last = entry["data_offsets"]
            tensors[tap] = np.frombuffer(data[begin + first : begin + last], "<f4").reshape(entry["shape"]).copy()
    change(tensors)
    header, end = {}, 0
    for tap, array in tensors.items():
        kind = {"float32": "F32", "float16": "F16", "int32": "I32"}[array.dtype.name]
        header[tap] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    path.write_bytes(blob(header, b"".join(array.tobytes() for array in tensors.values())))


def set_value(tap, index, value):
    def change(tensors):
        tensors[tap][index] = value

    return change


def replace(tap, function):
    def change(tensors):
        tensors[tap] = function(tensors[tap])

    return change


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
    """Noticed when they are read, also by who does not verify."""
    rewrite(pack / "prompt.safetensors", set_value(tap, (2, 1, 0), value))
    right = spec_run(CONFIG, WEIGHTS, PHASES)
    with Golden.open(pack) as golden:
        if (tap, value) == (SCORES, -np.inf):
            assert np.isneginf(golden.read("prompt", tap)[2, 1, 0])
            return
        for call in (lambda: golden.read("prompt", tap), lambda: compare(golden, right, verify=False)):
            refused(call, pack / "prompt.safetensors", tap, "holds a NaN or infinity at [2, 1, 0]")


def test_a_digest_that_lies(pack, recorded):
    """One bit of a value: nothing but the digest tells, and only if it is asked."""
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
    """Steps differ in how many keys they see; a pack that keeps no scores has the digests."""
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
    descriptors = len(os.listdir("/proc/self/fd"))
    refused(lambda: Golden.open(pack), pack / place, None, words)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_links_to_what_is_right_are_followed(pack, recorded):
    """As in the Hugging Face cache."""
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
        assert caught.value.problem == "is not a folder"
        assert str(caught.value).isprintable()


# --- candidates ---


def test_other_tokens_are_a_verdict(recorded):
    right = spec_run(CONFIG, WEIGHTS, PHASES)["prompt"]
    tensors = {("prompt", tap): functools.partial(np.asarray, value) for tap, value in right.items()}
    assert compare(recorded, Candidate("mine", tensors, token_ids=IDS), coverage=False).passed
    for ids, words in (
        ([3, 1, 4, 2, 5, 9, 2], "position 3 is 2, where the pack was recorded on 1"),
        (IDS[:-1], "6 of them, where the pack was recorded on 7"),
    ):
        report = compare(recorded, Candidate("mine", tensors, token_ids=ids))
        assert not report.passed
        assert words in str(report)
        assert report.to_dict()["mismatch"] == report.comparison.mismatch


def test_broken_candidates_are_verdicts(recorded):
    right = spec_run(CONFIG, WEIGHTS, PHASES)["prompt"][QROPE]
    spoilt = right.copy()
    spoilt[2, 3, 1] = np.nan
    infinite = np.where(np.arange(4) == 2, np.inf, right)
    for value, status, note in (
        (spoilt, "nan", "at [2, 3, 1]"),
        (infinite, "nan", "at [0, 0, 2]"),
        (np.full_like(right, np.nan), "nan", "at [0, 0, 0]"),
        (right[:3], "shape", "shape [3, 10, 4], but the tap is [5, 10, 4]"),
        (right[:, :9], "shape", "shape [5, 9, 4]"),
        (np.stack([right.swapaxes(0, 1)] * 2), "shape", "shape [2, 10, 5, 4]"),  # a batch of two, heads first
        (right[:0], "shape", "shape [0, 10, 4]"),
        (np.float32(1), "shape", "shape []"),
        (np.ones(right.shape, int), "shape", "is int64, not floating point"),
        (np.ones(right.shape, bool), "shape", "is bool, not floating point"),
        (right.astype(complex), "shape", "is complex128, not floating point"),
        (right.astype(object), "shape", "is object, not floating point"),
        (np.full_like(right, 1e30), "introduced", ""),
        (np.full(right.shape, 1e300), "introduced", ""),
        (np.zeros_like(right), "introduced", ""),
    ):
        report = compare(recorded, {QROPE: value})
        assert not report.passed
        assert report.first.status == status
        assert note in report.first.note
        json.dumps(report.to_dict(), allow_nan=False)
        ElementTree.fromstring(report.junit())
        assert QROPE in str(report)


def test_nothing_in_common_is_an_error(recorded):
    for taps in (
        {},
        {"lm_haed": np.zeros((5, 31), np.float32)},
        {"model.layers.2.resid_pre": np.zeros((5, 12), np.float32)},
    ):
        refused(lambda taps=taps: compare(recorded, taps), "arrays", None, "holds no tap of this pack")
    later = Candidate("mine", {("decode-9", "lm_head"): lambda: np.zeros((1, 31), np.float32)})
    refused(lambda: compare(recorded, later), "mine", None, "holds no tap of this pack, in none of its phases")


def test_another_model_is_an_error(recorded, tmp_path):
    right = spec_run(CONFIG, WEIGHTS, PHASES)
    norm = "model.layers.1.post_attention_layernorm.weight"
    other = WEIGHTS | {norm: np.nextafter(WEIGHTS[norm], np.float32(9))}
    words = "differs: this is not the model that was recorded"
    refused(lambda: compare(recorded, right, model=other), recorded, f"weights.{norm}", words)
    refused(
        lambda: compare(recorded, {"lm_head": right["prompt"]["lm_head"]}, model=other),
        recorded,
        f"weights.{norm}",
        words,
    )
    for weights, said in (
        (other | {norm: np.ones(1, np.float32)}, f"{norm} has shape [1], and the config implies [12]"),
        ({name: value for name, value in WEIGHTS.items() if name != norm}, f"there is no {norm}"),
    ):
        refused(lambda weights=weights: compare(recorded, right, model=weights), recorded, "model", said)
    wider = Config.from_dict(VALUES | {"hidden_size": 14})
    folder = tmp_path / "model"
    folder.mkdir()
    write_json(folder / "config.json", wider.to_dict())
    write_safetensors(folder / "model.safetensors", loud(wider), "BF16")
    refused(
        lambda: compare(recorded, right, model=folder),
        recorded,
        "model",
        f"than {folder}: model.embed_tokens.weight has",
    )


def test_a_model_in_the_pack_that_is_another(pack):
    wider = Config.from_dict(VALUES | {"hidden_size": 14})
    write_json(pack / "model" / "config.json", wider.to_dict())
    write_safetensors(pack / "model" / "model.safetensors", loud(wider), "BF16")
    right = spec_run(CONFIG, WEIGHTS, PHASES)
    refused(lambda: compare(pack, right), pack, "model", "was recorded from another model")
    shutil.rmtree(pack / "model")
    with pytest.raises(CheckpointError, match="no such file or folder"):
        compare(pack, right)
    assert compare(pack, right, model=WEIGHTS, coverage=False).passed


# --- whatever the bytes ---


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    """A small pack, and what its files were."""
    folder = tmp_path_factory.mktemp("fuzzed") / "pack"
    record(CONFIG, WEIGHTS, folder, IDS[:4], 1, layers=[0], taps=["lm_head", "*.q_rope", "*.scores", "*.resid_post"])
    return folder, contents(folder)


def judged(folder, taps):
    """A report, or None where the pack was refused. Anything else gets out."""
    try:
        with Golden.open(folder) as golden:
            report = compare(golden, taps, model=WEIGHTS, explain=False, coverage=False, verify=False)
            str(report)
            json.dumps(report.to_dict(), allow_nan=False)
            ElementTree.fromstring(report.junit())
            return report
    except GoldenError as refusal:
        if not str(refusal).isprintable():
            raise
        return None


@functools.cache
def fuzz_candidate():
    return spec_run(CONFIG, WEIGHTS, phases_of(IDS[:4], 1))


_byte = st.integers(0, 255) | st.sampled_from(list(b'0123456789"{}[],:-.eE\\ '))


@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), _byte), min_size=1, max_size=4), st.none() | st.floats(0, 1)
)
def test_edited_bytes_of_a_manifest(fuzzed, edits, cut):
    folder, files = fuzzed
    data = bytearray(files["manifest.json"])
    for place, byte in edits:
        data[int(place * len(data))] = byte
    (folder / "manifest.json").write_bytes(data if cut is None else data[: int(cut * len(data))])
    judged(folder, fuzz_candidate())
    (folder / "manifest.json").write_bytes(files["manifest.json"])


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just(1 << 70)
_json = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


@given(st.data(), _json)
def test_any_json_anywhere_in_a_manifest(fuzzed, data, value):
    folder, files = fuzzed
    values = json.loads(files["manifest.json"])
    inner, path = values, []
    while isinstance(inner, (dict, list)) and inner and (not path or data.draw(st.booleans())):
        path.append(data.draw(st.sampled_from(list(inner) if isinstance(inner, dict) else range(len(inner)))))
        inner = inner[path[-1]]
    (folder / "manifest.json").write_text(json.dumps(changed(values, path, value)))
    judged(folder, fuzz_candidate())
    (folder / "manifest.json").write_bytes(files["manifest.json"])


@given(
    st.sampled_from(["prompt.safetensors", "decode-0.safetensors"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), _byte), min_size=1, max_size=4),
    st.none() | st.floats(0, 1),
)
def test_edited_bytes_of_tensors(fuzzed, name, edits, cut):
    folder, files = fuzzed
    data = bytearray(files[name])
    for place, byte in edits:
        data[int(place * len(data))] = byte
    data = data if cut is None else data[: int(cut * len(data))]
    (folder / name).write_bytes(data)
    judged(folder, fuzz_candidate())
    if bytes(data) != files[name]:
        with pytest.raises(GoldenError), Golden.open(folder) as golden:
            golden.verify()
    (folder / name).write_bytes(files[name])


def test_the_fuzzed_pack_was_sound(fuzzed):
    folder, files = fuzzed
    assert contents(folder) == files
    assert judged(folder, fuzz_candidate()).passed


# --- the conformance set ---


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    shipped_models.build(folder)
    return folder


def test_the_set_is_what_its_models_say():
    assert set(oracle.conformance()) == set(shipped_models.MODELS)


@pytest.mark.parametrize("name", oracle.conformance())
def test_shipped_packs_are_what_is_recorded(built, name):
    """Nobody edits a pack without its model, or the other way round. The last bits may be another machine's."""
    shipped, fresh = oracle.path(name), built / name
    assert set(contents(shipped)) == set(contents(fresh))
    for file in ("config.json", "model.safetensors"):
        assert (shipped / "model" / file).read_bytes() == (fresh / "model" / file).read_bytes()
    one, two = (json.loads((folder / "manifest.json").read_text()) for folder in (shipped, fresh))
    a, b = one.pop("rounding"), two.pop("rounding")
    assert set(a) == set(b)
    for phase, taps in a.items():
        assert set(taps) == set(b[phase])
        for tap, errors in taps.items():
            for precision, value in errors.items():
                assert value == pytest.approx(b[phase][tap][precision], rel=0.5), (phase, tap, precision)
    for values in (one, two):
        del values["made_by"]
        for phase in values["phases"]:
            del phase["sha256"]
    assert one == two
    with Golden.open(shipped) as ours, Golden.open(fresh) as theirs:
        ours.verify()
        for phase in ours.manifest.phases:
            for tap in ours.manifest.sizes:
                x, y = ours.read(phase.name, tap), theirs.read(phase.name, tap)
                assert np.array_equal(np.isfinite(x), np.isfinite(y))
                np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6 * np.abs(x[np.isfinite(x)]).max(), err_msg=tap)


@pytest.mark.parametrize("name", oracle.conformance())
def test_transformers_makes_the_logits_of_a_shipped_pack(name):
    import transformers

    with Golden.open(oracle.path(name)) as golden:
        model = transformers.AutoModelForCausalLM.from_pretrained(golden.model_path, dtype=torch.float32).eval()
        with torch.no_grad():
            logits = model(torch.tensor([golden.manifest.token_ids])).logits[0].numpy()
        for phase in golden.manifest.phases:
            allowed = MARGIN * golden.manifest.rounding[phase.name]["lm_head"]["fp32"]
            theirs = logits[phase.start : phase.S]
            assert error(theirs, golden.read(phase.name, "lm_head")) <= allowed


def test_names_of_shipped_packs():
    with pytest.raises(UsageError, match="nothing is not among gqa, tied, window, yarn"):
        oracle.path("nothing")
    report = compare("tied", oracle.path("tied"), coverage=False)
    assert report.passed
    refused(lambda: compare("gqa-2", {"lm_head": np.zeros(3)}), "gqa-2", None, "is not a folder")


# --- docs/pack.md, beyond what test_docs.py runs ---


def test_the_page_and_the_reader_in_c_are_the_same_text():
    page = (DOCS / "pack.md").read_text()
    assert re.findall(r"^```c\n(.*?)^```", page, re.MULTILINE | re.DOTALL) == [(DOCS / "golden_reader.c").read_text()]


def test_the_page_lists_every_tap():
    page = (DOCS / "pack.md").read_text()
    rows = dict(re.findall(r"^\| `([\w.]+)` \| \[([^]]*)\] \|", page, re.MULTILINE))
    relative = {
        tap.removeprefix("model.layers.0."): tap for tap in tap_names(dataclasses.replace(CONFIG, num_hidden_layers=1))
    }
    for name, tap in relative.items():
        assert rows[name].split(", ") == [part.replace("*", " ") for part in letters(tap)], tap
    assert len(relative) == 26


def test_the_page_has_the_sketch_right():
    page = (DOCS / "pack.md").read_text()
    rows = re.findall(r"^\| (\d+) \| [0-9a-f]{16} \| (\d+) \| ([+-]) \|$", page, re.MULTILINE)
    assert len(rows) == 5
    for i, where, sign in rows:
        assert bin_and_sign(int(i)) == (int(where), int(f"{sign}1"))
    sketch = reduce(np.arange(1.0, 5)[None], ("T", "D"), "sketch")[0]
    assert {int(i): sketch[i] for i in np.flatnonzero(sketch)} == {47: -1, 52: 2, 15: 3, 44: -4}


def test_the_schema_knows_every_tap_and_weight(schema):
    properties = schema.schema["properties"]
    config = dataclasses.replace(CONFIG, num_hidden_layers=12)
    for field, names in (("taps", tap_names(config)), ("weights", list(config.tensors()))):
        pattern = re.compile(properties[field]["propertyNames"]["pattern"])
        assert all(pattern.search(name) for name in names)
        assert not [name for name in names if pattern.search(f"x{name}") or pattern.search(f"{name}x")]


@pytest.fixture(scope="module")
def reader_in_c(tmp_path_factory):
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("NO C COMPILER (cc, gcc, clang): docs/golden_reader.c was not compiled")
    program = tmp_path_factory.mktemp("c") / "golden_reader"
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    subprocess.run([compiler, *flags, DOCS / "golden_reader.c", "-o", program, "-lm"], check=True)
    return program


def test_the_reader_in_c_reads_what_numpy_reads(reader_in_c, recorded):
    with Golden.open(recorded) as golden:
        for phase in PHASES[:2]:
            for tap in golden.manifest.sizes:
                done = subprocess.run(
                    [reader_in_c, recorded / f"{phase.name}.safetensors", tap],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                shape, _, rest = done.stdout.partition(" rms ")
                value = golden.read(phase.name, tap)
                finite = value[np.isfinite(value)].astype(np.float64)
                assert [int(n) for n in shape.split()] == list(value.shape)
                assert float(rest.split()[0]) == pytest.approx(np.sqrt(np.mean(finite**2)), rel=1e-7)
                assert rest.split()[1:] == ["hidden", str(value.size - finite.size)]


def test_the_reader_in_c_refuses(reader_in_c, recorded, tmp_path):
    (tmp_path / "short").write_bytes((recorded / "prompt.safetensors").read_bytes()[:-4])
    (tmp_path / "long").write_bytes(b"\xff" * 100)
    (tmp_path / "empty").write_bytes(b"")
    for arguments, words in (
        ([], "usage"),
        ([recorded / "nothing", "lm_head"], "usage"),
        ([recorded / "prompt.safetensors", "lm_hea"], "no such tap"),
        ([recorded / "model" / "model.safetensors", "model.norm.weight"], "not float32"),
        ([tmp_path / "short", "lm_head"], "cut short"),
        ([tmp_path / "long", "lm_head"], "no header"),
        ([tmp_path / "empty", "lm_head"], "usage"),
    ):
        done = subprocess.run([reader_in_c, *arguments], capture_output=True, text=True)
        assert (done.returncode, words in done.stderr) == (1, True), arguments


# --- vectors of single operations ---

OPS = {
    "embed": lambda ids, w: spec.embed(ids, w),
    "linear": spec.linear,
    "rmsnorm": spec.rmsnorm,
    "rope": spec.rope,
    "rope_tables": lambda inv_freq, scaling, positions: spec.rope_tables(inv_freq, scaling, positions, np.float32),
    "softmax": spec.softmax,
    "attention_scores": spec.ops.attention_scores,
    "attention_heads": spec.ops.attention_heads,
    "attention": spec.attention,
    "swiglu": spec.swiglu,
}


@functools.cache
def all_cases():
    return list(vector_cases.cases())


def test_the_specs_own_operations_pass():
    assert set(OPS) == {case.op for case in all_cases()}
    for op, function in OPS.items():
        outcomes = judge_vectors.check_op(op, function)
        assert len(outcomes) == sum(case.op == op and "fp32" in case.rounding for case in all_cases()) > 0


def repeat(x, heads):
    """[S, K, E] -> [H, S, E]"""
    return x.repeat_interleave(heads // x.shape[1], dim=1).transpose(0, 1)


def torch_attention(q, k, v, visible):
    H = q.shape[1]
    return F.scaled_dot_product_attention(q.transpose(0, 1), repeat(k, H), repeat(v, H), visible).transpose(0, 1)


def torch_scores(q, k, visible):
    scores = q.transpose(0, 1) @ repeat(k, q.shape[1]).transpose(1, 2) * q.shape[-1] ** -0.5
    return scores.masked_fill(~visible, torch.finfo(q.dtype).min)


def torch_tables(inv_freq, scaling, positions):
    angles = positions[:, None].float() * inv_freq
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos() * scaling, angles.sin() * scaling


def torch_rope(x, cos, sin):
    x = x.transpose(0, 1)[None]
    return hf.modeling_qwen2.apply_rotary_pos_emb(x, x, cos[None], sin[None])[0][0].transpose(0, 1)


TORCH = {
    "embed": lambda ids, w: F.embedding(ids, w),
    "linear": lambda x, w, b=None: F.linear(x, w, b),
    "rmsnorm": lambda x, w, eps: F.rms_norm(x, w.shape, w, eps),
    "rope": torch_rope,
    "rope_tables": torch_tables,
    "softmax": lambda x: torch.softmax(x, dim=-1),
    "attention_scores": torch_scores,
    "attention_heads": lambda probs, v: (probs @ repeat(v, len(probs))).transpose(0, 1),
    "attention": torch_attention,
    "swiglu": lambda gate, up: F.silu(gate) * up,
}


def in_torch(function, dtype):
    """A function of tensors -> of the arrays of a case."""

    def tensor(name, x):
        if not isinstance(x, np.ndarray):
            return x
        t = torch.from_numpy(np.array(x))
        return t.to(dtype) if t.is_floating_point() and name != "inv_freq" else t

    def run(**inputs):
        y = function(**{name: tensor(name, x) for name, x in inputs.items()})
        return tuple(part.to(dtype).float().numpy() for part in y) if isinstance(y, tuple) else y.float().numpy()

    return run


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("op", TORCH)
def test_torch_passes(op, precision):
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert judge_vectors.check_op(op, in_torch(TORCH[op], dtype), precision)


WRONG = {
    "embed": lambda ids, w: w[(ids + 1) % len(w)],
    "linear": lambda x, w, b=None: x @ w.T,
    "rmsnorm": lambda x, w, eps: spec.rmsnorm(x, w, 1e-6),
    "rope": lambda x, cos, sin: spec.rope(x, cos, -sin),
    "rope_tables": lambda inv_freq, scaling, positions: spec.rope_tables(inv_freq, 1.0, positions, np.float32),
    "softmax": lambda x: np.exp(np.minimum(x, 80)) / np.exp(np.minimum(x, 80)).sum(axis=-1, keepdims=True),
    "attention_scores": lambda q, k, visible: spec.ops.attention_scores(q, k, np.ones_like(visible)),
    "attention_heads": lambda probs, v: spec.ops.attention_heads(probs, v[:, ::-1]),
    "attention": lambda q, k, v, visible: spec.attention(q, np.tile(k, (1, 2, 1))[:, : k.shape[1]] * 1.01, v, visible),
    "swiglu": lambda gate, up: spec.swiglu(up, gate),
}
# Of which cases are all right: a mistake that they do not show.
SHOWN = {"linear": {"bias"}, "rope_tables": {"from-0-yarn", "from-32765-yarn", "at-131071-yarn"}}


@pytest.mark.parametrize("op", WRONG)
def test_wrong_operations_fail(op):
    with np.errstate(all="ignore"), pytest.raises(AssertionError) as caught:
        judge_vectors.check_op(op, WRONG[op])
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{op}, ") for line in lines)
    named = {line.partition(": ")[0].removeprefix(f"{op}, ") for line in lines}
    assert named <= {case.name for case in all_cases() if case.op == op}
    if op in SHOWN:
        assert named == SHOWN[op]


def test_results_that_are_none():
    case = next(case for case in all_cases() if (case.op, case.name) == ("linear", "bias"))
    tables = next(case for case in all_cases() if case.op == "rope_tables")
    for result, words in (
        (np.full(case.y.shape, np.nan), "NaN at [0, 0]"),
        (np.full(case.y.shape, np.inf), "error inf"),
        (np.full(case.y.shape, 1e300), "error inf"),
        (case.y[:-1], "shape [4, 29], not [5, 29]"),
        (case.y.T, "shape [29, 5]"),
        (None, "is of type object, not numbers"),
        (case.y.astype(complex), "is of type complex128"),
        (case.y.astype(str), "is of type"),
        ((case.y, case.y[1:]), "shapes [5, 29], [4, 29], in one pair"),
        (1.01 * case.y, "the largest difference is"),
    ):
        assert words in judge_vectors.judge(case, result, "fp32").problem
    assert not judge_vectors.judge(tables, tuple(tables.y), "fp32").problem
    assert judge_vectors.judge(tables, tuple(tables.y[::-1]), "fp32").problem
    for call in (
        lambda: judge_vectors.check_op("gelu", spec.swiglu),
        lambda: judge_vectors.check_op("swiglu", lambda gate, up: 0, "float32"),
    ):
        with pytest.raises(UsageError, match="must be one of"):
            call()


def test_hidden_scores_may_be_any_large_negative_number():
    case = next(case for case in all_cases() if case.op == "attention_scores")
    for hidden in (-np.inf, -65504.0, float(np.finfo(np.float32).min)):
        y = np.where(np.isneginf(case.y), hidden, case.y)
        assert not judge_vectors.judge(case, y, "fp32").problem
        shown = np.where(np.isneginf(case.y), 0.0, case.y)
        assert judge_vectors.judge(case, shown, "fp32").problem


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors") / "vectors"
    assert vectors.write_vectors(folder) == len(all_cases())
    return folder


def test_vectors_are_read_as_they_were_written(written):
    read = vectors.read_vectors(written)
    assert len(read) == len(all_cases()) == len({(case.op, case.name) for case in read})
    for ours, case in zip(read, all_cases(), strict=True):
        assert (ours.op, ours.name, ours.attributes, ours.rounding) == (
            case.op,
            case.name,
            case.attributes,
            case.rounding,
        )
        assert list(ours.arrays) == list(case.arrays)
        for name, array in case.arrays.items():
            assert np.array_equal(ours.arrays[name], array), (case.name, name)
        assert ours.y.tobytes() == case.y.tobytes()
        for precision, rnd in (("bf16", to_bf16), ("fp16", to_fp16)):
            held = [
                np.array_equal(rnd(x), x) for k, x in case.arrays.items() if x.dtype == np.float32 and k != "inv_freq"
            ]
            assert all(held) or precision not in case.rounding
        for precision, value in case.rounding.items():
            assert 0.999 * UNIT[precision] < value < 0.1, (case.name, precision)


def test_vectors_fit_their_schema(written):
    validator("golden-vectors.schema.json").validate(json.loads((written / "manifest.json").read_text()))


def test_two_writings_of_vectors_are_equal(written, tmp_path):
    vectors.write_vectors(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(written)


def test_where_vectors_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    for out, words in (("file", "exists already"), ("file/x", "cannot be written")):
        with pytest.raises(UsageError, match=words):
            vectors.write_vectors(tmp_path / out)
    for error_type, caught in ((KeyboardInterrupt, KeyboardInterrupt), (OSError, UsageError)):
        monkeypatch.setattr(
            vectors, "write_safetensors", interrupt(error_type, 3, errno.ENOSPC, "No space left on device")
        )
        with pytest.raises(caught):
            vectors.write_vectors(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Somebody's outputs: half of the operations as .npy, half as safetensors; right in all precisions."""
    folder = tmp_path_factory.mktemp("outputs")
    for i, op in enumerate(OPS):
        results = {case.name: case.y for case in all_cases() if case.op == op}
        if i % 2:
            write_safetensors(
                folder / f"{op}.safetensors", {n + "/y" * (i % 4 == 1): y for n, y in results.items()}, "F32"
            )
        else:
            (folder / op).mkdir()
            for name, y in results.items():
                np.save(folder / op / f"{name}.npy", y)
    return folder


@pytest.mark.parametrize("precision", PRECISIONS)
def test_outputs_in_files(written, outputs, precision):
    outcomes = judge_vectors.compare_vectors(written, outputs, precision)
    assert len(outcomes) == sum(precision in case.rounding for case in all_cases())
    assert not [outcome.problem for outcome in outcomes if outcome.problem]


def test_wrong_outputs_in_files(written, outputs, tmp_path):
    theirs = Path(shutil.copytree(outputs, tmp_path / "theirs"))
    case = next(case for case in all_cases() if case.op == "embed")
    np.save(theirs / "embed" / f"{case.name}.npy", 1.01 * case.y)
    (theirs / "linear.safetensors").unlink()
    outcomes = judge_vectors.compare_vectors(written, theirs)
    assert [(o.case.op, o.case.name) for o in outcomes if o.problem] == [("embed", case.name)]
    assert not any(o.case.op == "linear" for o in outcomes)
    np.save(theirs / "embed" / f"{case.name}.npy", case.y.astype(int))
    with pytest.raises(GoldenError, match="is of type"):
        judge_vectors.compare_vectors(written, theirs)
    (theirs / "rope.safetensors").write_bytes(b"broken")
    (theirs / "embed" / f"{case.name}.npy").unlink()
    shutil.rmtree(theirs / "rope", ignore_errors=True)
    with pytest.raises(GoldenError, match="header"):
        judge_vectors.compare_vectors(written, theirs)
    (tmp_path / "none").mkdir()
    refused(
        lambda: judge_vectors.compare_vectors(written, tmp_path / "none"), tmp_path / "none", None, "holds no outputs"
    )
    with pytest.raises(UsageError, match="must be one of fp32, bf16, fp16, got fp8"):
        judge_vectors.compare_vectors(written, outputs, "fp8")


C0 = ("cases", 0)
VECTORS = {
    "another format": (("format",), "qwq-golden", "both", "format", "must be qwq-vectors"),
    "version 2.0": (("version",), "2.0", "both", "version", "this reader knows 1.x"),
    "version 1": (("version",), 1, "both", "version", "must be MAJOR.MINOR"),
    "no cases": (("cases",), GONE, "both", "cases", "must be a list"),
    "cases are an object": (("cases",), {}, "both", "cases", "must be a list"),
    "a case is a name": (C0, "x", "both", "cases[0]", "must be an object"),
    "no operation": ((*C0, "op"), GONE, "both", "cases[0].op", "must be letters"),
    "an unknown operation": ((*C0, "op"), "gelu", "reader", "cases[0].op", "gelu is no operation"),
    "an operation that climbs": ((*C0, "op"), "../embed", "both", "cases[0].op", "must be letters"),
    "a case that climbs": ((*C0, "case"), "../../x", "both", "cases[0].case", "must be letters"),
    "a case without a name": ((*C0, "case"), "", "both", "cases[0].case", "must be letters"),
    "a case of a list": ((*C0, "case"), ["x"], "both", "cases[0].case", "must be letters"),
    "a case twice": (("cases", 2, "case"), "bias", "reader", "cases[2].case", "bias of linear is there twice"),
    "inputs are a name": ((*C0, "inputs"), "x", "both", "cases[0].inputs", "a list of different names"),
    "an input twice": ((*C0, "inputs"), ["w", "w"], "both", "cases[0].inputs", "a list of different names"),
    "an input called y": ((*C0, "inputs"), ["w", "y"], "both", "cases[0].inputs", "a list of different names, not y"),
    "an input of a number": ((*C0, "inputs"), [1], "both", "cases[0].inputs", "a list of different names"),
    "attributes of text": ((*C0, "attributes"), {"eps": "1"}, "both", "cases[0].attributes", "an object of numbers"),
    "attributes are null": ((*C0, "attributes"), None, "both", "cases[0].attributes", "an object of numbers"),
    "rounding is a number": ((*C0, "rounding"), 1e-7, "both", "cases[0].rounding", "an object of numbers"),
    "rounding is null": ((*C0, "rounding", "fp32"), None, "both", "cases[0].rounding", "an object of numbers"),
    "rounding of text": ((*C0, "rounding", "fp32"), "x", "both", "cases[0].rounding.fp32", "must be a number >= 0"),
    "negative rounding": ((*C0, "rounding", "bf16"), -1, "both", "cases[0].rounding.bf16", "must be a number >= 0"),
    "huge rounding": ((*C0, "rounding", "bf16"), 1e99, "both", "cases[0].rounding.bf16", "must be a number >= 0"),
}


@pytest.mark.parametrize("case", VECTORS)
def test_broken_vectors(written, tmp_path, case):
    where, value, who, field, words = VECTORS[case]
    folder = Path(shutil.copytree(written, tmp_path / "v"))
    values = changed(json.loads((folder / "manifest.json").read_text()), where, value)
    (folder / "manifest.json").write_text(json.dumps(values))
    assert validator("golden-vectors.schema.json").is_valid(values) == (who == "reader")
    refused(lambda: vectors.read_vectors(folder), folder / "manifest.json", field, words)


def test_broken_files_of_vectors(written, tmp_path):
    folder = Path(shutil.copytree(written, tmp_path / "v"))
    file = folder / "embed.safetensors"
    name = "first-last-repeated"
    for change, field, words in (
        (lambda tensors: tensors.pop(f"{name}/y"), f"{name}/y", "is missing"),
        (replace(f"{name}/w", lambda x: x.astype(np.float16)), f"{name}/w", "must be F32, is F16"),
        (set_value(f"{name}/y", (0, 0), np.nan), f"{name}/y", "holds a NaN"),
    ):
        shutil.copy(written / "embed.safetensors", file)
        rewrite(file, change)
        refused(lambda: vectors.read_vectors(folder), file, field, words)
    file.unlink()
    refused(lambda: vectors.read_vectors(folder), file, None, "cannot be opened")
    refused(lambda: vectors.read_vectors(tmp_path / "no"), tmp_path / "no" / "manifest.json", None, "cannot be opened")


def test_later_vectors_are_read(written, tmp_path):
    folder = Path(shutil.copytree(written, tmp_path / "v"))
    values = json.loads((folder / "manifest.json").read_text())
    new = {"op": "gelu", "case": "x", "inputs": ["x"], "attributes": {}, "rounding": {"fp8": 0.1}, "more": 1}
    values |= {"version": "1.3", "more": 1, "cases": [*values["cases"], new]}
    (folder / "manifest.json").write_text(json.dumps(values))
    validator("golden-vectors.schema.json").validate(values)
    assert len(vectors.read_vectors(folder)) == len(all_cases())


# --- the command line ---


@pytest.fixture
def qwq(capsys, monkeypatch):
    """qwq golden ... -> (exit status, stdout, stderr)"""
    for library in ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM"):
        monkeypatch.setenv(f"{library}_NUM_THREADS", "1")  # -t sets them; they are restored

    def run(*arguments, text=None):
        if text is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        capsys.readouterr()
        try:
            status = main(["golden", *(str(argument) for argument in arguments)])
        except SystemExit as stop:
            status = stop.code
        return (status, *capsys.readouterr())

    return run


def fails(result, status, *words):
    """One line on stderr, nothing on stdout."""
    assert result[0] == status, result
    assert result[1] == ""
    assert len(result[2].splitlines()) == 1, result[2]
    assert all(word in result[2] for word in words), result[2]


def test_record_and_compare(qwq, recorded, tmp_path):
    out = tmp_path / "pack"
    ids = ",".join(map(str, IDS))
    status, stdout, stderr = qwq("record", "-m", recorded / "model", "--ids", ids, "--decode", DECODE, "-o", out)
    assert (status, stdout) == (0, "")
    assert stderr.startswith(f"{out}: 5 tokens and 2 steps of decoding, ")
    assert len(stderr.splitlines()) == 1
    mine, wanted = contents(out), contents(recorded)
    assert all(mine[name] == wanted[name] for name in mine if name != "manifest.json")
    assert manifest_of(out).model == "model"
    status, stdout, stderr = qwq("compare", out, recorded, "-m", recorded / "model")
    assert (status, stderr) == (0, "")
    assert f"golden: {out} (model, 5 tokens + 2 steps of decoding)" in stdout
    assert "PASS" in stdout


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """Tensors of the small model with SiLU replaced, as somebody's file; and right ones."""
    folder = tmp_path_factory.mktemp("wrong")
    seen = spec_run(CONFIG, WEIGHTS, PHASES)
    right = {f"{phase}/{tap}": value for phase, taps in seen.items() for tap, value in taps.items()}
    np.savez(folder / "right.npz", **right)
    act = f"{LAST}mlp.act"
    for phase in seen:
        gate, up = (seen[phase][f"{LAST}mlp.{name}_proj"] for name in ("gate", "up"))
        right[f"{phase}/{act}"] = np.maximum(gate, 0) * up
    del right[f"prompt/{QROPE}"]
    np.savez(folder / "wrong.npz", **right)
    return folder


def test_a_divergence_is_exit_status_3(qwq, recorded, wrong, tmp_path):
    status, stdout, stderr = qwq("compare", recorded, wrong / "wrong.npz")
    assert (status, stderr) == (3, "")
    assert f"FAIL: first divergence at {LAST}mlp.act, in the prompt" in stdout
    assert "cause: relu" in stdout
    status, stdout, _ = qwq("compare", recorded, wrong / "wrong.npz", "--no-explain")
    assert (status, "relu" in stdout) == (3, False)
    files = {kind: tmp_path / f"report.{kind}" for kind in ("html", "json", "junit")}
    options = [part for kind, file in files.items() for part in (f"--{kind}", file)]
    status, stdout, stderr = qwq("compare", recorded, wrong / "wrong.npz", *options)
    assert (status, stderr) == (3, "")
    assert "FAIL" in stdout
    facts = json.loads(files["json"].read_text())
    assert (facts["passed"], facts["first"]["tap"], facts["causes"][0]["name"]) == (False, f"{LAST}mlp.act", "relu")
    assert files["html"].read_text().lstrip().startswith("<!")
    assert "relu" in files["html"].read_text()
    suite = ElementTree.parse(files["junit"]).getroot().find("testsuite")
    cases = suite.findall("testcase")
    n = len(tap_names(CONFIG)) * len(PHASES)
    counts = facts["counts"]
    bad = n - 1 - counts["ok"]
    assert len(cases) == n
    assert [int(suite.get(key)) for key in ("tests", "failures", "skipped")] == [n, bad, 1]
    assert sum(case.find("failure") is not None for case in cases) == bad >= len(PHASES)
    skipped = [(case.get("classname"), case.get("name")) for case in cases if case.find("skipped") is not None]
    assert skipped == [("prompt", QROPE)]


def test_json_alone_is_on_stdout(qwq, recorded, wrong):
    for name, wanted in (("right", 0), ("wrong", 3)):
        status, stdout, stderr = qwq("compare", recorded, wrong / f"{name}.npz", "--json", "-")
        assert (status, stderr) == (wanted, "")
        facts = json.loads(stdout)
        assert facts["passed"] == (wanted == 0)
        assert {tap["status"] for tap in facts["taps"]} <= {"ok", "introduced", "propagated"}


def test_coverage_is_said_where_asked(qwq, recorded, wrong):
    _, stdout, _ = qwq("compare", recorded, wrong / "wrong.npz", "--coverage")
    assert "cannot be told from these tensors" in stdout


@pytest.mark.parametrize("option", ["--html", "--json", "--junit"])
def test_reports_that_cannot_be_written(qwq, recorded, wrong, tmp_path, option):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "no" / "x", tmp_path / "file" / "x", tmp_path):
        result = qwq("compare", recorded, wrong / "right.npz", option, place)
        assert result[0] == 2
        assert result[2].startswith(f"qwq: {place}: cannot be written (")
        assert len(result[2].splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_precisions_on_the_command_line(qwq, recorded, tmp_path):
    seen = spec_run(CONFIG, WEIGHTS, PHASES, "bfloat16")
    np.savez(tmp_path / "x.npz", **{f"{phase}/{tap}": x for phase, taps in seen.items() for tap, x in taps.items()})
    assert "taps in bf16 (told from the values)" in qwq("compare", recorded, tmp_path / "x.npz")[1]
    assert qwq("compare", recorded, tmp_path / "x.npz", "--precision", "fp32")[0] == 3
    assert qwq("compare", recorded, tmp_path / "x.npz", "--precision", "bf16")[0] == 0
    status, stdout, _ = qwq("compare", recorded, tmp_path / "x.npz", "--precision", "lm_head=fp32", "--json", "-")
    facts = json.loads(stdout)
    assert status == 3
    assert {tap["tap"] for tap in facts["taps"] if tap["precision"] == "fp32"} == {"lm_head"}
    fails(qwq("compare", recorded, tmp_path / "x.npz", "--precision", "fp8"), 2, "precision", "must be one of fp32")


BAD = {
    "no action": ([], 2, ["required: ACTION"]),
    "an unknown action": (["measure"], 2, ["invalid choice"]),
    "no place": (["record", "x"], 2, ["required: -o"]),
    "ids of text": (["record", "--ids", "1,x", "-o", "OUT"], 2, ["ids: must be an integer, got x"]),
    "an id too large": (["record", "--ids", "1,999999", "-o", "OUT"], 2, ["token_ids: must be at least one id"]),
    "all steps": (["record", "--ids", "1,2", "--decode", "2", "-o", "OUT"], 2, ["decode: must leave a prompt"]),
    "an unknown tap": (["record", "--ids", "1", "--taps", "*.x", "-o", "OUT"], 2, ["taps: *.x matches no tap"]),
    "an unknown size": (["record", "--ids", "1", "--size", "lm_head=all", "-o", "OUT"], 2, ["size: must be one of"]),
    "a layer of text": (["record", "--ids", "1", "--layers", "one", "-o", "OUT"], 2, ["layers: must be an integer"]),
    "a layer too many": (["record", "--ids", "1", "--layers", "99", "-o", "OUT"], 2, ["layers: must be -"]),
    "memory of text": (
        ["record", "--ids", "1", "--max-memory", "much", "-o", "OUT"],
        2,
        ["max-memory: must be a size"],
    ),
    "too little memory": (["record", "--ids", "1", "--max-memory", "1M", "-o", "OUT"], 1, ["qwq-nano: needs "]),
    "no threads": (["record", "--ids", "1", "-t", "0", "-o", "OUT"], 2, ["threads: must be at least 1"]),
    "an empty prompt": (["record", " ", "-o", "OUT"], 2, ["prompt: is empty"]),
    "no such model": (["record", "-m", "./nothing", "--ids", "1", "-o", "OUT"], 1, ["nothing"]),
    "a folder that exists": (["record", "--ids", "1", "-o", "HERE"], 2, ["exists already"]),
    "a folder in a file": (["record", "--ids", "1", "-o", "FILE/x"], 2, ["cannot be written (Not a directory)"]),
    "no such pack": (["compare", "OUT", "OUT"], 1, ["is not a folder"]),
    "no such candidate": (["compare", "gqa", "OUT"], 1, ["no such file or folder"]),
    "a candidate of nothing": (["compare", "gqa", "HERE"], 1, ["holds no tensor"]),
    "a model that is another": (
        ["compare", "gqa", "GQA", "-m", "qwq-nano"],
        1,
        ["gqa: model: was recorded from another"],
    ),
    "vectors that exist": (["vectors", "-o", "HERE"], 2, ["exists already"]),
    "vectors in a file": (["vectors", "-o", "FILE/x"], 2, ["cannot be written (Not a directory)"]),
    "export of nothing": (["export", "OUT", "-o", "OUT"], 1, ["is not a folder"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_use(qwq, tmp_path, case):
    arguments, status, words = BAD[case]
    file = tmp_path / "file"
    file.write_text("mine")
    (tmp_path / "here").mkdir()
    places = {"OUT": tmp_path / "out", "HERE": tmp_path / "here", "FILE": file, "GQA": oracle.path("gqa")}
    named = [functools.reduce(lambda a, k: a.replace(k, str(places[k])), places, argument) for argument in arguments]
    fails(qwq(*named), status, *words)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "here"}
    assert not list((tmp_path / "here").iterdir())


def test_a_broken_pack_is_exit_status_1(qwq, pack, wrong):
    rewrite(pack / "prompt.safetensors", set_value(QROPE, 0, np.nan))
    fails(qwq("compare", pack, wrong / "right.npz"), 1, f"qwq: {pack}/prompt.safetensors: ")
    (pack / "manifest.json").write_text("{}")
    fails(qwq("compare", pack, wrong / "right.npz"), 1, f"qwq: {pack}/manifest.json: format: must be qwq-golden")
    fails(qwq("export", pack, "-o", pack / "x.npz"), 1, "format: must be qwq-golden")


@pytest.fixture(scope="module")
def nano():
    folder = resolve("qwq-nano")
    with Checkpoint.open(folder) as checkpoint:
        config = checkpoint.config
    return folder, config, load_tokenizer(folder, config.vocab_size)


def test_a_text_is_tokenised(qwq, nano, tmp_path):
    folder, _, tokenizer = nano
    small = ["--taps", "lm_head", "--size", "last"]
    question = "What is 2+3?"
    (tmp_path / "prompt.txt").write_text(question)
    plain = tokenizer.encode(question)
    chat = load_chat_template(folder, None).encode(tokenizer, [{"role": "user", "content": question}])
    assert plain != chat
    for i, (arguments, wanted) in enumerate(
        [
            ([question], plain),
            (["-p", question], plain),
            (["-f", tmp_path / "prompt.txt"], plain),
            (["--chat", question, "-t", 1], chat),
            ([question, "--ids", "5, 6,7"], [5, 6, 7]),
        ]
    ):
        assert qwq("record", *arguments, *small, "-o", tmp_path / str(i))[0] == 0
        assert manifest_of(tmp_path / str(i)).token_ids == wanted
    assert qwq("record", *small, "-o", tmp_path / "piped", text=question)[0] == 0
    assert manifest_of(tmp_path / "piped").token_ids == plain
    assert manifest_of(tmp_path / "piped").model == "qwq-nano"


def test_the_oracles_threads_are_its_own(qwq, tmp_path):
    """BLAS has one, whatever is asked for; and how many share the work changes no byte."""
    for threads in (1, 3):
        qwq("record", "--ids", "1,2,3", "--decode", "1", "-o", tmp_path / f"{threads}", "-t", threads)
        assert os.environ["OPENBLAS_NUM_THREADS"] == "1"
    for file in ("prompt.safetensors", "decode-0.safetensors", "manifest.json"):
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "3" / file).read_bytes()


def kept_by(qwq, recorded, out, *options):
    assert qwq("record", "-m", recorded / "model", "--ids", "1,2,3", "-o", out, *options)[0] == 0
    with Golden.open(out) as golden:
        return golden.manifest.sizes


def test_sizes_on_the_command_line(qwq, recorded, tmp_path):
    """A bare size is for what no pattern fits, wherever it stands; without one that is kept whole."""
    names = tap_names(CONFIG)
    mlp = [tap for tap in names if ".mlp." in tap]
    for i, (options, rest) in enumerate(
        [
            (["--size", "*.mlp.*=sketch"], "full"),
            (["--size", "*.mlp.*=sketch", "--size", "last"], "last"),
            (["--size", "last", "--size", "*.mlp.*=sketch"], "last"),
            (["--size", "*.mlp.*=sketch", "--size", "*.mlp.act=stats", "--size", "last"], "last"),
        ]
    ):
        kept = kept_by(qwq, recorded, tmp_path / str(i), *options)
        assert kept == dict.fromkeys(names, rest) | dict.fromkeys(mlp, "sketch")
    kept = kept_by(qwq, recorded, tmp_path / "order", "--size", "*.mlp.act=stats", "--size", "*.mlp.*=sketch")
    assert (kept[f"{LAST}mlp.act"], kept[f"{LAST}mlp.up_proj"], kept["lm_head"]) == ("stats", "sketch", "full")


def test_layers_and_taps_on_the_command_line(qwq, recorded, tmp_path):
    kept = kept_by(qwq, recorded, tmp_path / "a", "--layers", "-1")
    assert set(kept) == {tap for tap in tap_names(CONFIG) if "layers.0" not in tap}
    kept = kept_by(qwq, recorded, tmp_path / "b", "--layers=-1,0", "--taps", "*.act", "--taps", "lm_head")
    assert set(kept) == {"model.layers.0.mlp.act", f"{LAST}mlp.act", "lm_head"}


def test_the_model_is_put_into_the_pack(qwq, recorded, tmp_path):
    assert kept_by(qwq, recorded, tmp_path / "a", "--include-weights", "--max-memory", "8G")
    assert contents(tmp_path / "a" / "model") == contents(recorded / "model")


def test_rope_scaling_on_the_command_line(qwq, recorded, tmp_path):
    kept_by(qwq, recorded, tmp_path / "a", "--rope-scaling", "yarn", "--rope-scale", "2", "--yarn-orig-ctx", "64")
    with Golden.open(tmp_path / "a") as golden:
        assert (golden.manifest.config.rope.type, golden.manifest.config.rope.factor) == ("yarn", 2)


def test_list_and_mistakes(qwq):
    status, stdout, stderr = qwq("list")
    assert (status, stderr) == (0, "")
    lines = stdout.splitlines()
    assert [line.split()[0] for line in lines[::2]] == oracle.conformance()
    assert [Path(line.strip()) for line in lines[1::2]] == [oracle.path(name) for name in oracle.conformance()]
    status, stdout, stderr = qwq("mistakes")
    assert (status, stderr) == (0, "")
    assert [line.split()[0] for line in stdout.splitlines()] == [mistake.name for mistake in MISTAKES]


def test_export(qwq, tmp_path):
    assert qwq("export", "tied", "-o", tmp_path / "x.npz") == (0, "", "")
    with np.load(tmp_path / "x.npz") as archive, Golden.open(oracle.path("tied")) as golden:
        assert archive["token_ids"].tolist() == golden.manifest.token_ids
        names = {f"{phase.name}/{tap}" for phase in golden.manifest.phases for tap in golden.manifest.sizes}
        assert set(archive.files) == names | {"token_ids"}
        for name in names:
            assert np.array_equal(archive[name], golden.read(*name.split("/")))
    assert qwq("compare", "tied", tmp_path / "x.npz")[0] == 0


def test_vectors_on_the_command_line(qwq, written, outputs, tmp_path):
    status, stdout, stderr = qwq("vectors", "-o", tmp_path / "v")
    assert (status, stdout, stderr) == (0, "", f"{tmp_path / 'v'}: {len(all_cases())} cases\n")
    assert contents(tmp_path / "v") == contents(written)
    status, stdout, _ = qwq("compare", written, outputs)
    assert (status, stdout.splitlines()[-1].split(":")[0]) == (0, "PASS")
    theirs = Path(shutil.copytree(outputs, tmp_path / "theirs"))
    name = next(case.name for case in all_cases() if case.op == "embed")
    np.save(theirs / "embed" / f"{name}.npy", np.zeros(3, np.float32))
    status, stdout, _ = qwq("compare", written, theirs)
    assert (status, stdout.splitlines()[0]) == (3, f"embed, {name}: shape [3], not [4, 24]")
    (tmp_path / "none").mkdir()
    fails(qwq("compare", written, tmp_path / "none"), 1, "holds no outputs")
    fails(qwq("compare", written, outputs, "--precision", "fp8"), 2, "precision: must be one of")


def test_as_a_program(recorded, wrong, tmp_path):
    """stdout is the result alone; a reader that goes away is no error."""
    command = [sys.executable, "-m", "qwq_ref", "golden", "compare", recorded, wrong / "wrong.npz", "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "")
    assert json.loads(done.stdout)["causes"][0]["name"] == "relu"


# --- memory ---


def test_the_peak_of_a_process_is_its_own():
    """What getrusage says of a new program includes the one that started it."""
    code = "from qwq_ref.host.memory import peak_bytes; print(peak_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100 << 20 < resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.long
def test_a_model_ten_times_as_large_as_memory(tmp_path, request):
    """64 layers, 1.9 GB in bfloat16, recorded within a tenth of that."""
    config = Config.from_dict(
        config_values(
            num_hidden_layers=64,
            hidden_size=1024,
            intermediate_size=3712,
            vocab_size=32768,
            num_attention_heads=16,
            num_key_value_heads=2,
            head_dim=64,
        )
    )
    folder = tmp_path / "model"
    folder.mkdir()
    request.addfinalizer(lambda: shutil.rmtree(folder, ignore_errors=True))
    write_json(folder / "config.json", config.to_dict())
    rng = np.random.default_rng(0)
    with open(folder / "model.safetensors", "wb") as file:
        stream = SafetensorsStream(file, config.tensors(), "BF16")
        for name, shape in config.tensors().items():
            value = rng.standard_normal(shape, np.float32)
            stream.append(name, 1 + value / 10 if "norm" in name else value * np.float32(shape[-1] ** -0.5))
    size = (folder / "model.safetensors").stat().st_size
    assert size > 1.85e9
    limit = size // 10
    script = (
        "import sys; from qwq_ref.cli import main; status = main(sys.argv[1:]);"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')));"
        "raise SystemExit(status)"
    )
    command = [
        "golden",
        "record",
        "-m",
        folder,
        "--ids",
        "5,77,1234,31000,2,9",
        "--decode",
        "2",
        "-o",
        tmp_path / "pack",
    ]
    command += ["--max-memory", f"{limit / 2**20:.0f}M", "-t", "1"]
    done = subprocess.run([sys.executable, "-c", script, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < limit
    with Golden.open(tmp_path / "pack") as golden:
        golden.verify()
        assert len(golden.manifest.sizes) == 64 * 21 + 5
        with Checkpoint.open(folder) as checkpoint:
            for name in ("model.norm.weight", "model.layers.63.mlp.down_proj.weight"):
                digest = hashlib.sha256(checkpoint[name].astype("<f4").tobytes()).hexdigest()
                assert golden.manifest.weights[name] == digest


def test_an_export_that_cannot_be_written_is_one_line(qwq, tmp_path):
    status, out, err = qwq("export", "gqa", "-o", tmp_path / "no" / "such.npz")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "cannot be written" in err
