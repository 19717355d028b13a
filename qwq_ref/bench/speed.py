"""The ceilings of a model's speed here: what memory and instructions allow, measured now. No program exceeds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .. import core, footprint
from ..config import Config
from ..core import ceilings
from ..engine.plan import plan, step_bytes
from ..forms import FORMS, AnyForm, FileForm
from ..host import memory
from . import measure
from .ops import peak_of

SAMPLES = 5  # of each ceiling, in turns; the best counts, because other work can only make it slower
SPAN = 0.05  # seconds of a sample


@dataclass(frozen=True)
class Speed:
    """
    isa, threads  that were measured
    reads         number of threads -> bytes of memory read per second
    peaks         instructions -> multiply-accumulates per second, on all threads
    huge_pages    the share of what was read that lies on huge pages; None where the system does not say
    """

    isa: str
    threads: int
    reads: dict[int, float]
    peaks: dict[str, float]
    huge_pages: float | None


def measure_speed(threads: int, isa: str, progress: Callable[[int], object] = lambda count: None) -> Speed:
    """Measure the machine's ceilings, in a second or two.

    progress  called with 1 after each of `SAMPLES` rounds

    Raises MemoryLimitError where there is too little memory to read from.
    """
    memory.require({"data": measure.rotation()}, "measuring")
    best = measure.Ceilings()
    share = measure.huge_pages(best.data)
    kinds = [peak_of(core.FORMATS[form.matrix]) for form in FORMS.values()]
    named = {ceilings.instructions(kind, isa): kind for kind in kinds if ceilings.products(kind, isa)}
    reads: dict[int, float] = {}
    peaks: dict[str, float] = {}
    for _ in range(SAMPLES):
        for n in sorted({1, threads}):
            reads[n] = max(reads.get(n, 0.0), best.read(n, SPAN))
        for name, kind in named.items():
            peaks[name] = max(peaks.get(name, 0.0), best.peak(kind, isa, threads, SPAN) or 0.0)
        progress(1)
    return Speed(isa, threads, reads, peaks, share)


@dataclass(frozen=True)
class Limits:
    """The bounds on a model's speed with weights in one form.

    step_bytes, step_macs  bytes and multiply-accumulates of decoding one token, behind an empty context
    prompt_macs            multiply-accumulates of a token of a prompt
    cached                 whether the last caches hold all that is read, so that memory is no limit
    output, prompt         tokens per second at most; None where it is not known
    """

    step_bytes: int
    step_macs: int
    prompt_macs: int
    cached: bool
    output: float | None
    prompt: float | None


def most_of(config: Config, form: AnyForm) -> core.Format:
    """Return the format of the layers' matrices; of a file, the format of most of their bytes."""
    if not isinstance(form, FileForm):
        return core.FORMATS[FORMS[form].matrix]
    sizes: dict[core.Format, int] = {}
    for stored in plan(config, form).values():
        if stored.format is not None:
            sizes[stored.format] = sizes.get(stored.format, 0) + stored.nbytes
    return max(sizes, key=sizes.__getitem__)


def limits(config: Config, form: AnyForm, speed: Speed | None, caches: int) -> Limits:
    """Return the bounds that follow from the ceilings. `caches`: bytes of all last caches."""
    read = step_bytes(config, form)
    step_macs = footprint.flops_per_token(config, 0) // 2
    prompt_macs = footprint.flops_per_token(config, 0, head=False) // 2
    cached = read < 2 * caches  # a part of what is read again may still be in them
    if speed is None:
        return Limits(read, step_macs, prompt_macs, cached, None, None)
    kind = peak_of(most_of(config, form))
    instructions = ceilings.instructions(kind, speed.isa) if speed.peaks else ""
    peak = speed.peaks.get(instructions)
    seconds = [] if cached else [read / speed.reads[speed.threads]]
    seconds += [step_macs / peak] if peak else []
    output = 1 / max(seconds) if seconds else None
    return Limits(read, step_macs, prompt_macs, cached, output, peak / prompt_macs if peak else None)
