"""`qwq bench`: how fast a model is here, or an operation, and how near that is to what the processor can do."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Config
from ..errors import QwqError, UsageError
from ..host.memory import cpus, require
from .options import (
    DEFAULT_MODEL,
    add_rope_arguments,
    chosen_rope,
    progress_bar,
    require_core,
    set_threads,
)

if TYPE_CHECKING:
    from ..bench.model import Runner, Trial
    from ..bench.ops import Op, Shape
    from ..engine.backends import Backend


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-t", "--threads", metavar="N,...", help="default: all CPUs; for operations 1, too")
    parser.add_argument("--isa", metavar="NAME,...", help="instruction sets, or all; default: QWQ_ISA, or the best")
    parser.add_argument("-r", "--repeats", type=int, default=5, metavar="N", help="medians are of so many (default 5)")
    forms = ["table", "md", "json", "csv"]
    parser.add_argument("-o", "--output", choices=forms, default="table", help="default: table")
    parser.add_argument("--shape", metavar="NAME,...", help="a model's, for random weights: qwq-32b, or a config.json; "
                        "an operation's, such as qkv or 7168x5120; default: all of QwQ-32B's")  # fmt: skip
    models = parser.add_argument_group("models")
    models.add_argument("-m", "--model", help="a model on disk (default, without --shape: qwq-nano)")
    models.add_argument("--layers", type=int, metavar="N", help="of --shape; default: all")
    models.add_argument("-p", default="512", metavar="N,...", help="tokens of a prompt (default 512; 0: none)")
    models.add_argument("-n", default="128", metavar="N,...", help="tokens to decode (default 128; 0: none)")
    models.add_argument("-d", default="0", metavar="N,...", help="tokens in the context before them (default 0)")
    models.add_argument("--weights", default="q4", metavar="FORM,...", help="fp32, bf16, q8, q4 (default)")
    models.add_argument("--kv", metavar="FORM,...", help="of the cache: fp32, int8; default: int8 with q8 and q4")
    models.add_argument("--peer", choices=["llama.cpp"], help="run the same shape there, in turns (--shape; [bench])")
    add_rope_arguments(parser)
    operations = parser.add_argument_group("operations")
    operations.add_argument("--op", nargs="?", const="", metavar="NAME,...", help="operations, or families such as "
                            "matmul, instead of models; alone: lists them")  # fmt: skip
    operations.add_argument("-T", "--tokens", default="1,4,8,512", metavar="N,...", help="default: 1,4,8,512")


def run(options: argparse.Namespace) -> int:
    set_threads(1)  # BLAS has no part in this, and its threads must not wait for work meanwhile
    from .. import core

    if options.repeats < 1:
        raise UsageError(None, "repeats", f"must be at least 1, got {options.repeats}")
    threads = _numbers(options.threads, "threads") if options.threads else [cpus()]
    if max(threads) > core.MOST_THREADS:
        raise UsageError(None, "threads", f"must be at most {core.MOST_THREADS}, got {max(threads)}")
    require_core()
    if options.op is None:
        return _models(options, threads)
    if not options.threads:
        threads = sorted({1, *threads})
    return _operations(options, threads)


def _measure(options: argparse.Namespace, count: int, rows: Callable[[Any], Iterator[Any]], cells: Any) -> int:
    """Measure rows(ceilings) and print them; after Ctrl-C, or where memory does not suffice, what there is."""
    from ..bench.measure import Ceilings, machine
    from ..bench.report import render

    done: list[Any] = []
    stopped: KeyboardInterrupt | QwqError | None = None
    ceilings = Ceilings()
    try:
        with progress_bar("measuring", count, "row") as progress:
            for row in rows(ceilings):
                done.append(row.to_dict())
                progress(1)
    except (KeyboardInterrupt, QwqError) as problem:
        stopped = problem
    if done or stopped is None:
        facts = {"machine": machine(ceilings), "ceilings": ceilings.to_list(), "rows": done}
        print(render(facts, options.output, cells))
        sys.stdout.flush()
    if stopped is not None:
        raise stopped
    return 0


# --- Models --------------------------------------------------------------------------------------------------------


def _models(options: argparse.Namespace, threads: list[int]) -> int:
    from ..bench.report import of_model

    tests, isas = _tests(options), _isas(options.isa)
    forms = _forms(options)
    if options.model and options.shape:
        raise UsageError(None, "shape", "is for random weights: give --model or --shape")
    if options.peer and not options.shape:
        raise UsageError(None, "peer", "needs --shape: it runs random weights of the same shape")
    name, config = _config(options)
    peers = _peers(options, config, threads, max(test.depth + test.tokens for test in tests))

    def rows(ceilings: Any) -> Iterator[Any]:
        from ..bench.model import rows

        for weights, kv in forms:
            backend = _backend(options, config, weights, kv, tests)
            for isa, n in itertools.product(isas, threads):
                backend.isa, backend.threads = isa, n
                for peer in peers:
                    with peer(n) if peer else contextlib.nullcontext() as running:
                        yield from rows(name, backend, tests, options.repeats, ceilings, running)
            del backend

    count = len(forms) * len(isas) * len(threads) * len(tests) * len(peers)
    with contextlib.ExitStack() as stack:
        if options.peer:
            stack.enter_context(_gguf_folder(options))
        return _measure(options, count, rows, of_model)


def _tests(options: argparse.Namespace) -> list[Trial]:
    from ..bench.model import Trial

    depths = _numbers(options.d, "d", least=0)
    sizes = {"pp": _numbers(options.p, "p", least=0), "tg": _numbers(options.n, "n", least=0)}
    tests = [Trial(kind, n, depth) for depth in depths for kind, many in sizes.items() for n in many if n]
    if not tests:
        raise UsageError(None, "p", "and n are both 0: there is nothing to do")
    return tests


def _forms(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Of weights and cache."""
    from ..forms import FORMS, KV_FORMS

    pairs = []
    for weights in options.weights.split(","):
        _check_form("weights", weights, FORMS)
        for kv in options.kv.split(",") if options.kv else [FORMS[weights].kv]:
            _check_form("kv", kv, KV_FORMS)
            pairs.append((weights, kv))
    return pairs


