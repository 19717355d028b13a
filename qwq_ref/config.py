"""config.json, read, checked and typed, and the table of dimension letters.

A `Config` holds every constant of the model. The reader accepts every config of this architecture that Hugging Face's
`Qwen2Config` accepts, in all spellings of published files. It refuses a config that would compute another model.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .errors import ConfigError
from .files import StrPath, read_json

DIMENSIONS = {
    "T": "new tokens in this call",
    "S": "positions visible in the cache, the new tokens included",
    "D": "hidden size",
    "F": "MLP intermediate size",
    "H": "query heads",
    "K": "key-value heads",
    "G": "query heads per key-value head, H / K",
    "E": "head dimension",
    "V": "vocabulary",
    "L": "layers",
}

LayerType = Literal["full_attention", "sliding_attention"]
_LAYER_TYPES = ("full_attention", "sliding_attention")
# The defaults of Qwen2Config in HF, for the fields that published files leave out.
_DEFAULT_WINDOW, _DEFAULT_WINDOW_LAYERS = 4096, 28
# The context length in training of QwQ-32B and of most models that it descends from (Qwen2.5, arXiv:2412.15115).
TRAINED_POSITIONS = 32_768
_OPTIONAL = ("attention_factor", "mscale", "mscale_all_dim")  # fields of YaRN that may be absent
_YARN_FIELDS = (
    "factor",
    "original_max_position_embeddings",
    *_OPTIONAL,
    "beta_fast",
    "beta_slow",
    "truncate",
)

_CONFIG_BYTES = 1 << 20
# A larger dimension means a broken file: each limit is at least 8 x that of the largest published Qwen2.
_LIMITS = {
    "vocab_size": 1 << 22,
    "hidden_size": 1 << 18,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1 << 12,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "head_dim": 1 << 12,
    "max_position_embeddings": 1 << 26,
    "sliding_window": 1 << 26,
    "max_window_layers": 1 << 12,
    "original_max_position_embeddings": 1 << 26,
    "top_k": 1 << 22,
    "bits": 32,
    "w_bit": 32,
    "group_size": 1 << 20,
    "q_group_size": 1 << 20,
}
QUANTISED = ("awq", "gptq", "mlx")  # the methods that `formats.quantised` reads


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: plain (type "default") or YaRN (Peng et al. 2023, arXiv:2309.00071).

    Field names and defaults are Hugging Face's (`_compute_yarn_parameters`). All but `theta` apply to YaRN alone.
    """

    theta: float
    type: Literal["default", "yarn"] = "default"
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    @property
    def attention_scaling(self) -> float:
        """The factor on cos and sin, by default 0.1 ln(factor) + 1. Scores grow by its square."""
        if self.type == "default":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor

        def mscale(weight: float) -> float:
            return 0.1 * weight * math.log(self.factor) + 1.0

        if self.mscale and self.mscale_all_dim:
            return mscale(self.mscale) / mscale(self.mscale_all_dim)
        return mscale(1.0)


