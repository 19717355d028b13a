"""A comparison in words for people, as JSON for programs, as JUnit for CI. `html` draws it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import quoteattr

from ... import __version__
from ..explain.diagnose import Cause, Diagnosis
from ..explain.mistakes import BY_NAME
from ..graph import split_name
from ..judge.compare import Comparison, TapResult
from ..judge.metrics import MARGIN
from ..packs.manifest import Manifest

_STATUSES = ("ok", "introduced", "propagated", "beyond", "nan", "shape")


@dataclass(frozen=True)
class Report:
    """What came of holding a candidate against a golden pack; `passed` is the verdict, `str()` the story.

    hidden   mistakes that the tensors at hand would not show, of those that concern the config; None: not asked
    unknown  names in the candidate's source that are no tap
    """

    golden: str
    theirs: str
    manifest: Manifest
    comparison: Comparison
    diagnosis: Diagnosis
    with_weights: bool
    hidden: tuple[str, ...] | None = None
    unknown: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return self.comparison.passed

    @property
    def first(self) -> TapResult | None:
        """The first divergence, None if there is none."""
        return None if self.passed else self.comparison.first

    @property
    def cause(self) -> str | None:
        """The name of the mistake that explains it, if one does."""
        return self.diagnosis.causes[0].mistake.name if self.diagnosis.causes else None

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterable[str]:
        c, phases = self.comparison, self.manifest.phases
        steps = f" + {len(phases) - 1} steps of decoding" if len(phases) > 1 else ""
        yield f"golden: {self.golden} ({self.manifest.model or 'a model'}, {phases[0].T} tokens{steps})"
        yield f"theirs: {self.theirs}" + (f", {len(c.results)} taps in {c.precision}" if c.results else "")
        if c.mismatch:
            yield f"FAIL: {c.mismatch}; nothing was compared"
            return
        yield from self._verdict()
        if c.logits is not None:
            yield _logit_line(c.logits)
        if c.missing:
            yield f"not compared: {_names_of(c.missing)}"
        if self.unknown:
            yield f"not understood: {_some(self.unknown)}"
        for note in c.notes:
            yield f"note: {note}"
        if self.hidden:
            yield f"cannot be told from these tensors ({len(self.hidden)}):"
            for name in self.hidden:
                yield f"  {name:<28} would need {BY_NAME[name].needs}"

    def _verdict(self) -> Iterable[str]:
        c, d, first = self.comparison, self.diagnosis, self.first
        if first is None:
            yield f"PASS: {_worst(c.results)}"
            if c.drift:
                yield (
                    "drift: every operation is right on its own inputs, but the roundings add up to more than in our "
                    f"runs: {sum(r.wrong for r in c.results)} taps"
                )
            return
        yield f"FAIL: first divergence at {first.tap}, {_phase_words(first.phase)}"
        yield f"  {_what_is_wrong(first)}"
        if first.where:
            yield f"  where: {first.where}"
        for i, cause in enumerate(d.causes):
            role = "cause" if i == 0 and (first.phase, first.tap) in cause.explains else "also"
            yield f"  {role}: {cause.mistake.name}, {self.scope(cause)}"
            yield f"    {cause.mistake.says}"
            wrong = _count(len(cause.explains), "wrong tap")
            yield f"    reproduces {wrong} to within rounding ({cause.share:.3%} of the error)"
            if cause.equals:
                yield f"    cannot be told from {', '.join(cause.equals)} here"
            if cause.against:
                others = _count(cause.against, "other tap")
                yield f"    {others}, which it would move, right all the same: it is not made everywhere"
        if d.unexplained:
            yield f"  unexplained: {_names_of(d.unexplained)}; none of {d.tried} known mistakes reproduces it"
            if d.nearest is not None:
                yield f"    the nearest is {d.nearest[0]}, with {d.nearest[1]:.0%} of the error"
        elif not d.causes and first.status in ("introduced", "beyond", "propagated"):
            yield "  cause: not known" + ("" if self.with_weights else "; with the model's weights it may be (--model)")
        counts = self.counts()
        yield (
            f"taps: {counts['ok']} right, {counts['introduced']} wrong by themselves, {counts['propagated']} only from "
            f"their inputs, {counts['beyond']} wrong with unknown inputs, {counts['nan'] + counts['shape']} unusable"
        )

    def scope(self, cause: Cause) -> str:
        """Where a mistake was made, in words: everywhere, in a layer only, in decoding only."""
        relative = {split_name(tap)[1] for _, tap in cause.explains}
        same = [r for r in self.comparison.results if split_name(r.tap)[1] in relative]
        wrong = [r for r in same if r.status in ("introduced", "beyond")]
        parts = []
        layers = {layer for r in wrong if (layer := split_name(r.tap)[0]) is not None}
        have = {layer for r in same if (layer := split_name(r.tap)[0]) is not None}
        if layers and layers != have:
            plural = "s" if len(layers) > 1 else ""
            parts.append(f"in layer{plural} {_spans(sorted(layers))} only, of {_spans(sorted(have))}")
        in_phases, all_phases = {r.phase for r in wrong}, {r.phase for r in same}
        if "prompt" not in in_phases and "prompt" in all_phases:
            parts.append("in decoding only")
        elif in_phases == {"prompt"} and len(all_phases) > 1:
            parts.append("in the prompt only")
        return "; ".join(parts) or "everywhere"

    def counts(self) -> dict[str, int]:
        counts = dict.fromkeys(_STATUSES, 0)
        for result in self.comparison.results:
            counts[result.status] += 1
        return counts | {"missing": len(self.comparison.missing)}

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON. A number that is not finite is null."""
        c, d = self.comparison, self.diagnosis
        return {
            "format": "qwq-golden-report",
            "version": "1.0",
            "made_by": f"qwq_ref {__version__}",
            "passed": self.passed,
            "mismatch": c.mismatch or None,
            "golden": self.golden,
            "model": self.manifest.model,
            "theirs": self.theirs,
            "precision": c.precision,
            "margin": MARGIN,
            "layers": self.manifest.config.L,
            "phases": [{"name": p.name, "start": p.start, "tokens": p.T} for p in self.manifest.phases],
            "with_weights": self.with_weights,
            "first": None if self.first is None else _tap_dict(self.first),
            "causes": [
                {
                    "name": cause.mistake.name,
                    "says": cause.mistake.says,
                    "scope": self.scope(cause),
                    "explains": [list(place) for place in cause.explains],
                    "against": cause.against,
                    "share": _finite(cause.share),
                    "equals": list(cause.equals),
                }
                for cause in d.causes
            ],
            "unexplained": [list(place) for place in d.unexplained],
            "nearest": None if d.nearest is None else {"name": d.nearest[0], "share": _finite(d.nearest[1])},
            "tried": d.tried,
            "drift": c.drift,
            "counts": self.counts(),
            "logits": None if c.logits is None else {k: _finite(v) for k, v in c.logits.items()},
            "hidden": None
            if self.hidden is None
            else [{"name": name, "needs": BY_NAME[name].needs} for name in self.hidden],
            "notes": list(c.notes),
            "unknown": list(self.unknown),
            "missing": [list(place) for place in c.missing],
            "taps": [_tap_dict(result) for result in c.results],
        }

    def junit(self) -> str:
        """One test case a tap and phase, as CI systems read it; a missing tap is skipped."""
        cases = []
        c = self.comparison
        if c.mismatch:
            cases.append(_case("tokens", "golden", _failure("failure", c.mismatch, c.mismatch)))
        for result in c.results:
            inner = ""
            if result.wrong and not (c.drift and result.status == "propagated"):
                told = str(self) if result is self.first else _what_is_wrong(result)
                inner = _failure("failure", _what_is_wrong(result), told)
            cases.append(_case(result.tap, result.phase, inner))
        cases += [_case(tap, phase, "<skipped/>") for phase, tap in c.missing]
        failures = sum("<failure" in case for case in cases)
        head = f'tests="{len(cases)}" failures="{failures}" skipped="{len(c.missing)}"'
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<testsuites>\n<testsuite name={quoteattr(f'qwq golden {self.golden}')} {head}>\n"
            + "\n".join(cases)
            + "\n</testsuite>\n</testsuites>\n"
        )


