"""`qwq golden`: record reference values of a model, and compare an implementation with them."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Config
from ..errors import UsageError
from ..forms import FILE, FORMS, KV_FORMS
from ..host.limits import cpus
from ..tables import definitions
from .ending import kept
from .options import (
    add_download_arguments,
    add_model_argument,
    add_prompt_arguments,
    add_rope_arguments,
    check_rope_options,
    chosen_rope,
    refuse,
    set_threads,
)
from .progress import progress_bar
from .prompt import read_prompt
from .screen import show
from .values import integer, many, size, threads

if TYPE_CHECKING:
    from ..formats import Download

DIFFERS = 3  # exit status of a comparison that finds a divergence; 1 and 2 are errors, as for every command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    record = commands.add_parser("record", help="write a golden pack of a model", description=_record.__doc__)
    record.add_argument("-o", "--out", required=True, metavar="DIR", help="a new folder for the pack")
    add_model_argument(record)
    add_prompt_arguments(record)
    record.add_argument(
        "--ids", type=many(integer()), dest="token_ids", metavar="N,...", help="token ids instead of a text"
    )
    record.add_argument("--chat", action="store_true", help="format the text with the model's chat template")
    record.add_argument(
        "--decode", type=integer(0), default=0, metavar="N", help="decode the last N tokens one at a time"
    )
    record.add_argument("--taps", action="append", metavar="PATTERN", help="keep only these taps, such as *.q_rope")
    record.add_argument(
        "--layers", type=many(integer()), metavar="N,...", help="keep only taps of these layers; -1 is the last"
    )
    record.add_argument(
        "--size",
        action="append",
        default=[],
        metavar="[PATTERN=]SIZE",
        help="part of a tap to keep: full (the default), last, stats or sketch; the first matching pattern decides",
    )
    record.add_argument(
        "--max-memory", type=size, metavar="SIZE", help="most memory to use, such as 8G; default: all that is free"
    )
    record.add_argument("--include-weights", action="store_true", help="put the model into the pack; for small models")
    add_download_arguments(record)
    add_rope_arguments(record)

    compare = commands.add_parser("compare", help="compare tensors with a pack", description=_compare.__doc__)
    compare.add_argument("golden", help="the folder of a pack, or the name of a shipped one (qwq golden list)")
    compare.add_argument(
        "theirs",
        help="a folder of .npy files, a .safetensors or .npz file, a pack, or a llama.cpp capture. "
        "Or a mode of this engine, qwq:WEIGHTS[+KV], with the weight forms "
        f"{', '.join((*FORMS, FILE))} and the cache forms {', '.join(KV_FORMS)}",
    )
    compare.add_argument(
        "-m", "--model", help="the model, if it is not in the pack; with weights, more causes can be named"
    )
    add_download_arguments(compare)
    compare.add_argument("--map", metavar="FILE", help="a YAML or JSON file that maps names (docs/adapters.md)")
    compare.add_argument(
        "--precision",
        action="append",
        default=[],
        metavar="[TAP=]PRECISION",
        help="fp32, bf16 or fp16; default: derived from the values. A mode such as q4+int8 demands its bits",
    )
    compare.add_argument("--html", metavar="FILE", help="write a report with plots")
    compare.add_argument("--json", metavar="FILE", help="write all results as JSON; - is standard output")
    compare.add_argument("--junit", metavar="FILE", help="write a test report")
    compare.add_argument("--no-explain", action="store_true", help="find the divergence, but not the mistake")
    compare.add_argument("--coverage", action="store_true", help="list the mistakes that these tensors cannot show")

    vectors = commands.add_parser(
        "vectors", help="write test vectors for every operation", description=_vectors.__doc__
    )
    vectors.add_argument("-o", "--out", required=True, metavar="DIR", help="a new folder for the vectors")
    export = commands.add_parser("export", help="write a pack as one .npz", description=_export.__doc__)
    export.add_argument("golden", help="the folder of a pack, or the name of a shipped one")
    export.add_argument("-o", "--out", required=True, metavar="FILE", help="the .npz file")
    commands.add_parser("list", help="list the shipped packs", description=_list.__doc__)
    commands.add_parser("mistakes", help="list the known mistakes", description=_mistakes.__doc__)
    for command in (record, compare):
        command.add_argument(
            "-t", "--threads", type=threads, default=cpus(), metavar="N", help="threads; default: one for each CPU"
        )


def run(options: argparse.Namespace) -> int:
    set_threads(1)  # the oracle's own threads use the cores
    actions = {
        "record": _record,
        "compare": _compare,
        "vectors": _vectors,
        "export": _export,
        "list": _list,
        "mistakes": _mistakes,
    }
    return actions[options.action](options)


def _record(options: argparse.Namespace) -> int:
    """Record a golden pack in one pass over the weights. The model need not fit in memory."""
    from .. import footprint
    from ..formats import open_floats, read_config, write
    from ..oracle import record
    from ..oracle.packs.folder import check_new
    from ..oracle.packs.record import check_record
    from .models import locate

    check_rope_options(options)
    check_new(Path(options.out), "a pack")
    write.check_folder(options.out)
    text = _text(options)
    rope = functools.cache(functools.partial(chosen_rope, options))  # says what it assumes, once
    downloads: list[Download] = []

    def changed(config: Config) -> Config:
        new = rope(config)
        return config if new is None else dataclasses.replace(config, rope=new)

    def judge(download: Download) -> None:
        if download.forms:
            raise UsageError(options.model, None, "is packed: record the checkpoint that it was made from")
        downloads.append(download)
        # A text has as many ids as steps of decoding at least, and one before them.
        check(download.config, options.token_ids or [0] * (options.decode + 1))

    def check(config: Config, ids: list[int]) -> None:
        how = _how(options, config)
        check_record(changed(config), options.out, ids, options.decode, **how, download=downloads[0])

    def inspect(folder: Path) -> None:
        config = read_config(folder)
        check(config, _ids(options, text, folder, config.vocab_size))

    path = locate(options, judge, inspect)
    with open_floats(path) as checkpoint:
        config = changed(checkpoint.config)
        total = footprint.parameters(config)
        ids = _ids(options, text, checkpoint.tokenizer, config.vocab_size)
        with kept(lambda: "no pack was written"), progress_bar("recording", total, "weights") as progress:
            record(
                config,
                checkpoint,
                options.out,
                ids,
                options.decode,
                **_how(options, config),
                progress=progress,
            )
    stored = sum(file.stat().st_size for file in Path(options.out).rglob("*") if file.is_file())
    print(
        f"{options.out}: {len(ids) - options.decode} tokens and {options.decode} steps of decoding, "
        f"{footprint.human(stored)}",
        file=sys.stderr,
    )
    model = "" if options.include_weights else f" -m {shlex.quote(options.model)}"
    print(f"next: qwq golden compare {shlex.quote(options.out)} TAPS{model}", file=sys.stderr)
    return 0


def _how(options: argparse.Namespace, config: Config) -> dict[str, Any]:
    """Return those arguments of `record` that the options choose. Raises UsageError."""
    return {
        "name": Path(options.model).name,
        "taps": options.taps or ["*"],
        "layers": _layers(options.layers, config.L),
        "sizes": _pairs(options.size, "*") or "full",
        "max_memory": options.max_memory,
        "include_weights": options.include_weights,
        "threads": options.threads,
    }


def _compare(options: argparse.Namespace) -> int:
    """Compare the tensors of a candidate with a golden pack: report the first divergence and the mistake that causes
    it. Exit status: 0 no divergence, 3 a divergence, 1 broken input, 2 wrong use."""
    from ..formats import write
    from ..oracle import compare
    from ..oracle.packs.vectors import is_vectors

    if is_vectors(options.golden):
        return _compare_vectors(options)
    for file in (options.html, options.junit, None if options.json == "-" else options.json):
        if file is not None:
            write.check_file(file)
    model = None if options.model is None else _finder(options)
    with kept(lambda: "the comparison has no result yet"):
        report = compare(
            options.golden,
            options.theirs,
            model=model,
            precision=_pairs(options.precision, "") or None,
            name_map=options.map,
            explain=not options.no_explain,
            coverage=options.coverage or None,
            threads=options.threads,
            progress=progress_bar,
        )
    facts = json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n"
    if options.html:
        from ..oracle.render.html import page

        _write_text(options.html, page(report.to_dict()))
    if options.junit:
        _write_text(options.junit, report.junit())
    if options.json and options.json != "-":
        _write_text(options.json, facts)
    show(str(report)) if options.json != "-" else print(facts, end="")
    return 0 if report.passed else DIFFERS


def _finder(options: argparse.Namespace) -> Callable[[Callable[[Download], object]], Path]:
    """Return a function that finds the model, unless its argument refuses the download."""
    from .models import locate

    def find(check: Callable[[Download], object]) -> Path:
        def judge(download: Download) -> None:
            check(download)

        return locate(options, judge)

    return find


def _compare_vectors(options: argparse.Namespace) -> int:
    from ..oracle.judge.vectors import compare_vectors

    others = ("model", "map", "html", "json", "junit", "no_explain", "coverage")
    refuse(options, others, "has no effect on test vectors")
    precisions = _pairs(options.precision, "")
    if precisions.keys() - {""}:
        raise UsageError(None, "precision", "is one for all vectors")
    outcomes = compare_vectors(options.golden, options.theirs, precisions.get("", "fp32"))
    wrong = [outcome for outcome in outcomes if outcome.problem]
    for outcome in wrong:
        print(f"{outcome.case.op}, {outcome.case.name}: {outcome.problem}")
    print(f"{'FAIL' if wrong else 'PASS'}: {len(outcomes) - len(wrong)} of {len(outcomes)} cases are right")
    return DIFFERS if wrong else 0


def _vectors(options: argparse.Namespace) -> int:
    """Write inputs and outputs of each operation for hard cases, to test a single kernel."""
    from ..oracle.packs.vectors import write_vectors

    with kept(lambda: f"{options.out} was not written"):
        count = write_vectors(options.out)
    print(f"{options.out}: {count} cases", file=sys.stderr)
    return 0


def _export(options: argparse.Namespace) -> int:
    """Write all tensors of a pack into one .npz file, under PHASE/TAP."""
    import numpy as np

    from ..formats.write import write_atomically
    from ..oracle import open_golden

    with open_golden(options.golden) as golden:
        manifest = golden.manifest
        arrays = {
            f"{phase.name}/{tap}": golden.read(phase.name, tap) for phase in manifest.phases for tap in manifest.sizes
        }
        arrays["token_ids"] = np.array(manifest.token_ids)
    write_atomically(options.out, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
    return 0


def _list(options: argparse.Namespace) -> int:
    """List the shipped packs: small models with their weights, to begin with."""
    from ..oracle import conformance, open_golden

    rows = []
    for name in conformance():
        with open_golden(name) as golden:
            m = golden.manifest
            rows.append((name, f"{m.phases[0].T} + {len(m.phases) - 1} tokens, {m.model}"))
            rows.append(("", str(golden.path)))
    show(definitions(rows))
    return 0


def _mistakes(options: argparse.Namespace) -> int:
    """List the known mistakes, which can explain a divergence."""
    from ..oracle.explain.mistakes import MISTAKES

    show(definitions((mistake.name, mistake.says) for mistake in MISTAKES))
    return 0


def _text(options: argparse.Namespace) -> str:
    """Return the prompt; "" where token ids take its place. Raises UsageError, FileError."""
    if options.token_ids is None:
        return read_prompt(options)
    if options.positional is not None:
        raise UsageError(None, "token_ids", "takes the place of the prompt")
    refuse(options, ("prompt", "file", "chat"), "has no effect with --ids")
    return ""


def _ids(options: argparse.Namespace, text: str, folder: Path, vocabulary: int) -> list[int]:
    if options.token_ids is not None:
        return list(options.token_ids)
    from ..engine.tokens import find_tokenizer, no_tokenizer
    from ..text.template import load_chat_template

    tokenizer = find_tokenizer(folder, vocabulary)
    if tokenizer is None:
        missing = no_tokenizer(folder)
        raise UsageError(missing.file, missing.field, "is missing: give token ids with --ids")
    if not options.chat:
        return tokenizer.encode(text)
    template = load_chat_template(folder, None)
    if template is None:
        raise UsageError(folder, "chat", "there is no chat template")
    return template.encode(tokenizer, [{"role": "user", "content": text}])


def _layers(layers: list[int] | None, L: int) -> list[int] | None:
    """Return layer numbers from 0 to L - 1; negative ones count from the end."""
    for layer in layers or ():
        if not -L <= layer < L:
            raise UsageError(None, "layers", f"must be {-L} to {L - 1}, got {layer}")
    return None if layers is None else [layer % L for layer in layers]


def _pairs(given: list[str], default: str) -> dict[str, str]:
    """Return ["a=b", "c"] as {"a": "b", default: "c"}, with the default last."""
    pairs = dict(_pair(part, default) for part in given)
    if default in pairs:
        pairs[default] = pairs.pop(default)
    return pairs


def _pair(part: str, default: str) -> tuple[str, str]:
    key, _, value = part.rpartition("=")
    return key or default, value


def _write_text(path: str, text: str) -> None:
    from ..formats.write import write_atomically

    write_atomically(path, lambda file: file.write(text.encode("utf-8")))
