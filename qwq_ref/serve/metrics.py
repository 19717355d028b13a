"""/metrics, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from starlette.responses import Response

from ..host.memory import peak_bytes
from .engine import ServedModel

if TYPE_CHECKING:
    from .journal import Journal

_GAUGES = {"running": "answers that are computed", "waiting": "prompts that wait", "kept": "sessions in memory"}
_COUNTERS = {
    "answered": "answers that ended",
    "cancelled": "answers whose client went away, or that a shutdown cut off",
    "failed": "answers that an error ended",
    "refused": "prompts that found no room",
    "prompt_tokens": "tokens of prompts that were computed",
    "cached_tokens": "tokens of prompts that were in memory already",
    "output_tokens": "tokens of answers",
    "passes": "passes over the weights",
}


def metrics(engine: ServedModel, journal: Journal) -> Response:
    """Return counts since the start, and the state now. No label holds anything that a client chose."""
    lines = [*_metric("up", "gauge", "whether the model is loaded", {"": int(engine.loaded)})]
    if engine.loaded:
        counts = engine.scheduler.counts
        for name, says in _GAUGES.items():
            lines += _metric(name, "gauge", says, {"": getattr(counts, name)})
        for name, says in _COUNTERS.items():
            lines += _metric(f"{name}_total", "counter", says, {"": getattr(counts, name)})
        lines += _metric("pass_seconds_total", "counter", "time of passes", {"": counts.seconds})
    requests = {f'{{path="{path}",status="{code}"}}': count for (path, code), count in journal.requests.items()}
    lines += _metric("requests_total", "counter", "requests; the status 0: the client went away first", requests)
    seconds = {f'{{path="{path}"}}': time for path, time in journal.seconds.items()}
    lines += _metric("request_seconds_total", "counter", "time of requests", seconds)
    lines += _metric("open_requests", "gauge", "requests that are answered", {"": journal.open})
    lines += _metric("peak_memory_bytes", "gauge", "the most memory that the process had", {"": peak_bytes()})
    return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4; charset=utf-8")


def _metric(name: str, kind: str, says: str, values: Mapping[str, float]) -> Iterable[str]:
    yield f"# HELP qwq_{name} {says}"
    yield f"# TYPE qwq_{name} {kind}"
    for labels, value in sorted(values.items()):
        yield f"qwq_{name}{labels} {value}"
