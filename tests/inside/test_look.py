"""The data of a look inside: against Hugging Face's own hidden states and attentions, and by its own rules."""

import functools
import json
import tracemalloc

import numpy as np
import pytest
import torch

import qwq_ref
from qwq_ref.config import Config
from qwq_ref.errors import MemoryLimitError, NonFiniteError, UsageError
from qwq_ref.formats import Checkpoint, resolve
from qwq_ref.inside import MOST_TOKENS, SUBJECTS, look, needs, token_text
from qwq_ref.inside.look import steps
from tests.support import hf
from tests.support.models import config_values, random_weights

PROMPT = "What is 123+456? 计算"


@functools.cache
def nano():
    model = qwq_ref.load("qwq-nano", backend="numpy")
    values = json.loads((resolve("qwq-nano") / "config.json").read_text())
    return model.config, values, model.backend.tensors, model.prompt_ids(PROMPT), model.tokenizer


@functools.cache
def tiny(**changes):
    values = config_values(num_hidden_layers=3, **changes)
    config = Config.from_dict(values)
    ids = np.random.default_rng(5).integers(0, 53, 70).tolist()  # more than the lens takes at a time
    return config, values, random_weights(config, 1, harsh=True), ids, None


MODELS = [nano, tiny, functools.partial(tiny, tie_word_embeddings=True)]
models = pytest.mark.parametrize("model", MODELS, ids=["nano", "tiny", "tied"])


@functools.cache
def theirs(model):
    """What transformers says: attentions [L, H, T, T], streams [L + 1, T, D], what was added, and lens logits."""
    config, values, weights, ids, _ = model()
    peer = hf.build(config, values, weights)
    outputs = {"attention": [], "mlp": [], "layer": []}

    def keep(name):
        return lambda module, inputs, out: outputs[name].append(out[0] if isinstance(out, tuple) else out)

    for layer in peer.model.layers:
        layer.self_attn.register_forward_hook(keep("attention"))
        layer.mlp.register_forward_hook(keep("mlp"))
        layer.register_forward_hook(keep("layer"))
    with torch.no_grad():
        out = peer(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)
        last = outputs["layer"][-1].reshape(1, len(ids), -1)  # the last of hidden_states is already normed
        streams = torch.stack([*out.hidden_states[:-1], last])[:, 0]
        lens = peer.lm_head(peer.model.norm(streams))
        lens[-1] = out.logits[0]
    rms = {
        name: torch.cat([x.reshape(1, len(ids), -1) for x in outputs[name]]).pow(2).mean(-1).sqrt().numpy()
        for name in ("attention", "mlp")
    }
    return torch.cat(out.attentions).numpy(), streams.numpy(), rms, lens.numpy()


@models
def test_attention_is_that_of_transformers(model):
    config, _, weights, ids, _ = model()
    wanted = theirs(model)[0]
    for token in (0, 3, -1):
        found = look(config, weights, ids, ["attention"], head=7, token=token).attention
        at = token % len(ids)
        assert found.layers == tuple(range(config.L))
        assert found.query.shape == (config.L, config.H, at + 1)
        np.testing.assert_allclose(found.query, wanted[:, :, at, : at + 1], rtol=0, atol=1e-5)
        np.testing.assert_allclose(found.matrix, wanted[:, 7], rtol=0, atol=1e-5)
    some = look(config, weights, ids, ["attention"], layers=[-1, 0])
    assert (some.attention.layers, some.attention.matrix) == ((config.L - 1, 0), None)
    np.testing.assert_allclose(some.attention.query, wanted[[-1, 0], :, -1], rtol=0, atol=1e-5)


@models
def test_the_residual_stream_is_that_of_transformers(model):
    config, _, weights, ids, _ = model()
    found = look(config, weights, ids, ["residual"]).residual
    _, streams, added, _ = theirs(model)
    np.testing.assert_allclose(found.rms, np.sqrt(np.mean(streams**2, axis=-1)), rtol=1e-5)
    np.testing.assert_allclose(found.attention, added["attention"], rtol=1e-4)
    np.testing.assert_allclose(found.mlp, added["mlp"], rtol=1e-4)


