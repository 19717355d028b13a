"""Candidates: other tokens, broken tensors and other models."""

import functools
import json
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from qwq_ref.config import Config
from qwq_ref.errors import (
    CheckpointError,
)
from qwq_ref.formats.write import write_json, write_safetensors
from qwq_ref.oracle import Candidate, compare
from tests.support.packs import (
    CONFIG,
    IDS,
    PHASES,
    QROPE,
    VALUES,
    WEIGHTS,
    loud,
    refused,
    spec_run,
)


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
