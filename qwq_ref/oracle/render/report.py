"""The report: a comparison and its diagnosis, with all facts for JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ... import __version__
from ..explain.diagnose import Cause, Diagnosis
from ..explain.mistakes import BY_NAME
from ..graph import split_name
from ..judge.compare import Comparison, TapResult
from ..judge.localise import spans
from ..judge.metrics import MARGIN
from ..packs.manifest import Manifest
from .junit import junit
from .text import lines

_STATUSES = ("ok", "introduced", "propagated", "beyond", "nan", "shape")


@dataclass(frozen=True)
class Report:
    """The result of comparing a candidate with a golden pack. `passed` is the verdict, `str()` the report as text.

    hidden   mistakes possible in this config that the tensors cannot show; None: not looked for
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
        """The name of the mistake that explains the first divergence; None if no mistake does."""
        return self.diagnosis.causes[0].mistake.name if self.diagnosis.causes else None

    def __str__(self) -> str:
        return "\n".join(lines(self))

    def scope(self, cause: Cause) -> str:
        """Return where a mistake was made: everywhere, in a layer only, in decoding only."""
        relative = {split_name(tap)[1] for _, tap in cause.explains}
        same = [r for r in self.comparison.results if split_name(r.tap)[1] in relative]
        wrong = [r for r in same if r.status in ("introduced", "beyond")]
        parts = []
        layers = {layer for r in wrong if (layer := split_name(r.tap)[0]) is not None}
        have = {layer for r in same if (layer := split_name(r.tap)[0]) is not None}
        if layers and layers != have:
            plural = "s" if len(layers) > 1 else ""
            parts.append(f"in layer{plural} {spans(sorted(layers))} only, of {spans(sorted(have))}")
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
        """Return all facts, for JSON. A number that is not finite becomes None."""
        c, d = self.comparison, self.diagnosis
        return {
            "format": "qwq-golden-report",
            "version": "1.0",
            "made_by": f"qwq_ref {__version__}",
            "passed": self.passed,
            "mismatch": c.mismatch or None,
            "golden": self.golden,
            "model": self.manifest.model,
            "source": None if self.manifest.source is None else self.manifest.source.to_dict(),
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
        """Return the report as JUnit XML, for CI systems."""
        return junit(self)


class DivergenceError(AssertionError):
    """A candidate that differs from its pack. The message is the report."""

    def __init__(self, report: Report) -> None:
        self.report = report
        super().__init__(f"\n{report}")


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
