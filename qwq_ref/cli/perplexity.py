"""`qwq perplexity`: measure how well a model predicts a text, and how far it is from another run at the same text."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileError, QwqError, UsageError
from .options import (
    add_download_arguments,
    add_engine_arguments,
    add_memory_arguments,
    add_model_argument,
    add_rope_arguments,
    check_rope_options,
    engine_choices,
    set_numpy_threads,
)
from .progress import Bar, progress_bar
from .screen import tell
from .streams import print_json, require_output
from .text_input import HYPHEN, LongText
from .values import count, tokens, unless

if TYPE_CHECKING:
    from ..engine.model import Model
    from ..eval.chunks import Chunks, Figures, Measurement
    from ..eval.kl_base import Base, BaseWriter
    from ..eval.means import Estimate

_LEAST = 8  # tokens of a chunk: eval.chunks.LEAST_CTX, which takes an import of NumPy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f",
        "--file",
        metavar="FILE",
        help="read the text from FILE, or from standard input without FILE or if it is -",
    )
    add_model_argument(parser)
    parser.add_argument(
        "-c",
        "--ctx-size",
        type=tokens(_LEAST),
        metavar="N",
        help="tokens of a chunk, of which the second half is scored (default 512)",
    )
    parser.add_argument(
        "--chunks", type=unless("-1", count), metavar="N", help="compute N chunks at most; default: all of the text"
    )
    parser.add_argument(
        "--kl-base", metavar="FILE", help="write the log-probabilities of this run into FILE, to compare others with it"
    )
    parser.add_argument(
        "--kl",
        metavar="FILE",
        help="compare with the run that wrote FILE: KL divergence and more; without -f, of the tokens in FILE",
    )
    parser.add_argument("--kl-divergence", action="store_true", help=argparse.SUPPRESS)  # llama.cpp: --kl-base is --kl
    add_download_arguments(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_engine_arguments(parser)
    add_rope_arguments(parser)
    add_memory_arguments(parser, "chunks")
    parser.epilog = "The figures are those of llama-perplexity: see docs/perplexity.md."


def run(options: argparse.Namespace) -> int:
    set_numpy_threads(options)
    require_output()
    choices = engine_choices(options)
    check_rope_options(options)
    if options.kl_divergence:
        if options.kl_base is None or options.kl is not None:
            raise UsageError(None, "kl-divergence", "needs --kl-base, and no --kl: use --kl FILE alone")
        options.kl, options.kl_base = options.kl_base, None
    if options.kl is not None and options.kl_base is not None:
        raise UsageError(None, "kl", "compares with a base, and --kl-base writes one: give one of them")
    with ExitStack() as files:
        base = None
        if options.kl is not None:
            from ..eval.kl_base import Base

            base = files.enter_context(Base(options.kl))
            base.check_ctx(options.ctx_size or base.ctx)
        text = _text(options)
        if text is not None:
            files.enter_context(text)
        if options.kl_base is not None:
            _check_target(options.kl_base)
        from ..eval.chunks import CTX, bos_of, check_ctx
        from .loading import load_model

        ctx = options.ctx_size or (CTX if base is None else base.ctx)
        shared = options.max_memory is not None or options.parallel is not None
        model = load_model(options, choices, ctx, rows=ctx - ctx // 2 if shared else 1)
        check_ctx(model, ctx)
        bos = bos_of(model) if base is None else base.bos
        return _measure(options, _Run(options, model, ctx, bos, base, text))


def _text(options: argparse.Namespace) -> LongText | None:
    """Return the text; None if the tokens of a base are meant."""
    if options.file is None and options.kl is not None:
        return None
    if options.file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError(None, "file", "is missing: give a text with -f, or on standard input")
    return LongText(HYPHEN if options.file is None else options.file)


def _check_target(path: str) -> None:
    """Raise FileError for a file that no run wrote: the name of a model, for example, that would be lost."""
    from ..eval.kl_base import MAGIC
    from ..formats.write import check_file

    target = Path(path)
    if target.is_file() and target.stat().st_size:
        with open(target, "rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise FileError(path, None, "is another file: --kl-base replaces only its own files")
    check_file(target)


class _Run:
    """The chunks of a command, and a bar over them."""

    def __init__(
        self,
        options: argparse.Namespace,
        model: Model,
        ctx: int,
        bos: int | None,
        base: Base | None,
        text: LongText | None,
    ) -> None:
        from ..eval.chunks import Chunks

        self.options, self.model, self.ctx, self.bos, self.base, self.text = options, model, ctx, bos, base, text
        self.source: Chunks | None = None if text is None else Chunks(model.tokenizer, text, ctx, bos)
        self.seconds = 0.0

    def chunks(self) -> Iterable[list[int]]:
        if self.source is not None:
            return self.source
        assert self.base is not None
        return map(self.base.tokens, range(self.base.chunks))

    def expected(self) -> int:
        """Return the number of chunks, which is a guess from the size of a file, or from what a pipe gave so far."""
        most: int = self.options.chunks or sys.maxsize
        if self.base is not None:
            return min(most, self.base.chunks)
        assert self.source is not None
        assert self.text is not None
        scale = 1.0 if self.text.ended or not self.text.size else max(1.0, self.text.size / max(1, self.text.read))
        return max(1, min(most, int(self.source.read * scale) // self.ctx))

    def compute(self, measurement: Measurement, bar: Bar) -> None:
        """Compute all chunks. Raises FileError for a text without any, or a disk without room for a base."""
        from ..eval.chunks import groups, too_short

        started = time.monotonic()
        try:
            for group in groups(self._wanted(), self.model.parallel):
                total = max(measurement.chunks + len(group), self.expected())
                if measurement.chunks == 0:
                    self._check_room(total)
                bar.total = total
                bar.says(bar.what, measurement.chunks)
                measurement.add(group, lambda tokens: bar(tokens / self.ctx))
                bar.what = f"PPL {measurement.ppl:.4f}"
        finally:
            self.seconds = time.monotonic() - started
        if self.options.chunks is None:
            measurement.end()
        if not measurement.chunks:
            read = 0 if self.source is None else self.source.read
            raise FileError(self.text.name if self.text else None, None, too_short(read, self.ctx))

    def _check_room(self, chunks: int) -> None:
        from ..engine.ahead import check_room
        from ..eval.kl_base import chunk_bytes

        if self.options.kl_base is not None:
            check_room(Path(self.options.kl_base).parent, chunks * chunk_bytes(self.ctx, self.model.config.V))

    def _wanted(self) -> Iterator[list[int]]:
        for number, ids in enumerate(self.chunks()):
            if number == self.options.chunks:
                return
            yield ids


def _measure(options: argparse.Namespace, run: _Run) -> int:
    from ..eval.chunks import Measurement, writer
    from ..formats.write import atomic_file

    stopped: KeyboardInterrupt | QwqError | None = None
    with ExitStack() as files:
        save: BaseWriter | None = None
        if options.kl_base is not None:
            save = writer(files.enter_context(atomic_file(options.kl_base)), run.model, run.ctx)
        parallel = run.model.parallel
        measurement = Measurement(run.model, run.ctx, run.bos, save=save, base=run.base, parallel=parallel)
        try:
            with progress_bar("perplexity", 1, "chunks") as bar:
                run.compute(measurement, bar)
        except (KeyboardInterrupt, QwqError) as problem:
            if not measurement.chunks:  # a base without a chunk is not written
                if isinstance(problem, KeyboardInterrupt):
                    problem.add_note("no chunk was scored")
                raise
            stopped = problem
        if save is not None:
            save.end()
    figures = measurement.figures
    if isinstance(stopped, KeyboardInterrupt):
        stopped.add_note(f"after {_chunks(figures.chunks)}: PPL = {_plus_minus(figures.ppl)}")
    _print(options, run, figures, stopped)
    if stopped is not None:
        raise stopped
    return 0


def _print(
    options: argparse.Namespace, run: _Run, figures: Figures, stopped: KeyboardInterrupt | QwqError | None
) -> None:
    from ..host.memory import peak_bytes

    left = 0 if run.source is None or stopped is not None or options.chunks is not None else run.source.left
    speed = figures.chunks * run.ctx / run.seconds if run.seconds > 0 else 0.0
    if options.json:
        facts: dict[str, Any] = {
            "model": options.model,
            "path": str(run.model.path),
            "backend": run.model.backend.description,
            "ctx": run.ctx,
            "bos": run.bos,
            "complete": stopped is None,
            "base": None if run.base is None else {"model": run.base.model, "backend": run.base.backend},
        }
        speeds = {"unused_tokens": left, "tok_s": round(speed, 3), "peak_memory_bytes": peak_bytes()}
        print_json(facts | figures.row() | speeds, indent=2)
        return
    print("\n".join(_lines(figures)), flush=True)
    parts = [f"{_chunks(figures.chunks)} of {run.ctx} tokens, {figures.tokens} of them scored"]
    parts += [f"{left} tokens at the end fill no chunk"] * bool(left)
    if run.base is not None:
        parts.append(f"base: {run.base.model}, {run.base.backend}")
    if options.kl_base is not None:
        parts.append(f"log-probabilities: {options.kl_base}")
    tell("; ".join([*parts, f"{speed:.1f} tokens/s", f"peak memory: {peak_bytes() / 2**20:.0f} MiB"]))


def _lines(figures: Figures) -> Iterator[str]:
    """Yield the result in the words and figures of llama-perplexity."""
    far = figures.divergence
    if far is None:
        yield f"Final estimate: PPL = {_plus_minus(figures.ppl)}"
        return
    yield "====== Perplexity statistics ======"
    yield f"Mean PPL(Q)                   : {_pair(figures.ppl)}"
    yield f"Mean PPL(base)                : {_pair(far.ppl_base)}"
    yield f"Mean ln(PPL(Q)/PPL(base))     : {_pair(far.ln_ratio)}"
    yield ""
    yield "====== KL divergence statistics ======"
    yield f"Mean    KLD: {_pair(far.mean_kld)}"
    yield f"Maximum KLD: {_number(far.maximum_kld)}"
    yield f"99.9%   KLD: {_number(far.percentile_999_kld)}"
    yield f"Median  KLD: {_number(far.median_kld)}"
    yield ""
    yield "====== Token probability statistics ======"
    yield f"Mean    Δp: {_percent(far.mean_delta_p)}"
    yield f"RMS Δp    : {_percent(far.rms_delta_p)}"
    yield f"Same top p: {_percent(far.same_top)}"


def _plus_minus(figure: Estimate) -> str:
    return f"{figure.value:.4f} +/- {figure.error:.5f}"


def _pair(figure: Estimate) -> str:
    return f"{_number(figure.value)} ± {_number(figure.error)}"


def _number(value: float) -> str:
    """Six decimals, as llama-perplexity prints; small numbers with three digits that count."""
    return f"{value:10.6f}" if value == 0 or abs(value) >= 1e-3 else f"{value:10.2e}"


def _percent(figure: Estimate) -> str:
    return f"{100 * figure.value:6.3f} ± {100 * figure.error:5.3f} %"


def _chunks(number: int) -> str:
    return "1 chunk" if number == 1 else f"{number} chunks"
