"""`qwq bench`: measure the speed of a model or an operation, beside the limits of the processor."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..config import Config
from ..errors import QwqError, UsageError, did_you_mean
from ..forms import FILE, FORMS, KV_FORMS
from ..host.limits import cpus
from ..host.memory import require
from ..tables import definitions
from .energy import accounted, add_watts_argument
from .options import (
    DEFAULT_MODEL,
    add_download_arguments,
    add_rope_arguments,
    check_isas,
    check_rope_options,
    chosen_rope,
    refuse,
    require_core,
    set_threads,
)
from .progress import progress_bar
from .screen import show
from .streams import require_output
from .values import count, integer, many, one_of, some_of, threads

if TYPE_CHECKING:
    from ..bench.model import Trial
    from ..bench.ops import Op, Shape
    from ..bench.peers import Peers
    from ..engine.backends.core import CoreBackend
    from ..formats import Download

_OUTPUTS = ("table", "md", "json", "csv")
_MODELS_ONLY = (
    *("model", "layers", "n_prompt", "n_gen", "n_depth", "weights", "kv", "peer", "parallel"),
    *("rope_scaling", "rope_scale", "yarn_orig_ctx", "watts"),
)
_MOST = (1 << 24) - 1  # tokens of a test


def add_arguments(parser: argparse.ArgumentParser) -> None:
    numbers = many(integer(0, _MOST))
    counts = many(integer(1, _MOST))
    parser.add_argument(
        "-t",
        "--threads",
        type=many(threads),
        metavar="N,...",
        help="numbers of threads; default: all CPUs, for operations also 1",
    )
    parser.add_argument("--isa", metavar="NAME,...", help="instruction sets, or all; default: QWQ_ISA, or the best")
    parser.add_argument(
        "-r", "--repeats", type=count, default=5, metavar="N", help="repeats; figures are their medians (default 5)"
    )
    parser.add_argument("-o", "--output", **one_of(_OUTPUTS), default="table", help="output format; default: table")
    parser.add_argument("--json", dest="output", action="store_const", const="json", help="the same as -o json")
    parser.add_argument(
        "--shape",
        metavar="NAME,...",
        help="a model with random weights: qwq-32b, or a config.json. With --op: shapes, such as qkv or 7168x5120; "
        "default: all of QwQ-32B's",
    )
    models = parser.add_argument_group("models")
    models.add_argument("-m", "--model", help="a model on disk; default, without --shape: qwq-nano")
    add_download_arguments(models)
    models.add_argument("--layers", type=count, metavar="N", help="number of layers of --shape; default: all")
    for short, name, default, what in (
        ("-p", "--n-prompt", "512", "prompt tokens (default 512; 0: none)"),
        ("-n", "--n-gen", "128", "decode steps (default 128; 0: none)"),
        ("-d", "--n-depth", "0", "tokens before these (default 0)"),
    ):
        models.add_argument(short, name, type=numbers, default=default, metavar="N,...", help=what)
    models.add_argument(
        "-np",
        "--parallel",
        type=many(integer(1, 1024)),
        default="1",
        metavar="N,...",
        help="sequences that decode with shared steps (default 1)",
    )
    models.add_argument(
        "--weights",
        **some_of((*FORMS, FILE)),
        default="q4",
        help=f"weight forms: {', '.join(FORMS)}, or file, the types of a quantised file (default q4)",
    )
    models.add_argument(
        "--kv", **some_of(KV_FORMS), help=f"cache forms: {', '.join(KV_FORMS)}; default: int8 with q8 and q4, else fp32"
    )
    models.add_argument(
        "--peer",
        **one_of(["llama.cpp"]),
        help="measure llama.cpp in turns, with --shape or a GGUF file; needs qwq_ref[bench]",
    )
    add_watts_argument(models)
    add_rope_arguments(parser)
    operations = parser.add_argument_group("operations")
    operations.add_argument(
        "--op",
        nargs="?",
        const="",
        metavar="NAME,...",
        help="measure operations, or families such as matmul, instead of models; without a name: list them",
    )
    operations.add_argument(
        "-T", "--tokens", type=counts, default="1,4,8,512", metavar="N,...", help="tokens of a call; default: 1,4,8,512"
    )


def run(options: argparse.Namespace) -> int:
    require_output()
    set_threads(1)  # BLAS is not used, and its threads must not compete
    numbers: list[int] = options.threads or [cpus()]
    require_core()
    if options.op is None:
        refuse(options, ["tokens"], "needs --op: -p and -n are the tokens of a model")
        return _models(options, numbers)
    refuse(options, _MODELS_ONLY, "has no effect with --op")
    return _operations(options, numbers if options.threads else sorted({1, *numbers}))


def _measure(
    options: argparse.Namespace,
    count: int,
    rows: Callable[[Any], Iterator[Any]],
    cells: Any,
    more: dict[str, Any] | None = None,
) -> int:
    """Measure rows(ceilings) and print them. After Ctrl-C, or if memory does not suffice, print the finished rows.

    more  facts beside the rows
    """
    from ..bench.measure import Ceilings, machine
    from ..bench.report import render

    done: list[Any] = []
    stopped: KeyboardInterrupt | QwqError | None = None
    ceilings = Ceilings()
    try:
        with progress_bar("measuring", count, "rows") as bar:
            ceilings.told = lambda what, part: bar.says(what, len(done) + part)
            for row in rows(ceilings):
                done.append(row.to_dict())
    except KeyboardInterrupt as stop:
        stop.add_note(f"{len(done)} of {count} rows were measured")
        stopped = stop
    except QwqError as problem:
        stopped = problem
    if done or stopped is None:
        facts = {"machine": machine(ceilings), "ceilings": ceilings.to_list(), **(more or {}), "rows": done}
        page = render(facts, options.output, cells)
        show(page) if options.output == "table" else print(page)
        sys.stdout.flush()
    if stopped is not None:
        raise stopped
    return 0


# --- Models --------------------------------------------------------------------------------------------------------


def _models(options: argparse.Namespace, numbers: list[int]) -> int:
    from ..bench.report import of_model

    check_rope_options(options)
    tests, isas = _tests(options), _isas(options.isa)
    forms = _forms(options)
    if options.model and options.shape:
        raise UsageError(None, "shape", "is for random weights: give --model or --shape")
    if options.shape and any(weights == FILE for weights, _ in forms):
        raise UsageError(None, "weights", "file is for the types of a --model, and --shape has random weights")
    name, config = _config(options)
    if options.peer and not options.shape and options.model.suffix != ".gguf":
        raise UsageError(None, "peer", "needs --shape, for random weights of the same shape, or a GGUF file as --model")
    with contextlib.ExitStack() as stack:
        peers = stack.enter_context(_peers(options, config, tests))
        account = stack.enter_context(accounted(options))
        starts: list[Callable[[int], Any]] = [lambda number: contextlib.nullcontext()]
        if peers is not None:
            starts = [functools.partial(peers.start, number) for number in range(len(peers))]

        def rows(ceilings: Any) -> Iterator[Any]:
            from ..bench.model import rows

            for weights, kv in forms:
                backend = _backend(options, config, weights, kv, tests)
                for isa, n, start in itertools.product(isas, numbers, starts):
                    backend.isa, backend.threads = isa, n
                    with start(n) as peer:
                        yield from rows(name, backend, tests, options.repeats, ceilings, peer, account.meter)
                del backend

        total = len(forms) * len(isas) * len(numbers) * len(tests) * len(starts)
        return _measure(options, total, rows, of_model, {"energy": account.facts()})


def _tests(options: argparse.Namespace) -> list[Trial]:
    from ..bench.model import Trial

    sizes = {"pp": options.n_prompt, "tg": options.n_gen}
    tests = [Trial(kind, n, depth) for depth in options.n_depth for kind, many in sizes.items() for n in many if n]
    tests = [
        dataclasses.replace(test, parallel=parallel)
        for test in tests
        for parallel in (options.parallel if test.kind == "tg" else [1])
    ]
    if options.peer and any(test.parallel > 1 for test in tests):
        raise UsageError(None, "parallel", "has no effect on --peer")
    if not tests:
        raise UsageError(None, "n-prompt", "is 0, and so is -n: there is nothing to do")
    return tests


def _forms(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Return the pairs of weight form and cache form."""
    return [(weights, kv) for weights in options.weights for kv in options.kv or [_cache(weights)]]


