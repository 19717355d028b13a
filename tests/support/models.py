"""Random models of the architecture: config.json values, and weights to go with them."""

import numpy as np
from hypothesis import strategies as st

from qwq_ref.config import Config


def config_values(**changes):
    """A small config.json whose dimensions are pairwise distinct, with D != H * E, so a swapped axis can't pass."""
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_act": "silu",
        "vocab_size": 53,
        "hidden_size": 24,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 0,
    } | changes


def yarn(**changes):
    return {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16} | changes


@st.composite
def configs(draw, smallest_head=2):
    """config.json values over the whole architecture: G 1-8, tied or not, YaRN, sliding windows, D != H * E.

    `smallest_head` is for relative gates in float32: a key of one head of two numbers can cancel to nothing, while its
    rounding error stays.
    """
    K, G = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    E = 2 * draw(st.integers(smallest_head // 2, 9))
    L = draw(st.integers(1, 4))
    values = config_values(
        num_key_value_heads=K,
        num_attention_heads=K * G,
        head_dim=E,
        num_hidden_layers=L,
        hidden_size=draw(st.sampled_from([d for d in (20, 26, 35) if d != K * G * E])),
        intermediate_size=draw(st.sampled_from([33, 46, 57])),
        vocab_size=draw(st.sampled_from([31, 64, 97])),
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-5, 1e-3])),
        rope_theta=draw(st.sampled_from([100.0, 10_000.0, 1e6])),
        tie_word_embeddings=draw(st.booleans()),
    )
    if draw(st.booleans()):
        values["rope_scaling"] = yarn(
            factor=draw(st.sampled_from([1.0, 2.5, 4.0, 40.0])),
            original_max_position_embeddings=draw(st.sampled_from([4, 16, 512])),
            **draw(
                st.sampled_from(
                    [
                        {},
                        {"truncate": False},
                        {"beta_fast": 8.0, "beta_slow": 2.0},
                        {"attention_factor": 0.7},
                        {"mscale": 0.9, "mscale_all_dim": 0.4},
                        {"mscale": 0.9},
                    ]
                )
            ),
        )
    window = draw(st.sampled_from([None, 1, 3, 7]))
    if window:
        values |= {"use_sliding_window": True, "sliding_window": window}
        if draw(st.booleans()):
            values["max_window_layers"] = draw(st.integers(0, L))
        else:
            kinds = st.sampled_from(["full_attention", "sliding_attention"])
            values["layer_types"] = draw(st.lists(kinds, min_size=L, max_size=L))
            values["max_window_layers"] = 0
    return values


@st.composite
def token_ids(draw, values, largest=40):
    length = draw(st.integers(1, largest))
    return draw(st.lists(st.integers(0, values["vocab_size"] - 1), min_size=length, max_size=length))


def random_weights(config: Config, seed: int, harsh: bool = False) -> dict[str, np.ndarray]:
    """float32 weights for `config`.

    Gentle: Hugging Face's initialisation (normal, 0.02), with norm weights near 1 and biases that are not zero.

    Harsh: matrices that keep the size of their input, and norm weights of every size and sign. One embedding channel is
    60 times as large, and one key channel has a bias of +40, as in the published models.
    """
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in config.tensors().items():
        value = rng.standard_normal(shape)
        if name.endswith("norm.weight"):
            value = np.exp(value) * rng.choice([-1, 1], shape) if harsh else 1 + 0.1 * value
        elif name.endswith("bias") or not harsh:
            value = 0.02 * value
        elif "embed_tokens" not in name:
            value = value / np.sqrt(shape[-1])
        if harsh and "embed_tokens" in name:
            value[:, 3] *= 60
        if harsh and name.endswith("k_proj.bias"):
            value[1] += 40
        weights[name] = value.astype(np.float32)
    return weights
