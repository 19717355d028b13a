"""The oracle judges this package's own engine in every mode, and finds a mistake in its layer."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq_ref import core, oracle
from qwq_ref.cli import main
from qwq_ref.config import Config
from qwq_ref.engine.backends import core as forward
from qwq_ref.engine.backends.core import CoreBackend
from qwq_ref.engine.packing import pack_weights
from qwq_ref.errors import GoldenError, UsageError
from qwq_ref.formats import Checkpoint, resolve
from qwq_ref.forms import FORMS, KV_FORMS
from qwq_ref.numerics import engine
from qwq_ref.oracle.graph import phases_of, tap_names
from qwq_ref.oracle.judge import engine as adapter
from qwq_ref.oracle.judge.bits import _same
from qwq_ref.spec import ops
from tests.support.models import configs, random_weights

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)
MODES = [adapter.Mode(weights, kv) for weights in FORMS for kv in KV_FORMS]
PACKS = oracle.conformance()


@pytest.fixture(scope="module")
def packs():
    """name -> (golden, weights)"""
    with contextlib.ExitStack() as stack:
        found = {}
        for name in PACKS:
            golden = stack.enter_context(oracle.Golden.open(oracle.path(name)))
            with Checkpoint.open(golden.model_path) as checkpoint:
                found[name] = golden, dict(checkpoint)
        yield found


def backend_of(config, weights, mode, context=64, **how):
    return CoreBackend(config, pack_weights(config, weights, mode.weights, 1), context, mode.kv, **how)


def same(a, b):
    return a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))


# --- what is right passes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("name", PACKS)
def test_the_engine_passes(packs, name, mode):
    """Floating point passes as float32, and every mode by its bits.

    The prompt comes whole or in pieces, with all logits or only the last, which leaves out a part of the last layer.
    """
    golden, weights = packs[name]
    phases = golden.manifest.phases
    for chunk, all_logits in ((None, True), (1, True), (5, True), (None, False), (5, False)):
        candidate = oracle.engine_taps(backend_of(golden.manifest.config, weights, mode), phases, chunk, all_logits)
        assert len(candidate.tensors) == len(phases) * (golden.manifest.config.L + 2)
        if mode.precision == "fp32":
            report = oracle.check(golden, candidate, coverage=False)
            assert report.comparison.precision == "fp32"
        report = oracle.check(golden, candidate, precision=str(mode))
        assert report.comparison.precision == f"{mode}, by its bits"
        assert {result.status for result in report.comparison.results} == {"ok"}
        assert len(report.comparison.results) == len(candidate.tensors)
        assert "every bit" in str(report)
        assert report.comparison.logits["kl"] <= (1e-11 if mode.precision == "fp32" else 0.1)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_engine_passes_on_qwq_nano(tmp_path_factory, mode):
    with Checkpoint.open(resolve("qwq-nano")) as checkpoint:
        config, weights = checkpoint.config, dict(checkpoint)
    ids = np.random.default_rng(0).integers(0, config.V, 40)
    kept = ["model.embed_tokens", "*.resid_post", "lm_head"]
    folder = oracle.record(config, weights, tmp_path_factory.mktemp("nano") / "pack", ids, 3, taps=kept)
    candidate = oracle.engine_taps(backend_of(config, weights, mode), phases_of(ids, 3), 16)
    oracle.check(folder, candidate, model=weights, coverage=False)
    oracle.check(folder, candidate, model=weights, precision=str(mode))


@given(st.data())
@settings(max_examples=settings.default.max_examples // 2)
def test_any_architecture_has_the_bits_of_the_spec(data):
    """Tied and untied heads, windows, YaRN, betas, harsh weights, any sizes; the prompt in pieces, then some tokens."""
    values = data.draw(configs()) | {"swiglu_beta": data.draw(st.sampled_from([1.0, 1.7, 0.3]))}
    config, mode = Config.from_dict(values), data.draw(st.sampled_from(MODES))
    weights = random_weights(config, data.draw(st.integers(0, 99)), harsh=data.draw(st.booleans()))
    if mode.weights == "bf16" or data.draw(st.booleans()):
        weights = {name: ops.to_bf16(w) for name, w in weights.items()}
    if mode.weights == "bf16":
        # beta's fold rounds to float32, which the engine refuses to cut to bfloat16
        config = dataclasses.replace(config, swiglu_beta=1.0)
    ids = data.draw(st.lists(st.integers(0, config.V - 1), min_size=1, max_size=30))
    phases = phases_of(ids, data.draw(st.integers(0, min(4, len(ids) - 1))))
    backend = backend_of(config, weights, mode, threads=data.draw(st.sampled_from([1, 2])))
    with np.errstate(over="ignore", invalid="ignore"):
        theirs = oracle.engine_taps(backend, phases, data.draw(st.sampled_from([None, 1, 3, 7])))
        cache = engine.empty_cache(config, mode.kv)
        prepared = engine.prepare(config, weights, mode.weights)
        for phase in phases:
            made = {}
            _, cache = engine.forward(config, prepared, phase.ids, cache, made.__setitem__)
            assert made.keys() <= set(tap_names(config))
            for (name, tap), load in theirs.tensors.items():
                if name == phase.name:
                    assert same(load(), made[tap]), (phase.name, tap)


def test_more_than_a_chunk_of_attention():
    """1,100 positions: scores of two chunks meet, and a window leaves the first one behind."""
    config = Config.from_dict(
        {
            "num_hidden_layers": 2,
            "hidden_size": 20,
            "intermediate_size": 33,
            "vocab_size": 31,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 6,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e4,
            "max_position_embeddings": 2048,
            "use_sliding_window": True,
            "sliding_window": 60,
            "max_window_layers": 1,
        }
    )
    weights = random_weights(config, 1, harsh=True)
    phases = phases_of(np.random.default_rng(0).integers(0, config.V, 1100), 2)
    for mode in (adapter.Mode("q8", "int8"), adapter.Mode("fp32", "fp32")):
        theirs = oracle.engine_taps(backend_of(config, weights, mode, 1100), phases, 512)
        cache = engine.empty_cache(config, mode.kv)
        for phase in phases:
            logits, cache = engine.forward(config, engine.prepare(config, weights, mode.weights), phase.ids, cache)
            assert same(theirs.tensors[phase.name, "lm_head"](), logits)


# --- mistakes, planted in the engine -----------------------------------------------------------------------------

LAYER = "model.layers.1."


def with_weights(change):
    """Make the engine pack other weights, in layer 1 by default."""
    return lambda config, weights, mode: backend_of(config, weights | change(config, weights), mode)


def with_layers(spoil):
    """Call `spoil(layers)` on the layers of the backend."""

    def build(config, weights, mode):
        backend = CoreBackend(config, pack_weights(config, weights, mode.weights, 1), 64, mode.kv)
        spoil(backend.layers)
        return backend

    return build


def gate_and_up(config, weights):
    gate, up = f"{LAYER}mlp.gate_proj.weight", f"{LAYER}mlp.up_proj.weight"
    return {gate: weights[up], up: weights[gate]}


def neighbours(config, weights):
    """Order rows of q and k so that RoPE on halves equals RoPE on neighbouring pairs."""
    order = np.arange(config.E).reshape(-1, 2).T.ravel()
    names = [f"{LAYER}self_attn.{x}_proj.{part}" for x in "qk" for part in ("weight", "bias")]
    return {
        name: weights[name].reshape(-1, config.E, *weights[name].shape[1:])[:, order].reshape(weights[name].shape)
        for name in names
    }


def no_key_bias(config, weights):
    name = f"{LAYER}self_attn.k_proj.bias"
    return {name: np.zeros_like(weights[name])}


def other_eps(layers):
    layers[1]._layer.eps = 1e-6


def other_window(layers):
    layers[1]._layer.window = 4


def other_center(layers):
    layers[1].kv.bias.center[:] += np.float32(0.25)


def a_flipped_code(config, weights, mode):
    packed = pack_weights(config, weights, mode.weights, 1)
    packed.layers[1].o.packed[0] ^= 1
    return CoreBackend(config, packed, 64, mode.kv)


def a_later_position(config, weights, mode):
    """Positions are off by one in decoding, and right in the prompt."""

    class Late(CoreBackend):
        def run(self, ids, sequence, rows, tap=None, progress=None):
            tables = forward.rope_tables
            forward.rope_tables = lambda inv_freq, scaling, at: tables(inv_freq, scaling, at + (len(at) == 1))
            try:
                return super().run(ids, sequence, rows, tap)
            finally:
                forward.rope_tables = tables

    return Late(config, pack_weights(config, weights, mode.weights, 1), 64, mode.kv)


def with_drafts(leaves_behind):
    """Try and roll back two drafts before each token; optionally, leave one of them in layer 1's cache."""

    def build(config, weights, mode):
        class Drafting(CoreBackend):
            def run(self, ids, sequence, rows, tap=None, progress=None):
                length = sequence.length
                super().run([5, 7], sequence, rows)
                sequence.rollback(length)
                if not leaves_behind or len(ids) > 1:
                    return super().run(ids, sequence, rows, tap)
                page = sequence.table.bytes_of(0).reshape(config.L, -1)[1]
                stale = page.copy()
                x = super().run(ids, sequence, rows, tap)
                page[:] = stale
                return x

        return Drafting(config, pack_weights(config, weights, mode.weights, 1), 64, mode.kv)

    return build


