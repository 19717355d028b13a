"""A running torch model as a candidate: hooks on its modules keep the taps while it computes the phases.

torch is imported when a function runs. transformers is not imported here: the model needs it.
"""

from __future__ import annotations

import contextlib
import fnmatch
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ...config import Config
from ...errors import GoldenError, UsageError
from ...files import StrPath
from ...spec.ops import Array
from ..graph import (
    COS,
    EMBED,
    LOGITS,
    NORM,
    SIN,
    Phase,
)
from .candidate import Candidate, Loader, MisfitError, check_phases
from .namemap import Take, read_name_map

Call = Callable[[Any, Any], Any]  # (ids [1, T] as a tensor, the cache or None) -> the new cache
Keep = Callable[[str, Any], None]
_SCORES = "self_attn.scores"
_PROBS = "self_attn.probs"
_ROTATE = "apply_rotary_pos_emb"


def torch_taps(
    model: Any,
    phases: Sequence[Phase],
    *,
    taps: Sequence[str] = ("*",),
    name_map: StrPath | None = None,
    config: Config | None = None,
    call: Call | None = None,
) -> Candidate:
    """Run the phases through a torch model, and keep its taps in memory, in float32 or float64.

    A Hugging Face `Qwen2ForCausalLM` needs no other argument. Any other model needs a name map: the output of a module
    has its name in `named_modules()`, and its first input has that name with ":input".

    taps      shell patterns of the taps to keep
    name_map  a .yaml or .json file; it needs `config` and `call`, too
    call      runs the model: (ids [1, T] on the model's device, cache) -> cache; the first cache is None

    Raises UsageError; GoldenError for the map, and for tensors that do not fit it.
    """
    if getattr(model, "training", False):
        raise UsageError(None, "model", "is in training mode; call .eval() first")
    check_phases(phases)
    notes: list[str] = []
    if name_map is None:
        tensors = _run_qwen2(model, phases, taps, notes)
    elif config is None or call is None:
        raise UsageError(None, "config" if config is None else "call", "is needed with a name map")
    else:
        tensors = _run_mapped(model, phases, taps, name_map, config, call)
    return Candidate(
        source=type(model).__name__,
        tensors=tensors,
        token_ids=[token for phase in phases for token in phase.ids],
        precision=_precision(model, notes),
        notes=tuple(notes),
    )


def run(model: Any, ids: Sequence[int], cache: Any = None) -> tuple[dict[str, Array], Any]:
    """Call a Hugging Face `Qwen2ForCausalLM` once -> ({tap: array}, cache)

    The arrays have the spec's shapes: no batch axis, heads split and behind tokens. bfloat16 and float16 become
    float32. Scores include the mask, as -inf. Only eager attention has scores and probabilities.
    """
    import torch

    seen: dict[str, Array] = {}

    def keep(name: str, value: Any) -> None:
        seen[name] = _array(value)

    tokens = torch.tensor([[int(token) for token in ids]], device=model.get_input_embeddings().weight.device)
    # transformers calls it `cache` from 5.24 on.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    with _hooked(model, keep), torch.no_grad():
        result = model(tokens, use_cache=True, **{name: cache})
    return seen, getattr(result, name)


def _run_qwen2(
    model: Any, phases: Sequence[Phase], patterns: Sequence[str], notes: list[str]
) -> dict[tuple[str, str], Loader]:
    inner = getattr(model, "model", None)
    if not all(hasattr(inner, name) for name in ("embed_tokens", "rotary_emb", "layers", "norm")):
        raise UsageError(
            None, "model", f"{type(model).__name__} is not built like Qwen2ForCausalLM; give a name map and a call"
        )
    tensors: dict[tuple[str, str], Loader] = {}
    cache = None
    for phase in phases:
        seen, cache = run(model, phase.ids, cache)
        for tap, array in seen.items():
            if _wanted(tap, patterns):
                tensors[phase.name, tap] = _giving(array)
    if not any(tap.endswith(_SCORES) for _, tap in tensors):
        implementation = getattr(model.config, "_attn_implementation", "this")
        notes.append(f"{implementation} attention has no scores and probabilities to look at; eager has")
    return tensors