@dataclass(frozen=True)
class Config:
    """A model of the Qwen2 architecture. Long names are those of config.json; letters are those of `DIMENSIONS`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: Rope
    max_position_embeddings: int
    tie_word_embeddings: bool = False
    sliding_window: int | None = None
    layer_types: tuple[LayerType, ...] = field(default=(), repr=False)  # empty: full attention throughout
    swiglu_beta: float = 1.0

    @property
    def V(self) -> int:
        return self.vocab_size

    @property
    def D(self) -> int:
        return self.hidden_size

    @property
    def F(self) -> int:
        return self.intermediate_size

    @property
    def L(self) -> int:
        return self.num_hidden_layers

    @property
    def H(self) -> int:
        return self.num_attention_heads

    @property
    def K(self) -> int:
        return self.num_key_value_heads

    @property
    def G(self) -> int:
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def E(self) -> int:
        return self.head_dim

    def window(self, layer: int) -> int | None:
        """The number of keys that a query of this layer sees, its own included; None for all."""
        sliding = bool(self.layer_types) and self.layer_types[layer] == "sliding_attention"
        return self.sliding_window if sliding else None

    @property
    def positions(self) -> int:
        """The number of positions that the model is made for, with its present RoPE."""
        stretched = int(self.rope.factor * self.rope.original_max_position_embeddings)  # 0 without YaRN
        return max(self.max_position_embeddings, stretched)

    @property
    def head_name(self) -> str:
        """The name of the tensor that computes logits: the embedding, if the two are tied."""
        return "model.embed_tokens.weight" if self.tie_word_embeddings else "lm_head.weight"

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The name and shape of every tensor of a checkpoint, in the order of the computation.

        Projections are [out, in], as in torch.nn.Linear. q, k and v have biases; o and the MLP have none.
        """
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.V, self.D)}
        for layer in range(self.L):
            path = f"model.layers.{layer}"
            shapes[f"{path}.input_layernorm.weight"] = (self.D,)
            for name, heads in (("q", self.H), ("k", self.K), ("v", self.K)):
                shapes[f"{path}.self_attn.{name}_proj.weight"] = (heads * self.E, self.D)
                shapes[f"{path}.self_attn.{name}_proj.bias"] = (heads * self.E,)
            shapes[f"{path}.self_attn.o_proj.weight"] = (self.D, self.H * self.E)
            shapes[f"{path}.post_attention_layernorm.weight"] = (self.D,)
            shapes[f"{path}.mlp.gate_proj.weight"] = (self.F, self.D)
            shapes[f"{path}.mlp.up_proj.weight"] = (self.F, self.D)
            shapes[f"{path}.mlp.down_proj.weight"] = (self.D, self.F)
        shapes["model.norm.weight"] = (self.D,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.V, self.D)
        return shapes

    def with_rope(self, values: dict[str, Any], source: StrPath) -> Config:
        """Return the model with another position embedding, given as `rope_parameters`. Raises ConfigError."""
        rope = _rope(FieldReader({"rope_parameters": values}, source), self.max_position_embeddings, ())
        return dataclasses.replace(self, rope=rope)

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of a config.json from which `Config.from_dict` makes an equal config."""
        values: dict[str, Any] = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu"}
        values |= {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in ("rope", "layer_types", "sliding_window")
        }
        if self.layer_types:
            values |= {"use_sliding_window": True, "sliding_window": self.sliding_window}
            values["layer_types"] = list(self.layer_types)
        values["rope_theta"] = self.rope.theta
        if self.rope.type == "yarn":
            given = dataclasses.asdict(self.rope).items()
            scaling = {name: value for name, value in given if name not in ("theta", "type") and value is not None}
            values["rope_scaling"] = {"rope_type": "yarn", **scaling}
        return values

    @classmethod
    def from_file(cls, path: StrPath) -> Config:
        """Read a config.json. Raises ConfigError."""
        return cls.from_dict(read_json(path, _CONFIG_BYTES, ConfigError), path)

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: StrPath = "config") -> Config:
        """Check and type the contents of a config.json. Raises ConfigError.

        source  the name of the file in errors

        Unknown keys are ignored, as in Hugging Face: files hold dozens that inference does not need.
        """
        read = FieldReader(values, source)
        read.expect("model_type", "qwen2")
        read.expect("architectures", ["Qwen2ForCausalLM"], ["Qwen2Model"], [])  # the second is saved without a head
        read.expect("hidden_act", "silu", "swish")  # two names of one function
        read.expect("is_causal", True)  # models for embeddings may see later positions
        _check_quantisation(read)

        layers = read.integer("num_hidden_layers")
        hidden = read.integer("hidden_size")
        heads = read.integer("num_attention_heads")
        kv_heads = read.integer("num_key_value_heads", default=heads)
        if heads % kv_heads:
            raise read.error("num_key_value_heads", f"{kv_heads} does not divide num_attention_heads {heads}")
        if values.get("head_dim") is None and hidden % heads:
            raise read.error(
                "hidden_size",
                f"{hidden} is not a multiple of num_attention_heads {heads}, and there is no head_dim",
            )
        head_dim = read.integer("head_dim", default=hidden // heads)
        if head_dim % 2:
            raise read.error("head_dim", f"{head_dim} is odd; RoPE rotates pairs")
        max_positions = read.integer("max_position_embeddings")
        window, layer_types = _attention_pattern(read, layers)
        return cls(
            vocab_size=read.integer("vocab_size"),
            hidden_size=hidden,
            intermediate_size=read.integer("intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=read.positive("rms_norm_eps"),
            rope=_rope(read, max_positions, layer_types),
            max_position_embeddings=max_positions,
            tie_word_embeddings=read.boolean("tie_word_embeddings", default=False),
            sliding_window=window,
            layer_types=layer_types,
            swiglu_beta=read.positive("swiglu_beta", default=1.0),
        )


def quantisation_of(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the key of a config.json that tells a quantisation, and the method; "" for a method without a name.

    MLX writes one object under both keys, and names no method.
    """
    for key in ("quantization", "quantization_config", "compression_config"):
        given = values.get(key)
        if given is None:
            continue
        method = given.get("quant_method") if isinstance(given, dict) else None
        if method is None and isinstance(given, dict) and {"group_size", "bits"} <= given.keys():
            method = "mlx"
        return key, method if isinstance(method, str) else ""
    return None


