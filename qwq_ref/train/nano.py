"""The small model of the recipe: its config, its initial weights, and the files of a new checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from ..formats import Checkpoint
from ..formats.write import write_atomically, write_json
from ..spec.ops import Array
from ..text import load_tokenizer
from . import corpus
from .tokenizer import train_tokenizer

NANO: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 512,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 10,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "initializer_range": 0.06,
    "torch_dtype": "bfloat16",
}


def initial_weights(config: Config, rng: np.random.Generator, width: float) -> dict[str, Array]:
    """Draw weights as Hugging Face initialises them: normal matrices of standard deviation `width`, biases 0, norms 1.

    The two projections that write to the residual stream are smaller by sqrt(2 L), because 2 L of them add up (GPT-2).
    """
    weights: dict[str, Array] = {}
    for name, shape in config.tensors().items():
        if len(shape) == 1:
            weights[name] = np.full(shape, name.endswith("norm.weight"), np.float32)
            continue
        scale = width / math.sqrt(2 * config.L) if name.endswith(("o_proj.weight", "down_proj.weight")) else width
        weights[name] = rng.normal(0, scale, shape).astype(np.float32)
    return weights


def new_model(folder: Path, seed: int, template: str | None) -> tuple[Config, dict[str, Array]]:
    """Write the files of a new model into `folder`, and return its config and its initial weights.

    A tokenizer that is there already is kept. `template` is the text of a chat template.
    """
    config = Config.from_dict(NANO)
    if not (folder / "tokenizer.json").exists():
        write_json(folder / "tokenizer.json", train_tokenizer(corpus.texts(seed, 6000), config.V))
    added = load_tokenizer(folder, config.V).added
    end, text_end = added["<|im_end|>"], added["<|endoftext|>"]
    write_json(folder / "config.json", {**NANO, "bos_token_id": text_end, "eos_token_id": end})
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": text_end,
            "do_sample": True,
            "eos_token_id": [end, text_end],
            "pad_token_id": text_end,
            "temperature": 0.6,
            "top_k": 40,
            "top_p": 0.95,
        },
    )
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": NANO["max_position_embeddings"],
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    if template is not None:
        write_atomically(folder / "chat_template.jinja", lambda file: file.write(template.encode("utf-8")))
    return config, initial_weights(config, np.random.default_rng([seed]), NANO["initializer_range"])


def copied_model(base: Path, folder: Path) -> tuple[Config, dict[str, Array]]:
    """Copy the small files of the model `base` into `folder`, and return its config and its weights."""
    for path in base.iterdir():
        if path.suffix in (".json", ".jinja") and path.name != "recipe.json" and not (folder / path.name).exists():
            content = path.read_bytes()
            write_atomically(folder / path.name, lambda file, content=content: file.write(content))  # type: ignore[misc]
    with Checkpoint.open(base) as checkpoint:
        return checkpoint.config, {name: checkpoint[name] for name in checkpoint}
