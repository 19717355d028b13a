"""`qwq bench`: how fast the core's operations are here, and how near that is to what the processor can do."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from ..engine.memory import cpus
from ..errors import QwqError, UsageError
from .options import progress_bar, set_threads

if TYPE_CHECKING:
    from ..bench.measure import Row
    from ..bench.ops import Op, Shape


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--op", metavar="NAME,...", help="operations, or families such as matmul; without: lists them")
    parser.add_argument("--shape", metavar="NAME,...", help="such as qkv or 7168x5120; default: all of QwQ-32B's")
    parser.add_argument("-T", "--tokens", default="1,4,8,512", metavar="N,...", help="tokens (default 1,4,8,512)")
    parser.add_argument("-t", "--threads", metavar="N,...", help="default: 1, and all CPUs that may be used")
    parser.add_argument("--isa", metavar="NAME,...", help="instruction sets, or all; default: QWQ_ISA, or the best")
    parser.add_argument("-r", "--repeats", type=int, default=5, metavar="N", help="medians are of so many (default 5)")
    parser.add_argument("-o", "--output", choices=["table", "md", "json"], default="table", help="default: table")


def run(options: argparse.Namespace) -> int:
    set_threads(1)  # BLAS has no part in this, and its threads must not wait for work meanwhile
    from .. import core

    tokens = _numbers(options.tokens, "tokens")
    threads = _numbers(options.threads, "threads") if options.threads else sorted({1, cpus()})
    if options.repeats < 1:
        raise UsageError(None, "repeats", f"must be at least 1, got {options.repeats}")
    if max(threads) > 1024:
        raise UsageError(None, "threads", f"must be at most 1024, got {max(threads)}")
    if not core.available():
        raise core.CoreError(None, "core", "is not built: install a C compiler, then qwq_ref again")
    from ..bench.ops import registry

    ops = registry()
    if options.op is None:
        print("\n".join(f"{op.name:<24}{op.says}" for op in ops.values()))
        return 0
    isas = _isas(options.isa)
    plan = _plan(_chosen(options.op, ops), options.shape)
    return _measure(options, plan, tokens, isas, threads)


def _measure(
    options: argparse.Namespace,
    plan: list[tuple[Op, str, Shape]],
    tokens: list[int],
    isas: list[str],
    threads: list[int],
) -> int:
    """Measure and print; after Ctrl-C, or where memory does not suffice, what there is."""
    from ..bench import report
    from ..bench.measure import Ceilings, count, machine, rows

    done: list[Row] = []
    stopped: KeyboardInterrupt | QwqError | None = None
    ceilings = Ceilings()
    try:
        with progress_bar("measuring", count(plan, tokens, isas, threads), "row") as progress:
            for row in rows(plan, tokens, isas, threads, options.repeats, ceilings):
                done.append(row)
                progress(1)
    except (KeyboardInterrupt, QwqError) as problem:
        stopped = problem
    if done or stopped is None:
        facts = report.to_dict(done, ceilings.to_list(), machine(ceilings))
        if options.output == "json":
            print(json.dumps(facts, indent=1, allow_nan=False))
        else:
            print(report.markdown(facts) if options.output == "md" else report.table(facts))
        sys.stdout.flush()
    if stopped is not None:
        raise stopped
    return 0


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


def _numbers(text: str, option: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and 0 < int(part) < 1 << 24 for part in parts):
        raise UsageError(None, option, f"must be numbers from 1 on, with commas between them, got {text[:60]}")
    return [int(part) for part in parts]
