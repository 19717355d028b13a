"""`qwq info`: the sizes of a model, from its config.json alone; and the weights that are stored beside it."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .. import footprint
from ..config import Config
from ..errors import UsageError
from ..footprint import human
from ..forms import FILE, FORMS, KV_FORMS, AnyForm, FileForm
from ..tables import Table
from .ending import kept
from .options import (
    DEFAULT_MODEL,
    MODELS,
    add_download_arguments,
    add_rope_arguments,
    check_rope_options,
    chosen_rope,
    given_once,
)
from .progress import progress_bar
from .screen import show
from .values import context_size

if TYPE_CHECKING:
    from .models import Found

_CONTEXTS = (4_096, 8_192, 32_768, 131_072)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", help=f"a config.json, {MODELS}, qwq-32b (its config alone)")
    parser.add_argument("positional", nargs="?", metavar="MODEL", help="the model, without -m")
    parser.add_argument(
        "-c", "--ctx-size", type=context_size, action="append", metavar="N", help="show this context; may be repeated"
    )
    parser.add_argument("--check", action="store_true", help="read every weight; fail at a NaN or an infinity")
    add_download_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, with exact numbers")
    add_rope_arguments(parser)


def run(options: argparse.Namespace) -> int:
    contexts = tuple(options.ctx_size or _CONTEXTS)
    check_rope_options(options)
    options.model = given_once(options, "model", DEFAULT_MODEL)
    from .models import find, locate

    found = find(options.model, options.offline)
    if options.check and found.partial:
        locate(options, lambda download: _refuse_packed(options.model, bool(download.forms)))
        found = find(options.model, options.offline)
    if options.check:
        _check(options.model, found)
    rope = chosen_rope(options, found.config)
    config = found.config if rope is None else dataclasses.replace(found.config, rope=rope)
    facts = describe(config, contexts, found.kept)
    if found.dtypes:
        facts |= {"stored_bytes": dict(found.dtypes), "checked": bool(options.check)}
    if found.packed:
        facts["packed_bytes"] = dict(found.packed)
    print(json.dumps(facts, indent=2)) if options.json else show(_table(options.model, config, facts))
    return 0


def describe(config: Config, contexts: tuple[int, ...], of_file: FileForm | None = None) -> dict[str, Any]:
    """Return the costs that follow from a config, in exact numbers.

    of_file  the form of a quantised file, which is one more form

    positions             that the model is made for, with its RoPE, whose fields are in rope
    checkpoint_bytes      all parameters in one dtype
    weight_bytes          of each weight form, as `qwq convert` writes it and the engine holds it
    bits_per_weight       of those, for each parameter
    read_bytes_per_token  of those, for one decoded token
    contexts              kv_bytes and memory_bytes are the engine's; bf16 is a cache of other implementations
    """
    from ..engine.cache import cache_bytes
    from ..engine.plan import model_bytes, step_bytes

    forms: dict[str, AnyForm] = {form: form for form in FORMS} | ({} if of_file is None else {FILE: of_file})
    weights, parameters = (
        {name: model_bytes(config, form) for name, form in forms.items()},
        footprint.parameters(config),
    )
    per_token = {name: footprint.kv_bytes_per_token(config, name) for name in footprint.KV_PRECISIONS}
    rows = []
    for context in contexts:
        kv = {name: size * context for name, size in per_token.items()}
        kv |= {form: cache_bytes(config, form, context) for form in KV_FORMS}
        saved = footprint.gqa_saving(config, context)
        rows.append(
            {
                "context": context,
                "flops_per_token": footprint.flops_per_token(config, context),
                "kv_bytes": kv,
                "memory_bytes": {f"{form}+{k}": weights[form] + kv[k] for form in forms for k in KV_FORMS},
                "gqa_saves_kv": saved[0],
                "gqa_saves_step": saved[1],
            }
        )
    return {
        "tensors": len(config.tensors()),
        "parameters": parameters,
        "positions": config.positions,
        "rope": {name: value for name, value in dataclasses.asdict(config.rope).items() if value is not None},
        "checkpoint_bytes": {dtype: footprint.weight_bytes(config, dtype) for dtype in footprint.DTYPE_BYTES},
        "weight_bytes": weights,
        "bits_per_weight": {name: 8 * size / parameters for name, size in weights.items()},
        "read_bytes_per_token": {name: step_bytes(config, form) for name, form in forms.items()},
        "kv_bytes_per_token": per_token,
        "contexts": rows,
    }


def _refuse_packed(model: str, packed: bool) -> None:
    if packed:
        raise UsageError(model, "check", "packed weights cannot be checked: check the checkpoint that they came from")


def _check(model: str, found: Found) -> None:
    """Look at every weight of a checkpoint. Raises CheckpointError for one that is not finite."""
    _refuse_packed(model, bool(found.packed))
    if not found.dtypes:
        raise UsageError(model, "check", "there are no weights here")
    from ..formats import open_floats

    total = sum(found.dtypes.values())
    with (
        open_floats(found.path) as floats,
        progress_bar("checking", total, "B") as progress,
        kept(lambda: f"{human(progress.done)} of {human(total)} were checked, and are finite"),
    ):
        floats.check_finite(progress)


def _table(name: str, config: Config, facts: dict[str, Any]) -> str:
    """Return the facts for people: binary units, one fact a line, then a table of contexts."""
    rope = f"RoPE theta {config.rope.theta:g}"
    if config.rope.type == "yarn":
        rope += f", YaRN x {config.rope.factor:g} from {config.rope.original_max_position_embeddings:,}"
    window = "full attention" if config.sliding_window is None else f"window {config.sliding_window:,}"
    modes = [f"{name}+{form.kv}" for name, form in FORMS.items()]
    if FILE in facts["weight_bytes"]:  # other forms make sense only if they are smaller, and lines stay short
        modes = [f"{FILE}+int8", *(f"{name}+{form.kv}" for name, form in FORMS.items() if not form.floats)]
    lines = [
        f"{name}: {facts['parameters']:,} parameters in {facts['tensors']} tensors",
        f"layers {config.L}, hidden {config.D}, MLP {config.F}, heads {config.H} query / {config.K} key-value "
        f"of {config.E}, vocabulary {config.V}, {'tied' if config.tie_word_embeddings else 'untied'} head",
        f"{rope}, {config.positions:,} positions, {window}, RMSNorm eps {config.rms_norm_eps:g}",
        "",
        _sizes("weights", facts["weight_bytes"]).text(
            [
                ["  all", *map(human, facts["weight_bytes"].values())],
                ["  read per token", *map(human, facts["read_bytes_per_token"].values())],
                ["  bits a weight", *(f"{bits:.2f}" for bits in facts["bits_per_weight"].values())],
            ]
        ),
        "",
        _sizes("KV cache", facts["kv_bytes_per_token"]).text(
            [["  per token", *(f"{size / 1024:.1f} KiB" for size in facts["kv_bytes_per_token"].values())]]
        ),
        "",
        "Memory for weights + KV cache, in GiB. For one decoded token: operations",
        "(GFLOP), and the share of reading that grouped-query attention saves, in the",
        "KV cache and in the whole step (bf16).",
        Table(["context ", *modes, "GFLOP", "KV saved", "step saved"], ">" * (len(modes) + 4)).text(
            [
                f"{row['context']:,}" + ("*" if row["context"] > config.positions else " "),
                *(f"{row['memory_bytes'][mode] / 2**30:.2f}" for mode in modes),
                f"{row['flops_per_token'] / 1e9:.2f}",
                f"{row['gqa_saves_kv']:.1%}",
                f"{row['gqa_saves_step']:.1%}",
            ]
            for row in facts["contexts"]
        ),
    ]
    if any(row["context"] > config.positions for row in facts["contexts"]):
        lines.append(f"* more than the model's {config.positions:,} positions: see --rope-scaling")
    if "stored_bytes" in facts:
        stored = ", ".join(f"{human(size)} of {dtype}" for dtype, size in facts["stored_bytes"].items())
        lines += ["", f"stored: {stored}" + ("; every weight is finite" if facts["checked"] else "")]
    if "packed_bytes" in facts:
        stored = ", ".join(f"{form} {human(size)}" for form, size in facts["packed_bytes"].items())
        lines += ["", f"stored: packed {stored}"]
    return "\n".join(lines)


def _sizes(name: str, columns: Iterable[str]) -> Table:
    """Return a table of sizes: one column a form, as wide in each table."""
    headings = [name, *columns]
    return Table(headings, "<" + ">" * (len(headings) - 1), [16] + [10] * (len(headings) - 1))