def without_the_last_norm(config, weights):
    return {"model.norm.weight": np.ones_like(weights["model.norm.weight"])}


def other_embedding(config, weights):
    name = "model.embed_tokens.weight"
    return {name: np.roll(weights[name], 1, axis=0)}


ALL = ("fp32", "fp32+fp32", "bf16+int8", "q8+int8", "q4+fp32")
# The mistake, the modes in which it must show, and where it shows first.
MISTAKES = {
    "gate-up": (with_weights(gate_and_up), ALL, "prompt", f"{LAYER}resid_post"),
    "interleaved": (with_weights(neighbours), ALL, "prompt", f"{LAYER}resid_post"),
    "key-bias": (with_weights(no_key_bias), ALL, "prompt", f"{LAYER}resid_post"),
    "eps": (with_layers(other_eps), ALL, "prompt", f"{LAYER}resid_post"),
    "window": (with_layers(other_window), ALL, "prompt", f"{LAYER}resid_post"),
    "center": (with_layers(other_center), ("fp32+int8", "q4+int8"), "prompt", f"{LAYER}resid_post"),
    "code": (a_flipped_code, ("q8+int8", "q4+fp32"), "prompt", f"{LAYER}resid_post"),
    "position": (a_later_position, ALL, "decode-0", "model.layers.0.resid_post"),
    "stale": (with_drafts(True), ALL, "decode-1", f"{LAYER}resid_post"),
    "last-norm": (with_weights(without_the_last_norm), ALL, "prompt", "lm_head"),
    "embedding": (with_weights(other_embedding), ALL, "prompt", "model.embed_tokens"),
}