@contextlib.contextmanager
def _hooked(model: Any, keep: Keep) -> Iterator[None]:
    """Keep every tap of a Qwen2ForCausalLM inside this context.

    Some taps are no module's output. A function mode of torch sees the softmax of this thread. RoPE is a function of
    transformers, so a wrapper replaces it inside this context. Hooks on the attention modules tell the layer.
    """
    import torch

    layers = list(model.model.layers)
    current: list[int] = []  # the layer whose attention is running
    handles = []

    def before(module: Any, hook: Callable[[Any], None]) -> None:
        """hook(first input)"""

        def pre(m: Any, args: Any, kwargs: Any) -> None:
            hook(args[0] if args else kwargs["hidden_states"])

        handles.append(module.register_forward_pre_hook(pre, with_kwargs=True))

    def after(module: Any, hook: Callable[[Any], None]) -> None:
        """hook(result), or of its parts the first"""
        handles.append(module.register_forward_hook(lambda m, args, result: hook(_first(result))))

    def output(name: str, module: Any) -> None:
        after(module, lambda result: keep(name, result[0]))

    def rotary(module: Any, args: Any, result: Any) -> None:
        keep(COS, result[0][0])
        keep(SIN, result[1][0])

    def projection(path: str, module: Any) -> None:
        def hook(m: Any, args: Any, result: Any) -> None:
            # Quantised and offloaded weights cannot be multiplied here; their tap is left out.
            if isinstance(m, torch.nn.Linear) and m.weight.is_floating_point() and not m.weight.is_meta:
                keep(f"{path}_matmul", torch.nn.functional.linear(args[0], m.weight)[0])
            keep(f"{path}_proj", result[0])

        handles.append(module.register_forward_hook(hook))

    def attention(i: int, path: str, attn: Any) -> None:
        before(attn, lambda x: current.append(i))
        after(attn, lambda x: current.clear())
        for name in "qkv":
            projection(f"{path}.self_attn.{name}", getattr(attn, f"{name}_proj"))
        before(attn.o_proj, lambda x: keep(f"{path}.self_attn.heads", x[0].reshape(x.shape[1], -1, attn.head_dim)))
        output(f"{path}.self_attn.o_proj", attn.o_proj)

    def layer(i: int, module: Any) -> None:
        path = f"model.layers.{i}"
        before(module, lambda x: keep(f"{path}.resid_pre", x[0]))
        output(f"{path}.input_layernorm", module.input_layernorm)
        attention(i, path, module.self_attn)
        before(module.post_attention_layernorm, lambda x: keep(f"{path}.resid_mid", x[0]))
        output(f"{path}.post_attention_layernorm", module.post_attention_layernorm)
        output(f"{path}.mlp.gate_proj", module.mlp.gate_proj)
        output(f"{path}.mlp.up_proj", module.mlp.up_proj)
        before(module.mlp.down_proj, lambda x: keep(f"{path}.mlp.act", x[0]))
        output(f"{path}.mlp.down_proj", module.mlp.down_proj)
        output(f"{path}.resid_post", module)

    class Softmax(torch.overrides.TorchFunctionMode):  # type: ignore[misc]  # torch is Any here
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            result = func(*args, **kwargs)
            if current and getattr(func, "__name__", "") == "softmax":
                path, x = f"model.layers.{current[0]}", args[0] if args else kwargs["input"]
                keep(f"{path}.{_SCORES}", torch.where(x <= torch.finfo(x.dtype).min / 2, -torch.inf, x)[0])
                # HF casts the float32 result at once; attention continues with the cast one.
                keep(f"{path}.{_PROBS}", result.to(x.dtype)[0])
            return result

    def rotated(q: Any, k: Any) -> None:
        for name, x in (("q", q), ("k", k)):
            keep(f"model.layers.{current[0]}.self_attn.{name}_rope", x[0].transpose(0, 1))

    try:
        output(EMBED, model.get_input_embeddings())
        handles.append(model.model.rotary_emb.register_forward_hook(rotary))
        for i, module in enumerate(layers):
            layer(i, module)
        output(NORM, model.model.norm)
        output(LOGITS, model.lm_head)
        with _rotation_seen(type(layers[0].self_attn).__module__, rotated), Softmax():
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _rotation_seen(module_name: str, rotated: Callable[[Any, Any], None]) -> Iterator[None]:
    """Call `rotated(q, k)` with the result of each apply_rotary_pos_emb of the module, both [1, heads, T, E]."""
    module = sys.modules[module_name]
    rotate = getattr(module, _ROTATE, None)
    if rotate is None:  # other code: the two taps are left out
        yield
        return

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = rotate(*args, **kwargs)
        rotated(*result)
        return result

    setattr(module, _ROTATE, watched)
    try:
        yield
    finally:
        setattr(module, _ROTATE, rotate)