def _check_form(option: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise UsageError(None, option, f"must be some of {', '.join(known)}, got {value[:40]}")


def _config(options: argparse.Namespace) -> tuple[str, Config]:
    """The name in the table, and the config with what the options change."""
    from ..formats import resolve
    from ..formats.checkpoint import read_config

    given = options.shape or options.model or DEFAULT_MODEL
    if options.shape and given.endswith(".json"):
        name, config = Path(given).parent.name, Config.from_file(given)
    else:
        path = resolve(given)
        name, config = path.name, read_config(path)
    if options.layers is not None:
        if not options.shape or not 1 <= options.layers <= config.L:
            raise UsageError(None, "layers", f"must be 1 to {config.L}, of a --shape, got {options.layers}")
        types = config.layer_types[: options.layers]
        config = dataclasses.replace(config, num_hidden_layers=options.layers, layer_types=types)
        name += f", {options.layers} layer" + "s" * (options.layers > 1)
    rope = chosen_rope(options, config)
    return name, config if rope is None else dataclasses.replace(config, rope=rope)


def _backend(options: argparse.Namespace, config: Config, weights: str, kv: str, tests: list[Trial]) -> Backend:
    from ..bench.model import random_weights
    from ..engine.backends.core import CoreBackend
    from ..engine.cache import cache_bytes
    from ..engine.loader import load
    from ..engine.plan import model_bytes
    from ..footprint import parameters

    context = max(test.depth + test.tokens for test in tests)
    if context > config.positions:
        raise UsageError(None, "d", f"{context} tokens are more than the model's {config.positions} positions")
    if not options.shape:
        with progress_bar("loading", parameters(config), "weight") as progress:
            model = load(options.model or DEFAULT_MODEL, weights=weights, kv=kv, context=context, rope=config.rope,
                         progress=progress)  # fmt: skip
        return model.backend
    size = model_bytes(config, weights)
    require({"weights": size, "KV cache": cache_bytes(config, kv, context)}, options.shape)
    with progress_bar("packing", size, "B") as progress:
        return CoreBackend(config, random_weights(config, weights, progress), context, kv)


def _peers(options: argparse.Namespace, config: Config, threads: list[int], context: int) -> list[Any]:
    """What runs beside the engine: for each of its configurations, threads -> a context manager of (name, Runner)."""
    if options.peer is None:
        return [None]
    from ..interop.llama_cpp.bindings import require_packages
    from ..interop.llama_cpp.gguf import gguf_bytes
    from ..interop.llama_cpp.peer import Configuration
    from ..interop.llama_cpp.peer import configurations as own

    require_packages()

    def configurations(n: int) -> list[Configuration]:
        """Behind a context, also without flash attention: there, that is the faster one."""
        deep = any(depth != "0" for depth in options.d.split(","))
        return own(n, context) + (own(n, context, flash_attention=False) if deep else [])

    for quant in {c.quant for c in configurations(1)}:
        require({"the peer's weights": gguf_bytes(config, quant)}, options.shape)

    @contextlib.contextmanager
    def start(number: int, n: int) -> Iterator[tuple[str, Runner]]:
        configuration = configurations(n)[number]
        with configuration.start(_gguf(options, config, configuration.quant)) as peer:
            yield configuration.name, peer

    return [lambda n, number=number: start(number, n) for number in range(len(configurations(1)))]


@contextlib.contextmanager
def _gguf_folder(options: argparse.Namespace) -> Iterator[None]:
    """Where the peer's files are, until the end."""
    with tempfile.TemporaryDirectory(prefix="qwq-bench-") as folder:
        options.gguf_folder = Path(folder)
        yield


def _gguf(options: argparse.Namespace, config: Config, quant: str) -> Path:
    from ..interop.llama_cpp.gguf import gguf_bytes, write_gguf

    path: Path = options.gguf_folder / f"{quant}.gguf"
    if not path.exists():
        with progress_bar(f"writing {quant}", gguf_bytes(config, quant), "B") as progress:
            write_gguf(path, config, quant, progress=progress)
    return path


# --- Operations ----------------------------------------------------------------------------------------------------


def _operations(options: argparse.Namespace, threads: list[int]) -> int:
    from ..bench.measure import count, rows
    from ..bench.ops import registry
    from ..bench.report import of_operation

    tokens = _numbers(options.tokens, "tokens")
    ops = registry()
    if not options.op:
        print("\n".join(f"{op.name:<24}{op.says}" for op in ops.values()))
        return 0
    isas = _isas(options.isa)
    plan = _plan(_chosen(options.op, ops), options.shape)
    number = count(plan, tokens, isas, threads)
    return _measure(
        options, number, lambda best: rows(plan, tokens, isas, threads, options.repeats, best), of_operation
    )


def _chosen(names: str, ops: dict[str, Op]) -> list[Op]:
    chosen: dict[str, Op] = {}
    for name in names.split(","):
        found = {op.name: op for op in ops.values() if op.name == name or op.name.startswith(f"{name}-")}
        if not found:
            raise UsageError(None, "op", f"{name[:40]} does not exist; there are {', '.join(ops)}")
        chosen |= found
    return list(chosen.values())


def _plan(ops: list[Op], shapes: str | None) -> list[tuple[Op, str, Shape]]:
    """Each operation with its shapes; of those given, with the ones that it can have."""
    if shapes is None:
        return [(op, name, shape) for op in ops for name, shape in op.shapes.items()]
    plan = []
    for name in shapes.split(","):
        fitting = [(op, name, shape) for op in ops if (shape := _shape(op, name)) is not None]
        if not fitting:
            known = list({name: None for op in ops for name in [*op.shapes, op.letters]})
            raise UsageError(None, "shape", f"{name[:40]} fits no operation; there are {', '.join(known)}")
        plan += fitting
    return sorted(plan, key=lambda part: ops.index(part[0]))  # stable: shapes stay in their order


def _shape(op: Op, name: str) -> Shape | None:
    """A name, or numbers with x between them. Weights have whole groups of the coarsest scales; heads are even."""
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

    have = core.isas()
    if names is None:
        return [core.chosen_isa()]
    wanted = have if names == "all" else names.split(",")
    for isa in wanted:
        if isa not in have:
            raise UsageError(None, "isa", f"{isa[:40]} cannot run here; {', '.join(have)} can")
    return wanted


def _numbers(text: str, option: str, least: int = 1) -> list[int]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and least <= int(part) < 1 << 24 for part in parts):
        raise UsageError(None, option, f"must be numbers from {least} on, with commas between them, got {text[:60]}")
    return [int(part) for part in parts]
