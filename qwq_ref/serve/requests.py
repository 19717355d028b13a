"""The requests of chats and completions, and the settings of `Model.prepare` that they ask for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from .fields import Fields, Listed
from .problems import ApiError

Effort = Literal["none", "minimal", "low", "medium", "high"]
Share = Annotated[float, Field(ge=0, le=1)]
_LARGEST = (1 << 53) - 1  # whole numbers beyond it are not the same in every program
Count = Annotated[int, Field(ge=1, le=_LARGEST)]
Number = Annotated[int, Field(ge=0, le=_LARGEST)]
_SEEDS = 1 << 64
_BIASES = 4096  # entries of logit_bias: each step of an answer goes through all of them


def _few(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > _BIASES:
        raise ValueError(f"must have at most {_BIASES} entries")
    return value


class StreamOptions(Fields):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # accepted: no event is padded


class GenerationRequest(Fields):
    """The fields that chats and completions share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Count | None = None
    seed: Annotated[int, Field(ge=0, lt=_SEEDS)] | None = None
    stop: str | Listed[str] | None = None
    max_tokens: Number | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Share | None = None
    top_k: Number | None = None
    min_p: Share | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0)] | None = None
    logit_bias: Annotated[dict[str, float], BeforeValidator(_few)] | None = None
    think_budget: Number | None = None
    return_progress: bool | None = None

    def checked_request(self, lenient: bool, choices: int) -> None:
        """Raise ApiError for fields that do not go together, or are not known."""
        self.checked(lenient)
        if self.stream_options is not None:
            self.stream_options.checked(lenient)
            if not self.stream:
                raise ApiError(400, "stream_options: needs stream", param="stream_options", code="invalid_value")
        if (self.n or 1) > choices:
            raise ApiError(400, f"n: must be at most {choices}", param="n", code="invalid_value")
        if self.repeat_penalty is not None and self.repetition_penalty is not None:
            raise ApiError(400, "repeat_penalty: is repetition_penalty", param="repeat_penalty", code="invalid_value")

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self) -> dict[str, Any]:
        """Return the settings that are given, under the names of `Model.prepare`."""
        names = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "think_budget")
        given = {name: getattr(self, name) for name in names}
        given["repetition_penalty"] = self.repetition_penalty or self.repeat_penalty
        given["stop"] = [self.stop] if isinstance(self.stop, str) else self.stop
        given["logit_bias"] = None if self.logit_bias is None else _token_ids(self.logit_bias)
        return {name: value for name, value in given.items() if value is not None}

    def seeds(self, count: int) -> list[int | None]:
        """Return the seed of each choice: the given one, and those after it."""
        return [None if self.seed is None else (self.seed + number) % _SEEDS for number in range(count)]


class ChatRequest(GenerationRequest):
    """A request to /v1/chat/completions."""

    messages: Listed[dict[str, Any]]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Listed[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: Effort | None = None

    @property
    def most(self) -> int | None:
        """The most output tokens. Raises ApiError for two numbers that differ."""
        names = {value for value in (self.max_tokens, self.max_completion_tokens) if value is not None}
        if len(names) > 1:
            message = "max_tokens: differs from max_completion_tokens"
            raise ApiError(400, message, param="max_tokens", code="invalid_value")
        return next(iter(names), None)

    def settings(self) -> dict[str, Any]:
        """Return the settings of `Model.prepare`, but for the seed."""
        names = ("tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs: needs logprobs", param="top_logprobs", code="invalid_value")
        if self.logprobs:
            given["logprobs"] = self.top_logprobs or 0
        return {**self.sampling(), **given, "max_tokens": self.most}

    def conversation(self) -> list[dict[str, Any]]:
        """Return the messages with the roles that templates know."""
        return [{**m, "role": "system"} if m.get("role") == "developer" else m for m in self.messages]


class CompletionRequest(GenerationRequest):
    """A request to /v1/completions."""

    prompt: str | Listed[str] | Listed[int] | Listed[Listed[int]]
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Count | None = None

    def prompts(self, most: int) -> list[str | list[int]]:
        """Return the prompts. Raises ApiError for none, and for more than `most`."""
        given: Any = self.prompt
        one = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
        prompts = [given] if one else list(given)
        if not 1 <= len(prompts) <= most:
            message = f"prompt: must hold 1 to {most} prompts, got {len(prompts)}"
            raise ApiError(400, message, param="prompt", code="invalid_value")
        return prompts

    @property
    def tried(self) -> int:
        """The number of answers to compute for each prompt. Raises ApiError."""
        count, wanted = self.best_of or self.n or 1, self.n or 1
        if count < wanted or (self.stream and count != wanted):
            message = "best_of: must be at least n" if count < wanted else "best_of: needs a request without stream"
            raise ApiError(400, message, param="best_of", code="invalid_value")
        return count

    def settings(self) -> dict[str, Any]:
        """Return the settings of `Model.prepare`, but for the seed and the suffix."""
        noted = self.logprobs if self.logprobs is not None else 0 if self.best_of else None
        given = {"logprobs": noted, "raw": True}
        most = 16 if self.max_tokens is None else self.max_tokens  # OpenAI's number
        return {**self.sampling(), **{k: v for k, v in given.items() if v is not None}, "max_tokens": most}


def _token_ids(bias: dict[str, float]) -> dict[int, float]:
    for name in bias:
        if not (name.isascii() and name.isdigit() and len(name) < 10):
            message = f"logit_bias: {name[:40]!r} is no token id"
            raise ApiError(400, message, param="logit_bias", code="invalid_value")
    return {int(name): value for name, value in bias.items()}