def _run_mapped(
    model: Any, phases: Sequence[Phase], patterns: Sequence[str], name_map: StrPath, config: Config, call: Call
) -> dict[tuple[str, str], Loader]:
    import torch

    names = read_name_map(name_map, config)
    tensors: dict[tuple[str, str], Loader] = {}
    handles = []
    phase = phases[0].name
    found = False

    def keep(name: str, taps: list[tuple[str, Take]], value: Any) -> None:
        if not isinstance(value, torch.Tensor):
            raise GoldenError(name_map, f"tensors.{name}", f"is no tensor, but a {type(value).__name__}")
        array = _array(value)
        for tap, take in taps:
            if (phase, tap) in tensors:
                raise GoldenError(name_map, f"tensors.{name}", f"ran twice in {phase}, so it cannot be {tap}")
            if _wanted(tap, patterns):
                try:
                    tensors[phase, tap] = _giving(take(array, phase))
                except MisfitError as problem:
                    raise GoldenError(name_map, f"tensors.{name}", str(problem)) from None

    def watch(name: str, module: Any) -> bool:
        outputs, inputs = names.taps(name), names.taps(f"{name}:input")
        if outputs:
            handles.append(module.register_forward_hook(lambda m, args, result: keep(name, outputs, _first(result))))
        if inputs:

            def pre(m: Any, args: Any, kwargs: Any) -> None:
                keep(f"{name}:input", inputs, args[0] if args else next(iter(kwargs.values()), None))

            handles.append(module.register_forward_pre_hook(pre, with_kwargs=True))
        return bool(outputs or inputs)

    try:
        for name, module in model.named_modules():
            found |= watch(name, module)
        if not found:
            some = [name for name, _ in model.named_modules() if name][:3]
            raise GoldenError(name_map, "tensors", f"none is a module of this model, whose first are {', '.join(some)}")
        device = next((parameter.device for parameter in model.parameters()), None)
        cache = None
        with torch.no_grad():
            for current in phases:
                phase = current.name
                cache = call(torch.tensor([list(current.ids)], device=device), cache)
    finally:
        for handle in handles:
            handle.remove()
    return tensors


def _wanted(tap: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(tap, pattern) for pattern in patterns)


def _first(result: Any) -> Any:
    return result[0] if isinstance(result, (tuple, list)) else result


def _array(value: Any) -> Array:
    """Copy a tensor of any type and device to NumPy: float64 as it is, all others as float32."""
    import torch

    value = value.detach()
    wide = value if value.dtype in (torch.float32, torch.float64) else value.float()
    return np.array(wide.cpu().numpy())


def _giving(array: Array) -> Loader:
    return lambda: array


def _precision(model: Any, notes: list[str]) -> dict[str, str]:
    """Return the precision of the whole model, if all parameters have one type."""
    import torch

    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    types = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if len(types) == 1:
        (only,) = types
        return {"": names[only]} if only in names else {}
    notes.append(f"parameters are of {' and '.join(sorted(map(str, types))) or 'no floating type'}: none is declared")
    return {}