def _cache(weights: str) -> str:
    """Return the cache form that goes with a weight form."""
    return "int8" if weights == FILE else FORMS[weights].kv


def _config(options: argparse.Namespace) -> tuple[str, Config]:
    """Return the name for the table, and the config with the changes that the options ask for."""
    from ..formats import read_config, resolve

    given = options.shape or options.model or DEFAULT_MODEL
    if options.shape and given.endswith(".json"):
        name, config = Path(given).parent.name, Config.from_file(given)
    elif options.shape:
        name, config = Path(given).name, read_config(resolve(given, weights=False, offline=options.offline))
    else:
        name, options.model = Path(given).name, given
        options.model = _located(options)
        config = read_config(options.model)
    if options.layers is not None:
        _check_layers(options, config)
        types = config.layer_types[: options.layers]
        config = dataclasses.replace(config, num_hidden_layers=options.layers, layer_types=types)
        name += f", {options.layers} layer" + "s" * (options.layers > 1)
    rope = chosen_rope(options, config)
    return name, config if rope is None else dataclasses.replace(config, rope=rope)


def _located(options: argparse.Namespace) -> Path:
    """Return the folder or file of `--model`, which may be downloaded if each form fits in memory."""
    from ..engine.ahead import check_small, expected_memory
    from .models import locate

    def judge(model: Download) -> tuple[str, int]:
        if options.layers is not None:
            _check_layers(options, model.config)
        rope = chosen_rope(options, model.config)
        config = model.config if rope is None else dataclasses.replace(model.config, rope=rope)
        context = _context(config, _tests(options))
        how: dict[str, Any] = {"backend": "core", "context": context, "rope": rope}
        needs = [expected_memory(model, weights=weights, kv=kv, **how) for weights, kv in _forms(options)]
        return max(needs, key=lambda line_and_bytes: line_and_bytes[1])

    return locate(options, judge, check_small)


