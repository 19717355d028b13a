"""/v1/completions: texts that go on, and the probabilities of given texts."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..engine.logprobs import TokenLogprob
from ..engine.scheduler import Progress
from ..errors import UsageError
from ..text import read_gap
from .answers import ServedAnswer, TextPart, Usage, total, usage_json
from .engine import ServedModel
from .events import DONE, EventStream, event, gather, merged, while_connected
from .logprobs import completion_logprobs
from .problems import ApiError, answer
from .requests import CompletionRequest
from .scoring import score
from .turns import new_id


@dataclass
class _Prompt:
    """One prompt of a request.

    ids, text  the text is that of an echo
    noted      log-probabilities of its tokens, if they are asked for
    answers    empty where no token is asked for
    """

    ids: list[int]
    text: str
    noted: list[TokenLogprob] = field(default_factory=list)
    answers: list[ServedAnswer] = field(default_factory=list)

    @property
    def usage(self) -> Usage:
        return total([each.usage for each in self.answers]) if self.answers else Usage(len(self.ids), 0, 0, 0)


async def complete(engine: ServedModel, request: Request, body: CompletionRequest) -> Response:
    """Answer a request, as a stream or not. Raises ApiError and the errors of `Model.prepare`."""
    body.checked_request(engine.lenient, engine.limits.choices)
    engine.check_name(body.model)
    if body.suffix is not None and body.echo:
        raise ApiError(400, "suffix: does not go together with echo", param="suffix", code="invalid_value")
    return await while_connected(request.receive, _complete(engine, body))


async def _complete(engine: ServedModel, body: CompletionRequest) -> Response:
    answers: list[ServedAnswer] = []

    def close() -> None:
        for each in answers:
            each.cancel()

    try:
        prompts = await _begin(engine, body, answers)
        head = {"id": new_id("cmpl-"), "object": "text_completion", "created": int(time.time()), "model": engine.name}
        head["system_fingerprint"] = engine.fingerprint
        if body.stream:
            return EventStream(_stream(engine, body, prompts, head), close, engine.limits.keep_alive)
        return answer(await _whole(engine, body, prompts, head))
    except BaseException:
        close()
        raise


async def _begin(engine: ServedModel, body: CompletionRequest, answers: list[ServedAnswer]) -> list[_Prompt]:
    """Submit all prompts, or none. `answers` gets those that run, also where this is interrupted."""
    model, settings = engine.model, body.settings()
    given, most = body.prompts(engine.limits.prompts), settings["max_tokens"]
    if len(given) * body.tried > engine.limits.prompts:
        message = f"prompt: prompts and best_of ask for more than {engine.limits.prompts} answers"
        raise ApiError(400, message, param="prompt", code="invalid_value")
    engine.check_room()
    prompts, asked = [], []
    for one in given:
        text, suffix = _gap(engine, body, one)
        ids = await asyncio.to_thread(model.prompt_ids, text, raw=True, suffix=suffix, most=model.context)
        if len(ids) + most > model.context:
            problem = f"of {len(ids)} tokens and {most} more do not fit in the context of {model.context}"
            raise UsageError(None, "prompt", problem)
        known = bool(ids) and suffix is None  # then the text need not be cut again for each answer
        asked.append((ids if known else text, suffix))
        prompts.append(_Prompt(ids, text if isinstance(text, str) else model.tokenizer.decode(text)))
    if body.echo and body.logprobs is not None:
        for prompt in prompts:
            if not prompt.ids:
                raise UsageError(None, "prompt", "is empty")
            prompt.noted = await score(engine.scheduler, prompt.ids, body.logprobs)
    if most:
        seeds = body.seeds(body.tried)
        prepare = [
            functools.partial(model.prepare, text, seed=seed, **{**settings, "suffix": suffix})
            for text, suffix in asked
            for seed in seeds
        ]
        answers += await engine.ask(prepare)
        for number, prompt in enumerate(prompts):
            prompt.answers = answers[number * len(seeds) : (number + 1) * len(seeds)]
    return prompts


def _gap(engine: ServedModel, body: CompletionRequest, text: str | list[int]) -> tuple[str | list[int], str | None]:
    """Return a prompt and its suffix. Editors that know a model may write its tokens of a gap into the prompt."""
    if body.suffix is None and isinstance(text, str) and not body.echo:
        return read_gap(engine.model.tokenizer, text) or (text, None)
    return text, body.suffix


async def _texts(engine: ServedModel, one: ServedAnswer) -> AsyncIterator[tuple[str, int, int] | Progress]:
    """Yield the text of an answer with the places of its tokens. Markers of reasoning are text here."""
    tokenizer = engine.model.tokenizer
    markers = (tokenizer.think_start, tokenizer.think_end)
    async for part in one.parts():
        if isinstance(part, TextPart):
            seen = [i for i in one.output[part.start : part.stop] if i in markers]
            yield "".join(tokenizer.decode([i]) for i in seen) + part.piece.text, part.start, part.stop
        else:
            yield part


def _reason(one: ServedAnswer | None) -> str:
    return "length" if one is None or one.cut else "stop"


async def _whole(
    engine: ServedModel, body: CompletionRequest, prompts: list[_Prompt], head: dict[str, Any]
) -> dict[str, Any]:
    found = iter(await gather(*(_choice(engine, body, prompt, one) for prompt, one in _pairs(prompts))))
    choices = []
    for prompt in prompts:
        tried = [next(found) for _ in range(max(1, len(prompt.answers)))]
        best = sorted(tried, key=lambda pair: -pair[0])[: body.n or 1] if body.best_of else tried
        choices += [choice for _, choice in best]
    timings = {"timings": prompts[0].answers[0].timings} if prompts[0].answers else {}
    numbered = [{**choice, "index": index} for index, choice in enumerate(choices)]
    return {**head, "choices": numbered, "usage": _usage(prompts), **timings}


def _pairs(prompts: list[_Prompt]) -> list[tuple[_Prompt, ServedAnswer | None]]:
    """Return each prompt with each of its answers, or with none where no token is asked for."""
    none: list[ServedAnswer | None] = [None]
    return [(prompt, one) for prompt in prompts for one in prompt.answers or none]


async def _choice(
    engine: ServedModel, body: CompletionRequest, prompt: _Prompt, one: ServedAnswer | None
) -> tuple[float, dict[str, Any]]:
    """Return the mean log-probability of an answer, if it is known, and the choice."""
    text = prompt.text if body.echo else ""
    noted = [*prompt.noted]
    mean = 0.0
    if one is not None:
        async for part in _texts(engine, one):
            if not isinstance(part, Progress):
                text += part[0]
        mine = one.noted(0, len(one.output)) + ([one.end] if one.end is not None else [])
        known = [each.logprob for each in mine if each.logprob is not None]
        mean = sum(known) / max(1, len(known))
        noted += mine
    logprobs = None
    if body.logprobs is not None:
        logprobs = completion_logprobs(engine.model.tokenizer, noted, body.logprobs)
    return mean, {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": _reason(one)}


def _usage(prompts: list[_Prompt]) -> dict[str, Any]:
    usages = [prompt.usage for prompt in prompts]
    return usage_json(
        Usage(
            sum(usage.prompt for usage in usages),
            sum(usage.cached for usage in usages),
            sum(usage.output for usage in usages),
            sum(usage.reasoning for usage in usages),
        )
    )


async def _stream(
    engine: ServedModel, body: CompletionRequest, prompts: list[_Prompt], head: dict[str, Any]
) -> AsyncIterator[bytes]:
    usage: dict[str, Any] = {"usage": None} if body.include_usage else {}
    pairs = enumerate(_pairs(prompts))
    sources = [_chunks(engine, body, prompt, one, number) for number, (prompt, one) in pairs]
    async for chunk in merged(*sources):
        yield event({**head, **chunk, **usage})
    if body.include_usage:
        yield event({**head, "choices": [], "usage": _usage(prompts)})
    yield DONE


async def _chunks(
    engine: ServedModel, body: CompletionRequest, prompt: _Prompt, one: ServedAnswer | None, number: int
) -> AsyncIterator[dict[str, Any]]:
    tokenizer = engine.model.tokenizer

    def chunk(text: str, noted: list[TokenLogprob], reason: str | None = None) -> dict[str, Any]:
        logprobs = None if body.logprobs is None else completion_logprobs(tokenizer, noted, body.logprobs)
        return {"choices": [{"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}]}

    if body.echo:
        yield chunk(prompt.text, prompt.noted)
    if one is not None:
        async for part in _texts(engine, one):
            if not isinstance(part, Progress):
                yield chunk(part[0], one.noted(part[1], part[2]))
            elif body.return_progress:
                yield chunk("", []) | {"prompt_progress": one.progress(part)}
    yield chunk("", [], _reason(one)) | ({} if one is None else {"timings": one.timings})