def _check_quantisation(read: FieldReader) -> None:
    """Refuse a checkpoint that is quantised in a format that is not read, by the name of its method."""
    found = quantisation_of(read.values)
    if found is not None and found[1] not in QUANTISED:
        what = f"{found[1][:40]}: " if found[1] else ""
        problem = "quantised checkpoints in this format are not read; use the bf16 one, or AWQ, GPTQ or MLX"
        raise read.error(found[0], what + problem)


def _attention_pattern(read: FieldReader, layers: int) -> tuple[int | None, tuple[LayerType, ...]]:
    """Return the window, and the type of each layer. As in HF, `layer_types` overrides `max_window_layers`."""
    types = read.values.get("layer_types")
    listed = isinstance(types, list) and len(types) == layers and all(kind in _LAYER_TYPES for kind in types)
    if types is not None and not listed:
        raise read.error("layer_types", f"must list {layers} entries, each one of {' or '.join(_LAYER_TYPES)}")
    # In HF, null is no window, and an absent field has the default of Qwen2Config.
    window = read.values.get("sliding_window", _DEFAULT_WINDOW)
    if not read.boolean("use_sliding_window", default=False) or window is None:
        if types is not None and "sliding_attention" in types:
            raise read.error(
                "layer_types", "names sliding_attention, but use_sliding_window or sliding_window is not set"
            )
        return None, ()
    window = read.integer("sliding_window", default=_DEFAULT_WINDOW)
    if types is None:
        full = read.integer("max_window_layers", default=_DEFAULT_WINDOW_LAYERS, smallest=0)
        types = ["full_attention" if layer < full else "sliding_attention" for layer in range(layers)]
    return window, tuple(types)


def _rope(read: FieldReader, max_positions: int, layer_types: Collection[str]) -> Rope:
    """Read `rope_scaling`, or `rope_parameters` of newer files, or both.

    Model cards advise to add `rope_scaling`. In a file of transformers 5, it then stands beside `rope_parameters`,
    which hold `rope_theta`. Two blocks that describe different RoPEs with scaling have no single meaning.
    """
    _check_spelling(read, ("rope_scaling", "rope_parameters"), {"rope_theta"})
    scaling, parameters = read.inner("rope_scaling"), read.inner("rope_parameters")
    by_layer = [name for name in parameters.values if name in _LAYER_TYPES]
    if by_layer:
        return _rope_of_layers(read, parameters, max_positions, layer_types)
    if not scaling.values:
        return _rope_block([parameters, read], max_positions)
    rope = _rope_block([scaling, read, parameters], max_positions)
    if _rope_type(parameters) != "default":
        other = _rope_block([parameters, read], max_positions)
        if other != dataclasses.replace(rope, theta=other.theta):
            raise read.error("rope_scaling", "differs from rope_parameters: keep one of them")
    return rope


def _rope_of_layers(
    read: FieldReader, parameters: FieldReader, max_positions: int, layer_types: Collection[str]
) -> Rope:
    """Read `rope_parameters` with one block for each layer type. The types that the model has must agree."""
    if read.values.get("rope_scaling"):
        raise read.error("rope_scaling", "is given beside rope_parameters of layer types: keep one of them")
    stray = next((name for name in parameters.values if name not in _LAYER_TYPES), None)
    if stray is not None:
        raise parameters.error(stray, "stands beside blocks of layer types: keep one spelling")
    used = sorted(set(layer_types)) or ["full_attention"]
    ropes = [_rope_block([parameters.inner(kind, needed=True), read], max_positions) for kind in used]
    if len(set(ropes)) > 1:
        raise read.error("rope_parameters", f"differs between {' and '.join(used)}; this architecture has one RoPE")
    return ropes[0]


def _rope_type(block: FieldReader) -> Any:
    """Return the type of a block of RoPE fields: `rope_type` or, in older files, `type`."""
    kind = block.values.get("rope_type")
    if kind is None:
        kind = block.values.get("type")
    if kind is not None:
        return kind
    scaled = next((name for name in _YARN_FIELDS if block.values.get(name) is not None), None)
    if scaled is not None:
        raise block.error("rope_type", f"is missing, although {scaled} is given")
    return "default"