@pytest.mark.parametrize(
    ("name", "precision"), [(name, precision) for name, (_, modes, *_) in MISTAKES.items() for precision in modes]
)
def test_a_mistake_in_the_engine_is_found_where_it_is(packs, name, precision):
    golden, weights = packs["window"]
    build, _, phase, tap = MISTAKES[name]
    mode = adapter.read_mode(precision)
    candidate = oracle.engine_taps(build(golden.manifest.config, weights, mode), golden.manifest.phases, 5)
    report = oracle.compare(golden, candidate, precision=precision, explain=False, coverage=False)
    assert not report.passed
    assert (report.first.phase, report.first.tap, report.first.status) == (phase, tap, "introduced"), str(report)
    introduced = {result.tap for result in report.comparison.results if result.status == "introduced"}
    assert introduced <= {tap} | ({f"model.layers.{i}.resid_post" for i in (0, 1, 2)} if name == "position" else set())
    later = [r for r in report.comparison.results if r.tap == "lm_head" and r.phase == "decode-2"]
    assert [r.wrong for r in later] == [True]
    with pytest.raises(oracle.DivergenceError, match=f"first divergence at {tap}"):
        oracle.check(golden, candidate, precision=precision, explain=False)


@pytest.mark.parametrize("precision", ALL)
def test_drafts_that_are_rolled_back_leave_nothing(packs, precision):
    golden, weights = packs["window"]
    backend = with_drafts(False)(golden.manifest.config, weights, adapter.read_mode(precision))
    oracle.check(golden, oracle.engine_taps(backend, golden.manifest.phases, 5), precision=precision, coverage=False)