class DivergenceError(AssertionError):
    """A candidate is not what the pack says it should be; the message is the report."""

    def __init__(self, report: Report) -> None:
        self.report = report
        super().__init__(f"\n{report}")


def _phase_words(phase: str) -> str:
    return "in the prompt" if phase == "prompt" else f"in {phase}"


def _what_is_wrong(result: TapResult) -> str:
    if result.status == "nan":
        return f"NaN or infinity {result.note}"
    if result.status == "shape":
        return result.note
    parts = []
    if result.introduced is not None and result.status == "introduced":
        parts.append(
            f"error {_number(result.introduced)} on its own inputs, which is this operation's; a correct one in "
            f"{result.precision} may have {_number(result.own_allowed)}"
        )
    elif result.distance is not None:
        allowed = _number(result.allowed)
        parts.append(f"error {_number(result.distance.error)}, where a correct {result.precision} may have {allowed}")
        propagated = result.status == "propagated"
        parts.append("right on its own inputs" if propagated else "whether its inputs are to blame is not known")
    return "; ".join(parts)


def _worst(results: Sequence[TapResult]) -> str:
    """The tap that is nearest to what is allowed."""
    shares = [
        (own / allowed, r, "on its own inputs")
        for r in results
        if (own := r.introduced) is not None and (allowed := r.own_allowed)
    ] + [(r.distance.error / r.allowed, r, "in all") for r in results if r.distance is not None and r.allowed]
    if not shares and results and all(r.own_allowed == 0 for r in results):
        return f"every bit of {_count(len(results), 'tap')} is the reference's"
    if not shares:
        return "nothing could be measured"
    share, result, how = max(shares, key=lambda item: item[0])
    return f"no error above {share:.0%} of what is allowed ({result.tap}, {_phase_words(result.phase)}, {how})"