def _rope_block(places: Sequence[FieldReader], max_positions: int) -> Rope:
    """Read one block of RoPE fields.

    places  the block, the whole config, and perhaps another block: the first that has `rope_theta` gives it
    """
    rope, read = places[:2]
    given = rope.values
    place = next((place for place in places if place.values.get("rope_theta") is not None), read)
    theta = place.positive("rope_theta")
    if theta <= 1:
        raise place.error("rope_theta", f"must be > 1, got {theta:g}")
    for where in (read, rope):
        if where.values.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise where.error("partial_rotary_factor", "only whole heads are rotated in this architecture")
    kind = _rope_type(rope)
    if kind == "default":
        return Rope(theta=theta)
    if kind != "yarn":
        raise rope.error("rope_type", f'unknown type {_show(kind)}; this architecture has "default" and "yarn"')
    _check_spelling(rope, _YARN_FIELDS, {"rope_theta", "rope_type", "type", "partial_rotary_factor"})

    # As in HF: a value at the top level wins; without any, the trained length is max_position_embeddings.
    at_top = read.values.get("original_max_position_embeddings") is not None
    original = (read if at_top else rope).integer(
        "original_max_position_embeddings", default=max_positions, whole_float=True
    )
    factor = rope.positive("factor", default=max_positions / original)
    if factor < 1:
        raise rope.error("factor", f"must be >= 1, got {factor:g}")
    beta_fast = rope.positive("beta_fast", default=32.0)
    beta_slow = rope.positive("beta_slow", default=1.0)
    if beta_fast < beta_slow:
        raise rope.error("beta_fast", f"{beta_fast:g} is below beta_slow {beta_slow:g}")
    if given.get("truncate", True) is None:
        raise rope.error("truncate", "must be true or false, got None")  # in HF, null here is not the default
    absent = {"mscale": (None, 0), "mscale_all_dim": (None, 0)}  # as in HF, which asks whether they are true
    optional = {key: rope.positive(key) for key in _OPTIONAL if given.get(key) not in absent.get(key, (None,))}
    return Rope(
        theta=theta,
        type="yarn",
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        truncate=rope.boolean("truncate", default=True),
        **optional,
    )


def _check_spelling(read: FieldReader, names: Sequence[str], others: Collection[str]) -> None:
    """Refuse a field whose name is almost one of `names`: ignored, it would give another model."""
    for name in read.values.keys() - {*names, *others}:
        if read.prefix or "rope" in name:  # other fields at the top are many, and none of them is near
            import difflib  # here, because few files have such a field

            close = difflib.get_close_matches(name, names, 1, 0.85)
            if close:
                raise read.error(name, f"does not exist; is {close[0]} meant?")


class FieldReader:
    """Reads one JSON object field by field. Every error names the file and the field."""

    def __init__(self, values: dict[str, Any], source: StrPath, prefix: str = "") -> None:
        self.values = values
        self.source = source
        self.prefix = prefix

    def error(self, name: str, problem: str) -> ConfigError:
        return ConfigError(self.source, self.prefix + name, problem)

    def _get(self, name: str, default: Any) -> Any:
        """Return a value. null means the same as absent, as in Hugging Face's own files."""
        value = self.values.get(name)
        if value is None:
            value = default
        if value is None:
            raise self.error(name, "is missing")
        return value

    def inner(self, name: str, needed: bool = False) -> FieldReader:
        """Return a reader of an object inside this one. Absent, null and false mean an empty one, as in HF."""
        value = self.values.get(name) or ({} if not needed else self._get(name, None))
        if not isinstance(value, dict):
            raise self.error(name, f"must be an object, got {_show(value)}")
        return FieldReader(value, self.source, f"{self.prefix}{name}.")

    def expect(self, name: str, *wanted: Any) -> None:
        """Check a field that names the architecture. It may be absent; another value means another model."""
        value = self.values.get(name)
        if value is not None and value not in wanted:
            raise self.error(name, f"must be {_show(wanted[0])}, got {_show(value)}")

    def integer(self, name: str, default: int | None = None, smallest: int = 1, whole_float: bool = False) -> int:
        """Return an integer. `whole_float` accepts a float without a fraction, where HF's own reader does."""
        value = self._get(name, default)
        if whole_float and isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, f"must be an integer, got {_show(value)}")
        if not smallest <= value <= _LIMITS[name]:
            raise self.error(name, f"must be {smallest} to {_LIMITS[name]}, got {_show(value)}")
        return value

    def positive(self, name: str, default: float | None = None) -> float:
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(name, f"must be a number, got {_show(value)}")
        if 1e30 <= value <= sys.float_info.max:
            raise self.error(name, f"must be below 1e30, got {_show(value)}")
        if not 0 < value < 1e30:  # also false for NaN, which from_dict may receive
            raise self.error(name, f"must be positive and finite, got {_show(value)}")
        return float(value)

    def number(self, name: str, default: float, smallest: float, largest: float) -> float:
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not smallest <= value <= largest:
            raise self.error(name, f"must be a number from {smallest:g} to {largest:g}, got {_show(value)}")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, f"must be true or false, got {_show(value)}")
        return value


def _show(value: Any) -> str:
    """Return the text of a value, short enough for a message of one line."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int that is too long, a list that is too deep
        return f"a {type(value).__name__} that is too large to print"
    return text if len(text) <= 60 else text[:57] + "..."
