"""The real llama.cpp computes what the spec does, and its recording is complete."""

import numpy as np
import pytest

from qwq_ref import spec
from qwq_ref.errors import GoldenError, UsageError
from qwq_ref.interop.llama_cpp.bindings import Ggml, Library
from qwq_ref.oracle.adapters.candidate import fit
from qwq_ref.oracle.adapters.llama_cpp import capture
from qwq_ref.oracle.graph import (
    letters,
    phases_of,
    shape_of,
    tap_names,
)
from tests.support.gguf_models import small_config, write_gguf
from tests.support.llama_graphs import expected_taps
from tests.support.models import random_weights, yarn


def stored_as(weights, kind):
    """The weights that the file holds."""
    rounded = {"F32": spec.ops.exact, "F16": spec.ops.to_fp16, "BF16": spec.ops.to_bf16}[kind]
    return {name: rounded(value) if value.ndim == 2 else value for name, value in weights.items()}


def golden(config, weights, phases):
    """(phase, tap) -> the value in float64."""
    values, cache = {}, None
    for phase in phases:
        tap = lambda name, value, phase=phase: values.update({(phase.name, name): value})  # noqa: E731
        _, cache = spec.forward(config, weights, phase.ids, cache, tap, np.float64)
    return values


def relative_errors(config, candidate, right, phases):
    """(phase, tap) -> root mean square of the difference over that of the golden value, where that is finite."""
    errors = {}
    for phase in phases:
        for tap in tap_names(config):
            if (phase.name, tap) not in candidate.tensors:
                continue
            value, last = fit(candidate.tensors[phase.name, tap](), shape_of(tap, config, phase))
            wanted = right[phase.name, tap]
            if last:
                wanted = np.take(wanted, [-1], letters(tap).index("T"))
            finite = np.isfinite(wanted)
            np.testing.assert_array_equal(np.isfinite(value), finite, err_msg=tap)
            off = value[finite].astype(np.float64) - wanted[finite]
            errors[phase.name, tap] = np.sqrt(np.sum(off**2) / np.sum(wanted[finite] ** 2))
    return errors


PHASES = phases_of([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4], 2)


def errors_of(gguf, tmp_path, config, kind="F32", phases=PHASES, harsh=False, fused=False, metadata=(), **settings):
    """-> candidate, `relative_errors` of a random model."""
    weights = stored_as(random_weights(config, 0, harsh), kind)
    path = tmp_path / "m.gguf"
    write_gguf(gguf, path, config, weights, kind, fused, metadata)
    try:
        candidate = capture(path, phases, threads=1, **settings)
    except GoldenError as problem:
        if fused and "does not load" in str(problem):
            pytest.skip("this llama.cpp is older than files with a fused product")
        raise
    return candidate, relative_errors(config, candidate, golden(config, weights, phases), phases)


@pytest.mark.parametrize(
    ("changes", "settings", "limit"),
    [
        ({}, {}, 1e-6),
        ({}, {"all_logits": False}, 1e-6),
        ({}, {"fused": True}, 1e-6),
        ({}, {"harsh": True}, 1e-5),
        ({"tie_word_embeddings": True}, {}, 1e-6),
        ({"num_key_value_heads": 6}, {}, 1e-6),
        ({"num_key_value_heads": 1, "num_hidden_layers": 11}, {}, 1e-6),
        ({"num_hidden_layers": 1}, {"all_logits": False}, 1e-6),
        ({"rope_scaling": yarn()}, {}, 1e-6),
        ({"rope_scaling": yarn(factor=40.0, original_max_position_embeddings=8)}, {}, 1e-6),
        ({}, {"cache_type": "f16"}, 1e-3),
        ({}, {"kind": "F16"}, 1e-3),
        ({}, {"kind": "F16", "cache_type": "f16"}, 2e-3),
        ({}, {"kind": "BF16"}, 1e-2),
        ({}, {"flash_attention": True}, 2e-3),
        ({}, {"flash_attention": True, "cache_type": "f16", "kind": "BF16"}, 1e-2),
        ({}, {"flash_attention": True, "fused": True, "all_logits": False}, 2e-3),
    ],
    ids=str,
)
def test_it_computes_what_the_spec_does(gguf, tmp_path, changes, settings, limit):
    config = small_config(**changes)
    candidate, errors = errors_of(gguf, tmp_path, config, **settings)
    taps = expected_taps(config, settings.get("flash_attention"))
    assert set(candidate.tensors) == {(phase.name, tap) for phase in PHASES for tap in taps}
    assert candidate.unknown == ()
    worst = max(errors, key=errors.get)
    assert errors[worst] < limit, f"{worst}: {errors[worst]:.1e}"
    exact = "model.embed_tokens", "model.layers.0.resid_pre"
    assert all(errors[phase.name, tap] == 0 for phase in PHASES for tap in exact)
    if limit < 1e-4:
        assert candidate.precision == dict.fromkeys(candidate.precision, "fp32")
    else:  # what came before the first rounding is exact to float32, and says so
        fine = [tap for tap, kind in candidate.precision.items() if kind == "fp32"]
        assert "model.layers.0.input_layernorm" in fine
        assert all(errors[phase.name, tap] < 1e-6 for phase in PHASES for tap in fine)