def test_in_floats_the_mistake_is_named(packs):
    golden, weights = packs["window"]
    candidate = adapter.run_mode(
        adapter.Mode("fp32", "fp32"),
        golden.manifest.config,
        weights | no_key_bias(None, weights),
        golden.manifest.phases,
    )
    report = oracle.compare(golden, candidate)
    assert report.cause == "k-bias-missing"
    assert "in layer 1 only, of 0-2" in str(report)


# --- other people's numbers in these modes, and the command ------------------------------------------------------


def spec_taps(golden, weights, mode):
    """Compute a mode on a pack, with all inner taps -> {phase: {tap: array}}"""
    config, phases = golden.manifest.config, golden.manifest.phases
    prepared, cache = engine.prepare(config, weights, mode.weights), engine.empty_cache(config, mode.kv)
    taps = {}
    for phase in phases:
        taps[phase.name] = {}
        _, cache = engine.forward(config, prepared, phase.ids, cache, taps[phase.name].__setitem__)
    return taps


def test_whoever_has_inner_results_learns_which_is_the_first(packs):
    golden, weights = packs["gqa"]
    taps = spec_taps(golden, weights, adapter.Mode("q8", "int8"))
    assert oracle.check(golden, taps, precision="q8").passed
    name = f"{LAYER}self_attn.v_proj"
    taps["prompt"][name] = taps["prompt"][name].copy()
    taps["prompt"][name][4, 1] = np.nextafter(taps["prompt"][name][4, 1], np.float32(9))
    report = oracle.compare(golden, taps, precision="q8+int8")
    assert [(r.phase, r.tap) for r in report.comparison.results if r.wrong] == [("prompt", name)]
    assert "where: token 4 of 14" in str(report)
    taps["prompt"][f"{LAYER}mlp.act"] = 2 * taps["prompt"][f"{LAYER}mlp.act"]  # of one layer, the first is to blame
    statuses = {r.tap: r.status for r in oracle.compare(golden, taps, precision="q8").comparison.results if r.wrong}
    assert statuses == {name: "introduced", f"{LAYER}mlp.act": "propagated"}


def test_zeros_have_signs_and_nans_have_none(packs):
    golden, weights = packs["gqa"]
    taps = spec_taps(golden, weights, adapter.Mode("q8", "int8"))
    tap = "model.layers.0.mlp.act"
    value = taps["prompt"][tap].copy()
    value[3, 7] = np.nan
    report = oracle.compare(golden, {tap: value}, precision="q8")
    assert (report.first.tap, report.first.status) == (tap, "introduced")
    assert _same(np.float32([0, -0.0, np.nan, 1]), np.float32([-0.0, -0.0, np.nan, 2])).tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("mode", ["fp32+fp32", "q4+int8"])
@pytest.mark.parametrize("odd", [np.nan, np.inf, 3e38, -1e30, 1e-45])
def test_any_numbers_get_a_verdict(packs, mode, odd):
    golden, weights = packs["gqa"]
    taps = spec_taps(golden, weights, adapter.read_mode(mode))
    wrong = taps["prompt"]["model.layers.0.resid_post"] = taps["prompt"]["model.layers.0.resid_post"].copy()
    wrong[3] = odd
    report = oracle.compare(golden, taps, precision=mode)
    assert (report.first.tap, report.first.where) == ("model.layers.0.resid_post", "token 3 of 14")
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["passed"] is False


