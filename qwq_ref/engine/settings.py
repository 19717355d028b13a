"""The settings of one generation, checked in one place: for `Model.generate`, the command line and other callers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import UsageError, did_you_mean
from . import loops
from .sampler import own_sampling
from .values import at_least_one, whole_number

MOST_LOGPROBS = 20
MOST_STOPS = 16
LONGEST_STOP = 1000  # characters
# Effort -> the most tokens of reasoning, and the largest share of the room for the output.
EFFORTS: dict[str, tuple[int, float] | None] = {
    "none": (0, 1.0),
    "minimal": (0, 1.0),
    "low": (1024, 0.25),
    "medium": (4096, 0.5),
    "high": None,
}


@dataclass(frozen=True)
class Settings:
    """How to answer a prompt. Make it with `checked`.

    system            a system prompt
    raw               continue the prompt as plain text, without the chat template
    max_tokens        of the output, reasoning included; None: until the model ends its answer or the context is full
    seed              of the draws; None: a random one, kept in `run.seed`
    think_budget      tokens of reasoning after which it is closed, whoever opened it; 0 turns reasoning off
    reasoning_effort  a budget by its name in `EFFORTS`; "high" has no limit
    stop              texts that end the answer, without being part of it. The reasoning may contain them
    logprobs          likeliest tokens to note in `run.logprobs` with each token of the output; None: nothing is noted
    loop_guard        the output ends when it repeats itself so many times: see `loops`. 0: it goes on
    begun             text that the answer begins with, given by the caller: the model goes on from it. It is no part of
                      the output
    suffix            the text behind a gap that the answer fills, for models with tokens for that: see `text.fim`
    response_format, tools, tool_choice, parallel_tool_calls
                      as OpenAI's clients send them. The answer keeps to the grammar that they set, if any: see
                      `grammar.grammar_of`. `text.ToolParser` finds the calls in an answer
    sampling          fields of `Sampling`; the others come from the checkpoint
    """

    system: str | None = None
    raw: bool = False
    max_tokens: int | None = None
    seed: int | None = None
    think_budget: int | None = None
    reasoning_effort: str | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    loop_guard: int = loops.TIMES
    begun: str | None = None
    suffix: str | None = None
    response_format: Mapping[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | Mapping[str, Any] = "auto"
    parallel_tool_calls: bool = True
    sampling: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def checked(
        cls, *, stop: str | Sequence[str] | None = None, loop_guard: int | None = None, **asked: Any
    ) -> Settings:
        """Return settings: those of this class by their names, and fields of `Sampling`. None keeps a default.

        Raises UsageError for a value of a wrong type or out of range, and for settings that exclude each other.
        """
        names = {each.name for each in fields(cls)} - {"sampling"}
        own = {name: value for name, value in asked.items() if name in names and value is not None}
        sampling = {name: value for name, value in asked.items() if name not in names}
        for name in ("max_tokens", "seed", "think_budget", "logprobs"):
            if own.get(name) is not None:
                whole_number(name, own[name])
        settings = cls(
            **own,
            stop=_stops(stop),
            loop_guard=loops.TIMES if loop_guard is None else loop_guard,
            sampling={name: value for name, value in sampling.items() if value is not None},
        )
        own_sampling({}, **settings.sampling)
        settings._check()
        return settings

    def _check(self) -> None:
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise UsageError(None, "seed", f"must be 0 to 2^64 - 1, got {self.seed}")
        if self.max_tokens is not None:
            at_least_one("max_tokens", self.max_tokens)
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise UsageError(None, "logprobs", f"must be 0 to {MOST_LOGPROBS}, got {self.logprobs}")
        whole_number("loop_guard", self.loop_guard)
        if self.loop_guard != 0 and self.loop_guard < 2:
            raise UsageError(None, "loop_guard", f"must be at least 2, or 0 to turn it off, got {self.loop_guard}")
        if self.suffix is not None and self.response_format is not None:
            raise UsageError(None, "response_format", "does not go together with a suffix")
        others = {"raw": self.raw, "suffix": self.suffix, "response_format": self.response_format, "tools": self.tools}
        if self.begun is not None and not isinstance(self.begun, str):
            raise UsageError(None, "begun", f"must be a text, got {self.begun!r:.40}")
        if self.begun is not None and (beside := [name for name, value in others.items() if value]):
            raise UsageError(None, "begun", f"does not go together with {beside[0]}")
        effort = self.reasoning_effort
        if effort is not None and effort not in EFFORTS:
            near = did_you_mean(str(effort), EFFORTS)
            raise UsageError(None, "reasoning_effort", f"must be one of {', '.join(EFFORTS)}, got {effort!r:.40}{near}")
        if effort is not None and self.think_budget is not None:
            raise UsageError(
                None, "reasoning_effort", "cannot be combined with a think budget: each limits the reasoning"
            )

    def budget(self, room: int) -> int | None:
        """Return the tokens of reasoning after which it is closed; None: no limit.

        room  tokens that the output can have. A named effort leaves a part of them for the answer
        """
        limit = EFFORTS[self.reasoning_effort] if self.reasoning_effort is not None else None
        return self.think_budget if limit is None else min(limit[0], int(limit[1] * room))


def _stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    stops = () if stop is None else (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, list | tuple) or not all(isinstance(each, str) for each in stops):
        raise UsageError(None, "stop", f"must be a text or a list of texts, got {stop!r:.40}")
    if len(stops) > MOST_STOPS:
        raise UsageError(None, "stop", f"must have at most {MOST_STOPS} texts, got {len(stops)}")
    for each in stops:
        if not 1 <= len(each) <= LONGEST_STOP:
            raise UsageError(None, "stop", f"must be texts of 1 to {LONGEST_STOP} characters, got {len(each)}")
    return tuple(stops)