def _logit_line(m: Mapping[str, Any]) -> str:
    decided = f"top-1 {m['top1_decided']:.1%} of the {m['decided']} that rounding cannot turn"
    return (
        f"logits of {m['tokens']} tokens: KL {_number(m['kl'])}, at most {_number(m['kl_max'])}; "
        f"top-1 {m['top1']:.1%}, top-5 {m['top5']:.1%}; {decided if m['decided'] else 'rounding can turn each of them'}"
    )


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _number(x: float | None) -> str:
    if x is None:
        return "unknown"
    return f"{x:.3g}" if math.isfinite(x) else "infinite"


def _finite(x: Any) -> Any:
    return None if isinstance(x, float) and not math.isfinite(x) else x


def _tap_dict(result: TapResult) -> dict[str, Any]:
    far = result.distance
    return {
        "phase": result.phase,
        "tap": result.tap,
        "status": result.status,
        "precision": result.precision,
        "error": None if far is None else _finite(far.error),
        "allowed": None if result.allowed is None else _finite(result.allowed),
        "introduced": None if result.introduced is None else _finite(result.introduced),
        "own_allowed": None if result.own_allowed is None else _finite(result.own_allowed),
        "cosine": None if far is None else _finite(far.cosine),
        "max_abs": None if far is None else _finite(far.max_abs),
        "at": None if far is None else list(far.at),
        "p99": None if far is None else _finite(far.p99),
        "where": result.where,
        "note": result.note,
    }


def _names_of(places: Collection[tuple[str, str]]) -> str:
    """Places by their names within a layer: "scores, probs (in 3 layers, 4 phases)"."""
    by_name: dict[str, set[tuple[str, str]]] = {}
    for phase, tap in places:
        by_name.setdefault(split_name(tap)[1], set()).add((phase, tap))
    return f"{_some([name.removeprefix('self_attn.') for name in by_name])} ({_count(len(places), 'tensor')})"


def _some(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _spans(numbers: Sequence[int]) -> str:
    spans: list[list[int]] = []
    for n in numbers:
        if spans and spans[-1][1] == n - 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def _case(name: str, kind: str, inner: str) -> str:
    return f"<testcase name={quoteattr(name)} classname={quoteattr(kind)}>{inner}</testcase>"


def _failure(tag: str, message: str, text: str) -> str:
    from xml.sax.saxutils import escape

    clean = "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)
    return f"<{tag} message={quoteattr(message)}>{escape(clean)}</{tag}>"
