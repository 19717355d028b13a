"""/v1/chat/completions."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..engine.scheduler import Progress
from ..text.tools import Arguments, CallBegins, CallEnds
from .answers import total, usage_json
from .engine import ServedModel
from .events import DONE, EventStream, event, gather, merged, while_connected
from .logprobs import chat_logprobs
from .problems import answer
from .requests import ChatRequest
from .turns import Said, Thought, Turn, new_id


async def chat(engine: ServedModel, request: Request, body: ChatRequest) -> Response:
    """Answer a request, as a stream or not. Raises ApiError and the errors of `Model.prepare`."""
    body.checked_request(engine.lenient, engine.limits.choices)
    engine.check_name(body.model)
    settings, messages = body.settings(), body.conversation()
    prepare = [
        functools.partial(engine.model.prepare, messages, seed=seed, **settings) for seed in body.seeds(body.n or 1)
    ]
    return await while_connected(request.receive, _answer(engine, body, prepare))


async def _answer(engine: ServedModel, body: ChatRequest, prepare: list[Any]) -> Response:
    answers = await engine.ask(prepare)
    try:
        tools = bool(body.tools) and body.tool_choice != "none"
        sure = tools and body.tool_choice not in (None, "auto")
        turns = [Turn(each, tools, sure, body.parallel_tool_calls is False) for each in answers]
        head = {"id": new_id("chatcmpl-"), "created": int(time.time()), "model": engine.name}
        head["system_fingerprint"] = engine.fingerprint
        if not body.stream:
            return answer(await _whole(engine, body, turns, head))
    except BaseException:
        for each in answers:
            each.cancel()
        raise

    def close() -> None:
        for each in answers:
            each.cancel()

    return EventStream(_stream(engine, body, turns, head), close, engine.limits.keep_alive)


async def _whole(engine: ServedModel, body: ChatRequest, turns: list[Turn], head: dict[str, Any]) -> dict[str, Any]:
    choices = await gather(*(_choice(engine, body, turn, number) for number, turn in enumerate(turns)))
    _prepare_next(engine, body, turns)
    return {
        **head,
        "object": "chat.completion",
        "choices": choices,
        "usage": usage_json(total([turn.answer.usage for turn in turns])),
        "timings": turns[0].answer.timings,
    }


def _prepare_next(engine: ServedModel, body: ChatRequest, turns: list[Turn]) -> None:
    """Let the next turn begin warm: the template leaves the reasoning out, so the answer must be computed again."""
    texts = turns[0].answer.texts
    if len(turns) == 1 and turns[0].finish_reason == "stop" and texts["thinking"] and texts["answer"]:
        messages = [*body.conversation(), {"role": "assistant", "content": texts["answer"]}]
        asyncio.get_running_loop().run_in_executor(None, engine.warm, messages, body.tools)


async def _choice(engine: ServedModel, body: ChatRequest, turn: Turn, number: int) -> dict[str, Any]:
    thought = said = ""
    calls: list[dict[str, Any]] = []
    spans: list[tuple[int, int, str]] = []
    async for delta in turn.deltas():
        if isinstance(delta, Thought):
            thought += delta.text
        elif isinstance(delta, Said):
            said += delta.text
            spans.append((delta.start, delta.stop, delta.text))
        elif isinstance(delta, CallBegins):
            calls.append(_call(delta))
        elif isinstance(delta, Arguments):
            calls[delta.index]["function"]["arguments"] += delta.text
    message: dict[str, Any] = {"role": "assistant", "content": said if said or not calls else None, "refusal": None}
    if thought:
        message |= {"reasoning_content": thought, "reasoning": thought}
    if calls:
        message["tool_calls"] = calls
    logprobs = chat_logprobs(engine.model.tokenizer, turn.answer, spans) if body.logprobs else None
    return {"index": number, "message": message, "logprobs": logprobs, **_end(turn)}


def _end(turn: Turn) -> dict[str, Any]:
    """Return why a choice ended, in OpenAI's word and, where it is not whole, in ours."""
    ending = turn.answer.ending
    return {"finish_reason": turn.finish_reason} | ({} if ending is None else {"ending": ending})


def _call(begins: CallBegins) -> dict[str, Any]:
    return {"id": new_id("call_"), "type": "function", "function": {"name": begins.name, "arguments": ""}}


async def _stream(
    engine: ServedModel, body: ChatRequest, turns: list[Turn], head: dict[str, Any]
) -> AsyncIterator[bytes]:
    head |= {"object": "chat.completion.chunk"}
    usage: dict[str, Any] = {"usage": None} if body.include_usage else {}
    async for chunk in merged(*(_chunks(engine, body, turn, number) for number, turn in enumerate(turns))):
        yield event({**head, **chunk, **usage})
    if body.include_usage:
        found = usage_json(total([turn.answer.usage for turn in turns]))
        yield event({**head, "choices": [], "usage": found, "timings": turns[0].answer.timings})
    _prepare_next(engine, body, turns)
    yield DONE


async def _chunks(engine: ServedModel, body: ChatRequest, turn: Turn, number: int) -> AsyncIterator[dict[str, Any]]:
    def chunk(delta: dict[str, Any], logprobs: Any = None, **end: Any) -> dict[str, Any]:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": None, **end}
        return {"choices": [choice]}

    yield chunk({"role": "assistant", "content": ""})
    async for delta in turn.deltas():
        if isinstance(delta, Thought):
            yield chunk({"reasoning_content": delta.text, "reasoning": delta.text})
        elif isinstance(delta, Said):
            spans = [(delta.start, delta.stop, delta.text)]
            logprobs = chat_logprobs(engine.model.tokenizer, turn.answer, spans) if body.logprobs else None
            yield chunk({"content": delta.text}, logprobs)
        elif isinstance(delta, CallBegins):
            yield chunk({"tool_calls": [{"index": delta.index, **_call(delta)}]})
        elif isinstance(delta, Arguments):
            yield chunk({"tool_calls": [{"index": delta.index, "function": {"arguments": delta.text}}]})
        elif isinstance(delta, Progress) and body.return_progress:
            yield chunk({}) | {"prompt_progress": turn.answer.progress(delta)}
        elif isinstance(delta, CallEnds):
            continue
    yield chunk({}, **_end(turn)) | {"timings": turn.answer.timings}