@models
def test_the_lens_is_the_norm_and_the_head_of_transformers(model):
    config, _, weights, ids, _ = model()
    logits = theirs(model)[3]
    found = look(config, weights, ids, ["lens"], top=4).lens
    probs = torch.softmax(torch.from_numpy(logits), -1).numpy()
    assert found.ids.shape == found.probs.shape == (config.L + 1, len(ids), 4)
    np.testing.assert_allclose(found.probs, -np.sort(-probs, axis=-1)[..., :4], rtol=0, atol=2e-5)
    np.testing.assert_allclose(np.take_along_axis(probs, found.ids, -1), found.probs, rtol=0, atol=2e-5)
    final = found.ids[-1, :, 0]
    own = np.take_along_axis(logits, np.broadcast_to(final, logits.shape[:2])[..., None], -1)
    near = 1e-4 * np.abs(logits).max()
    assert (found.rank >= 1 + np.sum(logits > own + near, -1)).all()
    assert (found.rank <= 1 + np.sum(logits > own - near, -1)).all()


def test_the_last_row_of_the_lens_is_the_output_of_the_model():
    config, _, weights, ids, _ = nano()
    found = look(config, weights, ids, ["lens"], top=config.V if config.V < 50 else 50).lens
    logits = qwq_ref.load("qwq-nano", backend="numpy").logits(ids).astype(np.float64)
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    assert np.array_equal(found.ids[-1, :, 0], logits.argmax(-1))
    assert np.array_equal(found.rank[-1], np.ones(len(ids)))
    np.testing.assert_allclose(found.probs[-1], np.take_along_axis(probs, found.ids[-1], -1), rtol=1e-5)


def test_equal_logits_come_in_the_order_of_ids():
    config = Config.from_dict(config_values())
    weights = random_weights(config, 1)
    weights["lm_head.weight"][:] = 0
    found = look(config, weights, [1, 2], ["lens"], top=3).lens
    assert np.array_equal(found.ids, np.broadcast_to([0, 1, 2], found.ids.shape))
    np.testing.assert_allclose(found.probs, 1 / config.V, rtol=1e-6)
    assert (found.rank == 1).all()


@models
def test_rows_of_attention_sum_to_one(model):
    config, _, weights, ids, tokenizer = model()
    found = look(config, weights, ids, ["attention"], head=0)
    np.testing.assert_allclose(found.attention.query.sum(-1), 1, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.attention.matrix.sum(-1), 1, rtol=0, atol=1e-5)
    facts = found.to_dict(tokenizer)["attention"]
    for rows in [*facts["query"], *facts["matrix"]]:
        for row in rows:
            assert abs(sum(row) - 1) < len(row) * 6e-5
    assert [[len(row) for row in rows] for rows in facts["matrix"]] == [[*range(1, len(ids) + 1)]] * config.L


def test_weights_on_disk_give_the_same_numbers():
    config, _, weights, ids, tokenizer = nano()
    with Checkpoint.open(resolve("qwq-nano")) as disk:
        assert look(config, disk, ids).to_dict(tokenizer) == look(config, weights, ids).to_dict(tokenizer)


def test_the_shape_of_the_data():
    """docs/inside.md describes it: the server's page reads these fields."""
    config, _, weights, ids, tokenizer = nano()
    L, T = config.L, len(ids)
    facts = look(config, weights, ids, head=2, token=4, top=3, prompt=T - 2).to_dict(tokenizer)
    assert [*facts] == ["version", "tokens", "prompt_tokens", "token", "layers", "heads", *SUBJECTS]
    assert {name: facts[name] for name in ("version", "prompt_tokens", "token", "layers", "heads")} == {
        **{"version": 1, "prompt_tokens": T - 2, "token": 4, "layers": 4, "heads": 10}
    }
    assert facts["tokens"][0] == {"id": 487, "text": "<|im_start|>"}
    assert [*facts["attention"]] == ["layers", "query", "head", "matrix"]
    assert np.shape(facts["attention"]["query"]) == (L, 10, 5)
    assert {name: np.shape(rows) for name, rows in facts["residual"].items()} == {
        **{"rms": (L + 1, T), "attention": (L, T), "mlp": (L, T)}
    }
    lens = facts["lens"]
    assert [*lens] == ["texts", "ids", "probs", "rank"]
    assert np.shape(lens["ids"]) == np.shape(lens["probs"]) == (L + 1, T, 3)
    assert np.shape(lens["rank"]) == (L + 1, T)
    assert {str(i) for row in lens["ids"] for three in row for i in three} == set(lens["texts"])
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts

    def numbers(x):
        return [x] if isinstance(x, float) else [n for part in x for n in numbers(part)] if isinstance(x, list) else []

    for number in [*numbers(facts["attention"]["query"]), *numbers(lens["probs"])]:
        assert number == round(number, 4)
    for rows in facts["residual"].values():
        assert all(number == float(f"{number:.4g}") for number in numbers(rows))
    assert set(look(config, weights, ids, ["residual"]).to_dict(tokenizer)) & set(SUBJECTS) == {"residual"}


