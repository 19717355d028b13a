"""A report as text, for people."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...formats.decoded import FLOAT_TYPES
from ..explain.mistakes import BY_NAME
from ..graph import split_name
from ..judge.compare import TapResult
from ..packs.manifest import Origin
from .words import count, in_phase

if TYPE_CHECKING:
    from .report import Report


def lines(report: Report) -> Iterable[str]:
    """Yield the lines of a report."""
    c, phases = report.comparison, report.manifest.phases
    steps = f" + {len(phases) - 1} steps of decoding" if len(phases) > 1 else ""
    made = _origin(report.manifest.source)
    yield f"golden: {report.golden} ({report.manifest.model or 'a model'}{made}, {phases[0].T} tokens{steps})"
    yield f"theirs: {report.theirs}" + (f", {len(c.results)} taps in {c.precision}" if c.results else "")
    if c.mismatch:
        yield f"FAIL: {c.mismatch}; nothing was compared"
        return
    yield from _verdict(report)
    if c.logits is not None:
        yield _logit_line(c.logits)
    if c.missing:
        yield f"not compared: {_names_of(c.missing)}"
    if report.unknown:
        yield f"not understood: {_some(report.unknown)}"
    for note in c.notes:
        yield f"note: {note}"
    if report.hidden:
        yield f"cannot be told from these tensors ({len(report.hidden)}):"
        for name in report.hidden:
            yield f"  {name:<28} would need {BY_NAME[name].needs}"


def _origin(source: Origin | None) -> str:
    """Return the quantised types that a pack was recorded from, in words."""
    if source is None:
        return ""
    types = [kind for kind in source.types if kind not in FLOAT_TYPES]
    return f", from {source.kind} with {_some(types or list(source.types))}"


def _verdict(report: Report) -> Iterable[str]:
    c, d, first = report.comparison, report.diagnosis, report.first
    if first is None:
        yield f"PASS: {_worst(c.results)}"
        if c.drift:
            yield (
                "drift: every operation is right on its own inputs, but the roundings add up to more than in our "
                f"runs: {sum(r.wrong for r in c.results)} taps"
            )
        return
    yield f"FAIL: first divergence at {first.tap}, {in_phase(first.phase)}"
    yield f"  {what_is_wrong(first)}"
    if first.where:
        yield f"  where: {first.where}"
    for i, cause in enumerate(d.causes):
        role = "cause" if i == 0 and (first.phase, first.tap) in cause.explains else "also"
        yield f"  {role}: {cause.mistake.name}, {report.scope(cause)}"
        yield f"    {cause.mistake.says}"
        wrong = count(len(cause.explains), "wrong tap")
        yield f"    reproduces {wrong} to within rounding ({cause.share:.3%} of the error)"
        if cause.equals:
            yield f"    cannot be told from {', '.join(cause.equals)} here"
        if cause.against:
            others = count(cause.against, "other tap")
            yield f"    {others}, which it would move, right all the same: it is not made everywhere"
    if d.unexplained:
        yield f"  unexplained: {_names_of(d.unexplained)}; none of {d.tried} known mistakes reproduces it"
        if d.nearest is not None:
            yield f"    the nearest is {d.nearest[0]}, with {d.nearest[1]:.0%} of the error"
    elif not d.causes and first.status in ("introduced", "beyond", "propagated"):
        yield "  cause: not known" + ("" if report.with_weights else "; with the model's weights it may be (--model)")
    counts = report.counts()
    yield (
        f"taps: {counts['ok']} right, {counts['introduced']} wrong by themselves, {counts['propagated']} only from "
        f"their inputs, {counts['beyond']} wrong with unknown inputs, {counts['nan'] + counts['shape']} unusable"
    )


def what_is_wrong(result: TapResult) -> str:
    """Return the verdict on a wrong tap in words."""
    if result.status == "nan":
        return f"NaN or infinity {result.note}"
    if result.status == "shape":
        return result.note
    if result.introduced is not None and result.status == "introduced":
        return (
            f"error {_number(result.introduced)} on its own inputs, which is this operation's; a correct one in "
            f"{result.precision} may have {_number(result.own_allowed)}"
        )
    if result.distance is None:
        return ""
    allowed = _number(result.allowed)
    why = "right on its own inputs" if result.status == "propagated" else "whether its inputs are to blame is not known"
    return f"error {_number(result.distance.error)}, where a correct {result.precision} may have {allowed}; {why}"


def _worst(results: Sequence[TapResult]) -> str:
    """Return the tap whose error is nearest to the allowed error, in words."""
    shares = [
        (own / allowed, r, "on its own inputs")
        for r in results
        if (own := r.introduced) is not None and (allowed := r.own_allowed)
    ] + [(r.distance.error / r.allowed, r, "in all") for r in results if r.distance is not None and r.allowed]
    if not shares and results and all(r.own_allowed == 0 for r in results):
        return f"every bit of {count(len(results), 'tap')} is the reference's"
    if not shares:
        return "nothing could be measured"
    share, result, how = max(shares, key=lambda item: item[0])
    return f"no error above {share:.0%} of what is allowed ({result.tap}, {in_phase(result.phase)}, {how})"


def _logit_line(m: Mapping[str, Any]) -> str:
    decided = f"top-1 {m['top1_decided']:.1%} of the {m['decided']} that rounding cannot turn"
    return (
        f"logits of {m['tokens']} tokens: KL {_number(m['kl'])}, at most {_number(m['kl_max'])}; "
        f"top-1 {m['top1']:.1%}, top-5 {m['top5']:.1%}; {decided if m['decided'] else 'rounding can turn each of them'}"
    )


def _number(x: float | None) -> str:
    if x is None:
        return "unknown"
    return f"{x:.3g}" if math.isfinite(x) else "infinite"


def _names_of(places: Collection[tuple[str, str]]) -> str:
    """Write the names of places within their layers, and the number of places: "scores, probs (12 tensors)" """
    names = dict.fromkeys(split_name(tap)[1].removeprefix("self_attn.") for _, tap in places)
    return f"{_some(list(names))} ({count(len(places), 'tensor')})"


def _some(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