def test_a_dump_holds_what_was_captured(gguf, tmp_path):
    config = small_config()
    weights = random_weights(config, 0)
    write_gguf(gguf, tmp_path / "m.gguf", config, weights)
    here = capture(tmp_path / "m.gguf", PHASES, threads=1, cache_type="bf16")
    there = capture(tmp_path / "m.gguf", PHASES, tmp_path / "dump", threads=1, cache_type="bf16")
    assert set(here.tensors) == set(there.tensors)
    assert (here.precision, here.token_ids) == (there.precision, there.token_ids)
    for key, load in here.tensors.items():
        np.testing.assert_array_equal(load(), there.tensors[key](), err_msg=str(key))
    with pytest.raises(UsageError, match="exists already"):
        capture(tmp_path / "m.gguf", PHASES, tmp_path / "dump")


def test_watching_changes_nothing(gguf, tmp_path):
    """The logits are those of a run without the callback, to the bit; on a CPU there is nothing to fuse."""
    config = small_config()
    write_gguf(gguf, tmp_path / "m.gguf", config, random_weights(config, 0))
    phase = PHASES[0]
    seen = capture(tmp_path / "m.gguf", [phase], threads=1).tensors["prompt", "lm_head"]()

    library = Library(GoldenError)
    settings = {"n_ctx": 32, "n_batch": 32, "n_ubatch": 32, "type_k": 0, "type_v": 0}
    path = tmp_path / "m.gguf"
    with (
        library.log() as log,
        library.model(path, {"n_gpu_layers": 0}, log) as model,
        library.context(path, model, settings, False, log) as context,
        library.batch(phase.ids, 0, [True] * phase.T) as batch,
    ):
        assert library.decode(context, batch) == 0
        unseen = np.ctypeslib.as_array(library.api.llama_get_logits(context), (phase.T, config.V)).copy()
    np.testing.assert_array_equal(seen, unseen)


def test_yarn_of_a_gguf_file(gguf, tmp_path):
    """`attn_factor` multiplies 0.1 ln(factor) + 1, and the betas of a Qwen2 file are not read: they are a setting."""
    short = {"original_max_position_embeddings": 64}
    config = small_config(rope_scaling=yarn(attention_factor=0.7, **short))
    by_file = ("rope.scaling.attn_factor", 0.7 / (0.1 * np.log(4) + 1))
    _, errors = errors_of(gguf, tmp_path, config, metadata=[by_file])
    assert max(errors.values()) < 1e-6
    config = small_config(rope_scaling=yarn(beta_fast=8.0, beta_slow=2.0, **short))
    _, errors = errors_of(gguf, tmp_path, config, context={"yarn_beta_fast": 8.0, "yarn_beta_slow": 2.0})
    assert max(errors.values()) < 1e-6


def test_what_llama_cpp_refuses(gguf, tmp_path):
    path = tmp_path / "m.gguf"
    phases = phases_of([1, 2], 0)
    with pytest.raises(GoldenError, match=r"m\.gguf: llama\.cpp does not load it"):
        capture(path, phases)
    config = small_config(hidden_size=64)  # not H E
    write_gguf(gguf, path, config, random_weights(config, 0), metadata=())
    with pytest.raises(GoldenError, match="does not load it"):
        capture(path, phases)
    config = small_config()
    write_gguf(gguf, path, config, random_weights(config, 0))
    with pytest.raises(GoldenError, match="prompt: has tokens that are not among the model's 61"):
        capture(path, phases_of([1, 61], 0), tmp_path / "dump")
    assert not list(tmp_path.glob("*dump*"))
    with pytest.raises(GoldenError, match=r"decode-0: llama\.cpp cannot decode it: status 1"):
        capture(path, phases_of([1] * 257, 1), context={"n_ctx": 256})
    with pytest.raises(GoldenError, match="makes no context for it"):
        capture(path, phases, cache_type="q8_0")  # V only with flash attention
    with pytest.raises(GoldenError, match="n_ubatch"):
        capture(path, phases_of([1] * 80, 0), context={"n_ubatch": 32})
    for context in ({"n_nothing": 1}, {"n_batch": "many"}):
        with pytest.raises(UsageError, match="context"):
            capture(path, phases, context=context)


def test_an_interrupt_in_the_callback_is_raised(gguf, tmp_path, monkeypatch):
    config = small_config()
    write_gguf(gguf, tmp_path / "m.gguf", config, random_weights(config, 0))

    def interrupted(self, address):
        raise KeyboardInterrupt

    monkeypatch.setattr(Ggml, "values", interrupted)
    with pytest.raises(KeyboardInterrupt):
        capture(tmp_path / "m.gguf", PHASES, tmp_path / "dump")
    assert not list(tmp_path.glob("*dump*"))