def test_the_text_of_a_token():
    tokenizer = nano()[4]
    texts = [token_text(tokenizer, i) for i in tokenizer.encode("三加 is\n")]
    assert texts == [r"\xe4\xb8", r"\x89", "加", " is", "\n"]
    assert token_text(tokenizer, 1 << 30) == f"#{1 << 30}"
    assert token_text(None, 3) == "#3"


@pytest.mark.parametrize(
    ("how", "field", "problem"),
    [
        ({"layers": [4]}, "layer", "must be -4 to 3, got 4"),
        ({"layers": [-5]}, "layer", "must be -4 to 3, got -5"),
        ({"head": 10}, "head", "must be -10 to 9, got 10"),
        ({"token": 3}, "token", "must be -3 to 2, got 3"),
        ({"top": 0}, "top", "must be 1 to 50, got 0"),
        ({"top": 51}, "top", "must be 1 to 50, got 51"),
        ({"subjects": ["lense"]}, "subject", "must be some of attention, residual, lens, got lense"),
        ({"subjects": []}, "subject", "must be some of attention, residual, lens, got none"),
        ({"token_ids": [512]}, "prompt", r"token_ids must be in \[0, 512\), got 512 to 512"),
        ({"token_ids": []}, "prompt", "token_ids must be a non-empty list of integers"),
        ({"token_ids": [1] * 513}, "prompt", "has 513 tokens, and a look inside takes at most 512"),
    ],
)
def test_wrong_wishes_are_refused(how, field, problem):
    config, _, weights, _, _ = nano()
    how = {"token_ids": [1, 2, 3]} | how
    with pytest.raises(UsageError, match=problem) as refused:
        look(config, weights, how.pop("token_ids"), **how)
    assert refused.value.field == field


def test_weights_that_are_not_finite_are_named():
    config, _, weights, ids, _ = nano()
    name = "model.layers.1.mlp.down_proj.weight"
    broken = {**weights, name: np.full_like(weights[name], np.inf)}
    with pytest.raises(NonFiniteError, match=r"a-model: model\.layers\.1\.resid_post: is not finite"):
        look(config, broken, ids, model="a-model")


def test_progress_counts_its_steps():
    config, _, weights, _, _ = nano()
    for subjects in (["attention"], ["lens"], SUBJECTS):
        told = []
        look(config, weights, [1, 2], subjects, progress=told.append)
        assert sum(told) == len(told) == steps(config, subjects)


def test_memory_is_refused_before_any_weight_is_read(monkeypatch):
    config, _, _, ids, _ = nano()
    monkeypatch.setattr("qwq_ref.host.memory.available_bytes", lambda: 1 << 20)
    with pytest.raises(MemoryLimitError, match=r"^a-model: needs .* of memory \(a tensor of the weights .*\), but 1"):
        look(config, {}, ids, model="a-model")


@pytest.mark.parametrize("subjects", [["attention"], ["residual"], ["lens"], SUBJECTS])
@pytest.mark.parametrize("T", [64, MOST_TOKENS])
@pytest.mark.parametrize("wide", ["scores", "mlp", "vocabulary"])
def test_memory_is_what_was_counted(subjects, T, wide):
    """Weights on disk, as the command reads them: their reading is the largest part of a short text."""
    changes = {
        "scores": {"num_attention_heads": 20},
        "mlp": {"intermediate_size": 40_000},
        "vocabulary": {"vocab_size": 30_000},
    }
    config = Config.from_dict(config_values(num_hidden_layers=3, **changes[wide]))
    ids = np.random.default_rng(0).integers(0, 53, T)

    class Disk(dict):
        def __missing__(self, name):
            return np.random.default_rng(0).random(config.tensors()[name], np.float32) - np.float32(0.5)

    look(config, Disk(), ids[:2])  # caches of NumPy and of the tests
    tracemalloc.start()
    look(config, Disk(), ids, subjects, head=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    total = sum(needs(config, T, subjects).values())
    assert peak <= total + (1 << 17)
    assert total <= 2.5 * peak