def test_what_somebody_has_of_it_is_compared(packs):
    """Logits alone; logits of the last token; a wrong shape; no tap; other tokens."""
    golden, weights = packs["gqa"]
    logits = spec_taps(golden, weights, adapter.Mode("q4", "fp32"))["prompt"]["lm_head"]
    for value in (logits, logits[None], logits[-1:], logits.astype(np.float64)):
        report = oracle.check(golden, {"lm_head": value}, precision="q4+fp32")
        assert len(report.comparison.results) == 1
    changed = logits.copy()
    changed[-1, 0] += np.float32(1e-6)
    assert not oracle.compare(golden, {"lm_head": changed[-1:]}, precision="q4+fp32").passed
    assert oracle.compare(golden, {"lm_head": changed[:-1, :5]}, precision="q4+fp32").first.status == "shape"
    with pytest.raises(GoldenError, match=r"holds no tap of q4\+fp32"):
        oracle.compare(golden, {"model.layers.0.self_attn.probs": logits}, precision="q4+fp32")
    other = oracle.Candidate("theirs", {("prompt", "lm_head"): lambda: logits}, token_ids=[1, 2])
    assert "other tokens" in str(oracle.compare(golden, other, precision="q4"))


def test_other_weights_are_refused(packs):
    golden, weights = packs["gqa"]
    with pytest.raises(GoldenError, match="this is not the model that was recorded"):
        oracle.compare(golden, "qwq:q8", model=weights | no_key_bias(None, weights))
    bare = oracle.Golden(golden.path, dataclasses.replace(golden.manifest, folder=None), golden._files)
    for how in ({"theirs": "qwq:q4"}, {"theirs": {"lm_head": np.zeros((14, 71))}, "precision": "q4"}):
        with pytest.raises(UsageError, match=r"model: is needed for q4\+int8: there are no weights in the pack"):
            oracle.compare(bare, **how)


def test_phases_must_follow_each_other(packs):
    golden, weights = packs["gqa"]
    backend = backend_of(golden.manifest.config, weights, adapter.Mode("q8", "int8"))
    for phases in ((), golden.manifest.phases[1:], (golden.manifest.phases[0], golden.manifest.phases[2])):
        with pytest.raises(UsageError, match="must begin at position 0"):
            oracle.engine_taps(backend, phases)


def test_the_command(capsys, tmp_path, monkeypatch):
    for mode, words in (("fp32", "in fp32"), ("q4", "in q4+int8, by its bits"), ("q8+fp32", "in q8+fp32, by its bits")):
        files = [part for kind in ("json", "html", "junit") for part in (f"--{kind}", str(tmp_path / kind))]
        assert main(["golden", "compare", "gqa", f"qwq:{mode}", "-t", "1", *files]) == 0
        out = capsys.readouterr().out
        assert words in out
        assert "PASS" in out
        report = json.loads((tmp_path / "json").read_text())
        assert report["passed"]
        assert report["counts"]["ok"] == 16
        assert 'failures="0"' in (tmp_path / "junit").read_text()
    for mode in ("q5", "q4+int4", ""):
        assert main(["golden", "compare", "gqa", f"qwq:{mode}"]) == 2
        assert "mode: must be one of fp32, bf16, q8, q4" in capsys.readouterr().err

    def swapped(config, weights, *how):
        return pack_weights(config, dict(weights) | gate_and_up(config, weights), *how)

    monkeypatch.setattr(adapter, "pack_weights", swapped)
    assert main(["golden", "compare", "gqa", "qwq:q4", "--html", str(tmp_path / "html")]) == 3
    assert f"FAIL: first divergence at {LAYER}resid_post, in the prompt" in capsys.readouterr().out


def test_a_dump_in_a_mode_is_judged_by_its_bits(packs, capsys, tmp_path):
    golden, weights = packs["tied"]
    for phase, taps in spec_taps(golden, weights, adapter.Mode("q4", "int8")).items():
        (tmp_path / phase).mkdir()
        for tap in ("model.layers.0.self_attn.heads", "lm_head"):
            np.save(tmp_path / phase / f"{tap}.npy", taps[tap])
    assert main(["golden", "compare", "tied", str(tmp_path), "--precision", "q4"]) == 0
    assert "every bit of 8 taps" in capsys.readouterr().out
    assert main(["golden", "compare", "tied", str(tmp_path), "--precision", "q8"]) == 3
