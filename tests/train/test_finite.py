"""NaN and infinity in training and in batched sampling: no token comes of them, and no weight changes."""

import dataclasses
import shutil

import numpy as np
import pytest

from qwq_ref import cli
from qwq_ref.config import Config
from qwq_ref.errors import NonFiniteError
from qwq_ref.formats import resolve
from qwq_ref.spec import Sampling
from qwq_ref.train import model, rollout, sft
from tests.support.checkpoints import weights_of
from tests.support.models import config_values, random_weights

LIMITS = {"end_ids": (), "vocabulary": 53, "max_tokens": 4, "seed": 0}


@pytest.mark.parametrize("temperature", [0.0, 0.6])
@pytest.mark.parametrize(("at", "where"), [((2, 5), "prompt"), ((1, 5), r"decode step \d")])
def test_a_batch_with_nan_gives_no_answers(temperature, at, where):
    """In the embedding of a token of one prompt, or of one that is generated."""
    config = Config.from_dict(config_values())
    weights = random_weights(config, 0)
    weights["model.embed_tokens.weight"][at] = np.nan
    weights["lm_head.weight"][:] = weights["lm_head.weight"][1] * np.arange(53)[:, None]
    weights["lm_head.weight"][1] = 60 * weights["lm_head.weight"][1]
    prompts = [[3, 4, 5], [6, 2]]
    with pytest.raises(NonFiniteError, match=f"^{where}: the logits of an answer hold NaN or infinity"):
        rollout.answers(config, weights, prompts, Sampling(temperature), **LIMITS)


def test_a_stream_too_large_for_a_norm_gives_no_answers_and_no_loss():
    """The spec's norm makes zeros of it: finite logits, and a finite loss."""
    config = Config.from_dict(config_values())
    weights = random_weights(config, 0)
    weights["model.layers.0.mlp.down_proj.weight"][5, 5] = 1e30
    with pytest.raises(NonFiniteError, match=r"^prompt: the logits of an answer hold NaN or infinity"):
        rollout.answers(config, weights, [[3, 4, 5], [6, 2]], Sampling(0), **LIMITS)
    with np.errstate(all="ignore"):
        logits, _ = model.forward(config, weights, np.array([[3, 4, 5]]))
    assert np.isnan(logits).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_refused(bad):
    logits = np.zeros((3, 9), np.float32)
    logits[1, 4] = bad
    for how in (Sampling(0), Sampling(0.6, 3, 0.9, 0.1)):
        with pytest.raises(ValueError, match="the largest of the logits must be finite, got"):
            rollout.distribution_rows(logits, how)


@pytest.mark.parametrize("temperature", [5e-324, 1e-306, 1e-300])
def test_tiny_temperatures_are_greedy_in_batches(temperature):
    logits = np.random.default_rng(0).normal(0, 9, (4, 50)).astype(np.float32)
    for how in (Sampling(temperature), Sampling(temperature, 5, 0.9, 0.1)):
        assert np.array_equal(rollout.distribution_rows(logits, how), np.eye(50)[logits.argmax(-1)])


def test_a_step_with_nan_ends_training_and_changes_no_weight(tmp_path, capsys, monkeypatch):
    small = dataclasses.replace(sft.STAGES["cold-start"], rows=2, length=160)
    monkeypatch.setitem(sft.STAGES, "cold-start", small)
    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(resolve("qwq-nano-base"), base)
    data = bytearray((base / "model.safetensors").read_bytes())
    data[-1], data[-2] = 0x7F, 0xC0  # bfloat16 NaN in the last number of the last tensor
    (base / "model.safetensors").write_bytes(data)
    command = ["train", "cold-start", "-m", str(base), "--out", str(out), "--steps", "2", "-t", "1"]
    assert cli.main(command) == 1
    out_text, err = capsys.readouterr()
    assert out_text == ""
    assert err == (
        f"qwq: {out}: step 1: the loss is nan, the gradient's norm nan: the weights stay as before this step\n"
    )
    assert sum(int(np.isnan(w).sum()) for w in weights_of(base).values()) == 1
    assert not (out / "model.safetensors").exists()
