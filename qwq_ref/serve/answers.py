"""An answer, as the event loop sees it: what the scheduler's thread tells, in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from ..engine.generation import Kind, Piece
from ..engine.logprobs import Recorder, TokenLogprob
from ..engine.model import PreparedPrompt
from ..engine.scheduler import Ended, Progress, Scheduler
from .problems import of_late_error, unavailable

_CUT = ("length", "context", "loop")  # reasons for which an answer is not whole


@dataclass(frozen=True)
class TextPart:
    """A piece of text, and the output tokens that came with it.

    start, stop  places in `run.output`
    """

    piece: Piece
    start: int
    stop: int


@dataclass(frozen=True)
class Usage:
    """The tokens of an answer: `cached` is a part of `prompt`, and `reasoning` of `output`."""

    prompt: int
    cached: int
    output: int
    reasoning: int


class ServedAnswer:
    """One prompt in the scheduler. The event loop uses it; raises as `Scheduler.submit`."""

    def __init__(self, scheduler: Scheduler, prepared: PreparedPrompt) -> None:
        self._scheduler = scheduler
        self._run, self._choose = prepared.run, prepared.choose
        self._events: asyncio.Queue[tuple[Any, int]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._ended = False
        self.job = scheduler.submit(prepared, self._deliver)

    def _deliver(self, event: Any) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, (event, len(self._run.output)))

    def cancel(self) -> None:
        """End the answer, before the next pass."""
        if not self._ended:
            self._scheduler.cancel(self.job)

    async def parts(self) -> AsyncIterator[TextPart | Progress]:
        """Yield what comes, until the end. Raises ApiError for an error, and where the server shuts down.

        If the caller goes away, the answer is cancelled.
        """
        at = 0
        try:
            while True:
                event, count = await self._events.get()
                if isinstance(event, Ended):
                    self._ended = True
                    if event.problem is not None:
                        raise of_late_error(event.problem)
                    if self._run.finish_reason == "cancelled":
                        raise unavailable("the server is shutting down", 5, "shutting_down")
                    return
                if isinstance(event, Progress):
                    yield event
                else:
                    yield TextPart(event, at, count)
                    at = count
        finally:
            self.cancel()

    def noted(self, start: int, stop: int) -> list[TokenLogprob]:
        """Return the log-probabilities of tokens of the output, if they were asked for."""
        return (self._run.logprobs or [])[start:stop]

    @property
    def texts(self) -> dict[Kind, str]:
        """The reasoning and the answer so far."""
        return self.job.generation.texts

    @property
    def output(self) -> list[int]:
        """The ids so far."""
        return self._run.output

    @property
    def end(self) -> TokenLogprob | None:
        """The token that ended the output, if log-probabilities were asked for."""
        return self._choose.end if isinstance(self._choose, Recorder) else None

    @property
    def cut(self) -> bool:
        """Whether a limit ended the answer."""
        return self._run.finish_reason in _CUT

    @property
    def ending(self) -> str | None:
        """A line that says why there is no whole answer."""
        return self.job.generation.ending

    @property
    def usage(self) -> Usage:
        run = self._run
        return Usage(len(run.prompt), run.cached, len(run.output), self.job.generation.thinking_tokens)

    def progress(self, progress: Progress) -> dict[str, float]:
        """Return how much of the prompt is computed, under llama.cpp's names."""
        waited = time.monotonic() - self.job.submitted
        return {
            "total": len(self._run.prompt),
            "cache": self._run.cached,
            "processed": self._run.cached + progress.done,
            "time_ms": round(1000 * waited),
        }

    @property
    def timings(self) -> dict[str, float]:
        """Times and speeds, under llama.cpp's names."""
        run = self._run
        times = {"prompt": (len(run.prompt) - run.cached, run.prompt_seconds)}
        times["predicted"] = (len(run.output), run.output_seconds)
        found: dict[str, float] = {"cache_n": run.cached}
        for name, (count, seconds) in times.items():
            found[f"{name}_n"] = count
            found[f"{name}_ms"] = round(1000 * seconds, 3)
            found[f"{name}_per_second"] = round(count / seconds, 3) if seconds > 0 else 0.0
        return found


def total(usages: list[Usage]) -> Usage:
    """Return the usage of several answers to one prompt."""
    first = usages[0]
    return Usage(first.prompt, first.cached, sum(u.output for u in usages), sum(u.reasoning for u in usages))


def usage_json(usage: Usage) -> dict[str, Any]:
    """Return the usage as OpenAI has it for chats and completions."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.output,
        "total_tokens": usage.prompt + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }
