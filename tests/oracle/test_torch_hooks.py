"""Running torch models: Hugging Face's, and another one with a name map."""

import numpy as np
import pytest
import torch
from transformers.models.qwen2 import modeling_qwen2

from qwq_ref.config import Config
from qwq_ref.errors import UsageError
from qwq_ref.oracle.adapters import torch_hooks
from qwq_ref.oracle.adapters.candidate import fit
from qwq_ref.oracle.adapters.torch_hooks import torch_taps
from qwq_ref.oracle.graph import (
    LAYER,
    absolute,
    phases_of,
)
from qwq_ref.spec import forward
from tests.support import hf
from tests.support.candidates import (
    GOOD,
    NORM,
    VALUES,
    refused,
    write_map,
)
from tests.support.models import config_values, random_weights


def phases_and_spec(values, decode=2, seed=0, count=9, **kwargs):
    """-> (config, weights, phases, {(phase, tap): the spec's array})"""
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
    """Hooks are removed, also if the model fails in the middle of its attention."""
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
    """A quantised projection, for example, has no product before the bias."""
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
    """One fused projection, in groups; RoPE on neighbouring pairs."""

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
    """Gate and up in one matrix, with alternating rows."""

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