def _check_layers(options: argparse.Namespace, config: Config) -> None:
    if not options.shape or not 1 <= options.layers <= config.L:
        raise UsageError(None, "layers", f"must be 1 to {config.L}, of a --shape, got {options.layers}")


def _context(config: Config, tests: list[Trial]) -> int:
    """Return the positions that the tests take. Raises UsageError if the model has not so many."""
    context = max(test.depth + test.tokens for test in tests)
    if context > config.positions:
        raise UsageError(None, "n-depth", f"{context} tokens are more than the model's {config.positions} positions")
    return context


def _backend(options: argparse.Namespace, config: Config, weights: str, kv: str, tests: list[Trial]) -> CoreBackend:
    from ..bench.weights import random_weights
    from ..engine.backends.core import CoreBackend
    from ..engine.cache import cache_bytes
    from ..engine.loader import load
    from ..engine.plan import model_bytes
    from ..footprint import parameters

    context = _context(config, tests)
    if not options.shape:
        with progress_bar("loading", parameters(config), "weights") as progress:
            how: dict[str, Any] = {"backend": "core", "weights": weights, "kv": kv, "context": context}
            how["parallel"] = max(test.parallel for test in tests)
            model = load(options.model, **how, rope=config.rope, progress=progress)
        return cast(CoreBackend, model.backend)
    size = model_bytes(config, weights)
    caches = cache_bytes(config, kv, context) * max(test.parallel for test in tests)
    require({"weights": size, "KV cache": caches}, options.shape)
    with progress_bar("packing", size, "B") as progress:
        return CoreBackend(config, random_weights(config, weights, progress), context, kv)


def _peers(options: argparse.Namespace, config: Config, tests: list[Trial]) -> Peers | contextlib.nullcontext[None]:
    if options.peer is None:
        return contextlib.nullcontext()
    from ..bench.peers import Peers

    context = max(test.depth + test.tokens for test in tests)
    file = None if options.shape else options.model
    deep = any(test.depth for test in tests)
    return Peers(config, context, deep, options.shape or options.model, progress_bar, file)


# --- Operations ----------------------------------------------------------------------------------------------------


def _operations(options: argparse.Namespace, numbers: list[int]) -> int:
    from ..bench.op_rows import row_count, rows
    from ..bench.ops import registry
    from ..bench.report import of_operation

    tokens: list[int] = options.tokens
    ops = registry()
    if not options.op:
        show(definitions((op.name, op.says) for op in ops.values()))
        return 0
    isas = _isas(options.isa)
    plan = _plan(_chosen(options.op, ops), options.shape)
    number = row_count(plan, tokens, isas, numbers)
    return _measure(
        options, number, lambda best: rows(plan, tokens, isas, numbers, options.repeats, best), of_operation
    )


def _chosen(names: str, ops: dict[str, Op]) -> list[Op]:
    chosen: dict[str, Op] = {}
    for name in names.split(","):
        found = {op.name: op for op in ops.values() if op.name == name or op.name.startswith(f"{name}-")}
        if not found:
            near = did_you_mean(name, ops)
            raise UsageError(None, "op", f"{name[:40]} does not exist{near}; there are {', '.join(ops)}")
        chosen |= found
    return list(chosen.values())


def _plan(ops: list[Op], shapes: str | None) -> list[tuple[Op, str, Shape]]:
    """Return each operation with its shapes, or with those of the given shapes that it can have."""
    if shapes is None:
        return [(op, name, shape) for op in ops for name, shape in op.shapes.items()]
    plan = []
    for name in shapes.split(","):
        fitting = [(op, name, shape) for op in ops if (shape := _shape(op, name)) is not None]
        if not fitting:
            known = list({name: None for op in ops for name in [*op.shapes, op.letters]})
            near = did_you_mean(name, known)
            raise UsageError(None, "shape", f"{name[:40]} fits no operation{near}; there are {', '.join(known)}")
        plan += fitting
    return sorted(plan, key=lambda part: ops.index(part[0]))  # stable: shapes stay in their order


def _shape(op: Op, name: str) -> Shape | None:
    """Return the shape of an operation: a name, or numbers with x between them; None if the operation has no such.

    Rows of weights are a multiple of the largest group; heads are even.
    """
    if name in op.shapes:
        return op.shapes[name]
    parts = name.split("x")
    if len(parts) != len(op.letters.split("x")) or not all(p.isascii() and p.isdigit() and len(p) < 8 for p in parts):
        return None
    shape = tuple(int(part) for part in parts)
    multiple = {"NxK": 64, "HxE": 2}.get(op.letters, 64 if op.name == "quantise-activations" else 1)
    return shape if min(shape) > 0 and shape[-1] % multiple == 0 else None


def _isas(names: str | None) -> list[str]:
    from .. import core

    if names is None:
        return [core.chosen_isa()]
    wanted = core.isas() if names == "all" else names.split(",")
    check_isas(wanted)
    return wanted
