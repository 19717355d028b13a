"""Plain decoding: one step for each token. The loop knows ids and logits, and no text.

The loop itself runs no step: it asks for each. So the same loop serves one sequence alone (`generate`) and many that
share each pass over the weights (`decode.together`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...spec.ops import Array
from ..logprobs import TokenLogprob
from ..loops import Loop
from ..session import Asking, Session, alone

Choose = Callable[[Array, list[int], list[int]], int]
Constrain = Callable[[Array, list[int]], Array]


@dataclass
class Run:
    """The state of one generation. `generate` updates it with each token.

    prompt, output  token ids; an end token is not part of the output
    seed            of the draws
    cached          prompt tokens that the session held before
    finish_reason   "stop" at an end token or a stop string, "no_answer" at an end token before any answer, "length" at
                    max_tokens, "context" at a full context, "loop" at a repetition without end; None before the end
    prompt_seconds, output_seconds  wall-clock time of the model, sampling included
    stop_string     the stop string that ended the output
    loop            the repetition that ended the output
    logprobs        for each id of the output, if they were asked for
    """

    prompt: list[int]
    seed: int
    output: list[int] = field(default_factory=list)
    cached: int = 0
    finish_reason: str | None = None
    prompt_seconds: float = 0.0
    output_seconds: float = 0.0
    stop_string: str | None = None
    loop: Loop | None = None
    logprobs: list[TokenLogprob] | None = None


def generate(session: Session, run: Run, choose: Choose, **how: Any) -> Iterator[int]:
    """Yield the ids that follow `run.prompt`: those of `decoding`, each of whose steps runs alone."""
    yield from alone(decoding(session, run, choose, **how), session.backend, session.model)


def decoding(
    session: Session,
    run: Run,
    choose: Choose,
    *,
    end_ids: Sequence[int],
    vocabulary: int,
    context: int,
    max_tokens: int | None = None,
    never: Sequence[range] = (),
    constrain: Constrain | None = None,
    ended: Callable[[], str | None] | None = None,
    intervene: Callable[[list[int]], Sequence[int]] | None = None,
    progress: Callable[[float], object] | None = None,
) -> Asking[int]:
    """Yield the ids that follow `run.prompt`, until an end token (not yielded) or a limit, and the steps they need.

    session     keeps the tokens that it has in common with the prompt; afterwards it holds the prompt and the output
    choose      called with logits [vocabulary], prompt and output; returns the next id, see `sampler.Sampler`
    vocabulary  ids that may be chosen: 0 to vocabulary - 1; the logits beyond belong to padding of the embedding
    context     positions for prompt and output together
    never       ranges of ids that are not chosen either: no text has them
    constrain   called with logits [vocabulary] and the output so far; returns the logits to choose from
    ended       called once the caller has taken a token; returns the reason to end the output with it, if there is one
    intervene   called with the output so far, once the caller has taken its last token; returns ids to append to it
    progress    called with the number of prompt tokens computed since its last call, fractions included

    Raises NonFiniteError, which names the step, for logits from which no token can be chosen.
    """
    limits = {"context": context - len(run.prompt)} | ({} if max_tokens is None else {"length": max_tokens})
    room = min(limits.values())
    started = time.perf_counter()
    run.cached = session.keep_common(run.prompt[:-1])
    yield from session.asking(run.prompt[run.cached :], progress, "prompt")
    run.prompt_seconds = time.perf_counter() - started

    while True:
        started = time.perf_counter()
        logits = session.next_logits()[:vocabulary]
        if never:
            logits = logits.copy()
            for ids in never:
                logits[ids.start : ids.stop] = -np.inf
        if constrain is not None:
            logits = constrain(logits, run.output)
        token = choose(logits, run.prompt, run.output)
        if token in end_ids:
            run.finish_reason = "stop"
            return
        new = [token]
        run.output.append(token)
        run.output_seconds += time.perf_counter() - started
        yield token
        if ended is not None and (reason := ended()) is not None:
            run.finish_reason = reason
            return
        if intervene is not None:
            for forced in list(intervene(run.output))[: room - len(run.output)]:
                new.append(forced)
                run.output.append(forced)
                yield forced
        if len(run.output) >= room:
            run.finish_reason = min(limits, key=lambda name: limits[name])
            return
        started = time.perf_counter()
        yield from session.asking(new, step=f"decode step {len(run.output)}")
        run.output_seconds += time.perf_counter() - started
