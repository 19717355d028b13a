"""`qwq info`: what a model costs, from its config.json alone; with its weights, what is stored."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from .. import footprint
from ..config import Config
from ..errors import UsageError
from ..footprint import human
from .options import (
    DEFAULT_MODEL,
    MODELS,
    add_rope_arguments,
    chosen_rope,
    find_model,
    progress_bar,
)

_CONTEXTS = (4_096, 8_192, 32_768, 131_072)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        default=DEFAULT_MODEL,
        help=f"a config.json, {MODELS}, qwq-32b (its config alone)",
    )
    parser.add_argument("-c", "--ctx-size", type=int, action="append", metavar="N", help="a context to reckon with")
    parser.add_argument("--check", action="store_true", help="read every weight and look for NaN and infinity")
    parser.add_argument("--offline", action="store_true", help="download nothing")
    parser.add_argument("--json", action="store_true", help="as JSON, with exact numbers")
    add_rope_arguments(parser)


def run(options: argparse.Namespace) -> int:
    contexts = tuple(options.ctx_size or _CONTEXTS)
    if min(contexts) < 1:
        raise UsageError(None, "ctx-size", f"must be at least 1, got {min(contexts)}")
    config, stored = _read(options)
    rope = chosen_rope(options, config)
    if rope is not None:
        config = dataclasses.replace(config, rope=rope)
    facts = describe(config, contexts) | stored
    print(json.dumps(facts, indent=2) if options.json else _table(options.model, config, facts))
    return 0


def describe(config: Config, contexts: tuple[int, ...]) -> dict[str, Any]:
    """All that follows from the config, in exact numbers."""
    weights = {name: footprint.weight_bytes(config, name) for name in footprint.WEIGHT_BITS}
    kv = {name: footprint.kv_bytes_per_token(config, name) for name in footprint.KV_PRECISIONS}
    return {
        "tensors": len(config.tensors()),
        "parameters": footprint.parameters(config),
        "weight_bytes": weights,
        "kv_bytes_per_token": kv,
        "read_bytes_per_token": {name: footprint.bytes_read_per_token(config, name) for name in footprint.WEIGHT_BITS},
        "contexts": [
            {
                "context": context,
                "flops_per_token": footprint.flops_per_token(config, context),
                "kv_bytes": {name: size * context for name, size in kv.items()},
                "memory_bytes": {f"{w}+{k}": weights[w] + kv[k] * context for w in weights for k in kv},
                "gqa_saves_kv": footprint.gqa_saving(config, context)[0],
                "gqa_saves_step": footprint.gqa_saving(config, context)[1],
            }
            for context in contexts
        ],
    }


def _read(options: argparse.Namespace) -> tuple[Config, dict[str, Any]]:
    """The config, and what the checkpoint holds if there are weights beside it."""
    from ..formats import Checkpoint

    path, has_weights = find_model(options.model, options.offline)
    if not has_weights:
        if options.check:
            raise UsageError(options.model, "check", "there are no weights here")
        return Config.from_file(path), {}
    with Checkpoint.open(path) as checkpoint:
        if options.check:
            with progress_bar("checking", sum(checkpoint.dtypes.values()), "B") as progress:
                checkpoint.check_finite(progress)
        return checkpoint.config, {"stored_bytes": checkpoint.dtypes, "checked": bool(options.check)}


def _table(name: str, config: Config, facts: dict[str, Any]) -> str:
    """For people: binary units, one fact a line, then a table of contexts."""

    rope = f"RoPE theta {config.rope.theta:g}"
    if config.rope.type == "yarn":
        rope += f", YaRN x {config.rope.factor:g} from {config.rope.original_max_position_embeddings:,}"
    window = "full attention" if config.sliding_window is None else f"window {config.sliding_window:,}"
    lines = [
        f"{name}: {facts['parameters']:,} parameters in {facts['tensors']} tensors",
        f"layers {config.L}, hidden {config.D}, MLP {config.F}, heads {config.H} query / {config.K} key-value "
        f"of {config.E}, vocabulary {config.V}, {'tied' if config.tie_word_embeddings else 'untied'} head",
        f"{rope}, {config.positions:,} positions, {window}, RMSNorm eps {config.rms_norm_eps:g}",
        "",
        "weights         " + "".join(f"{key:>12}" for key in facts["weight_bytes"]),
        "  all           " + "".join(f"{human(size):>12}" for size in facts["weight_bytes"].values()),
        "  read per token" + "".join(f"{human(size):>12}" for size in facts["read_bytes_per_token"].values()),
        "",
        "KV cache        " + "".join(f"{key:>12}" for key in facts["kv_bytes_per_token"]),
        "  per token     " + "".join(f"{size / 1024:>8.1f} KiB" for size in facts["kv_bytes_per_token"].values()),
        "",
        "weights + KV, GiB, and per decoded token the operations and what grouped-query attention saves in reading",
        "context  " + "".join(f"{key:>10}" for key in ("fp32+fp32", "bf16+bf16", "q8+int8", "q4+int8"))
        + f"{'GFLOP':>9}{'KV saved':>10}{'step saved':>12}",
    ]  # fmt: skip
    for row in facts["contexts"]:
        memory = row["memory_bytes"]
        lines.append(
            f"{row['context']:>7,}{'*' if row['context'] > config.positions else ' '} "
            + "".join(f"{memory[key] / 2**30:>10.2f}" for key in ("fp32+fp32", "bf16+bf16", "q8+int8", "q4+int8"))
            + f"{row['flops_per_token'] / 1e9:>9.2f}{row['gqa_saves_kv']:>10.1%}{row['gqa_saves_step']:>12.1%}"
        )
    if any(row["context"] > config.positions for row in facts["contexts"]):
        lines.append(f"* beyond the model's {config.positions:,} positions: see --rope-scaling")
    if "stored_bytes" in facts:
        stored = ", ".join(f"{human(size)} of {dtype}" for dtype, size in facts["stored_bytes"].items())
        lines += ["", f"stored: {stored}" + ("; every weight is finite" if facts["checked"] else "")]
    return "\n".join(lines)
