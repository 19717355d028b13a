"""The loop from a prompt to the next tokens. It knows ids and logits, and nothing of text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...spec import Sampling
from ...spec.ops import Array
from ..sampler import next_token


class Backend(Protocol):
    """What computes logits. A cache is a value of the backend's own; None is the empty one.

    chunk  tokens of a prompt that a step takes at most
    """

    chunk: int

    def step(
        self, ids: Sequence[int], cache: Any, progress: Callable[[float], object] | None = None
    ) -> tuple[Array, Any]:
        """ids [T] -> logits of the last position [V], cache with T more positions. `progress` hears of tokens."""


@dataclass
class Run:
    """What a generation has done so far; `generate` fills it in as it goes.

    finish_reason  "stop" at an end token, "length" at max_tokens, "context" at a full context; None while it runs
    seconds are wall-clock time in the model, sampling included
    """

    prompt: list[int]
    seed: int
    output: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    prompt_seconds: float = 0.0
    output_seconds: float = 0.0


def generate(
    backend: Backend,
    run: Run,
    how: Sampling,
    *,
    end_ids: Sequence[int],
    vocabulary: int,
    context: int,
    max_tokens: int | None = None,
    intervene: Callable[[list[int]], Sequence[int]] | None = None,
    progress: Callable[[float], object] | None = None,
) -> Iterator[int]:
    """Yield the ids that follow `run.prompt`, an end token (not yielded) or a limit ending them.

    vocabulary  ids that can be drawn: 0..vocabulary-1; logits beyond are padding of the embedding
    context     positions that the model may hold, prompt and output together
    intervene   asked after each token, with the output so far, for ids to put in the model's mouth
    progress    called with the number of prompt tokens read since its last call, parts of tokens included

    The token at a position is drawn with a number of its own (Philox, keyed by the seed, counting positions), so that
    rolling back and going on again draws the same.
    """
    limits = {"context": context - len(run.prompt)} | ({} if max_tokens is None else {"length": max_tokens})
    room = min(limits.values())
    cache = None
    started = time.perf_counter()
    for start in range(0, len(run.prompt), backend.chunk):
        logits, cache = backend.step(run.prompt[start : start + backend.chunk], cache, progress)
    run.prompt_seconds = time.perf_counter() - started

    while True:
        started = time.perf_counter()
        token = next_token(logits[:vocabulary], how, run.prompt, run.output, run.seed)
        if token in end_ids:
            run.finish_reason = "stop"
            return
        new = [token]
        run.output.append(token)
        if intervene is not None:
            new += list(intervene(run.output))[: room - len(run.output)]
            run.output += new[1:]
        run.output_seconds += time.perf_counter() - started
        yield from new
        if len(run.output) >= room:
            run.finish_reason = min(limits, key=lambda name: limits[name])
            return
        started = time.perf_counter()
        logits, cache = backend.step(new, cache)
        run.output_seconds += time.perf_counter() - started
