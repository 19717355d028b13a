"""/v1/responses: answers as items of reasoning, text and function calls, and the events that build them."""

from __future__ import annotations

import functools
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..engine.scheduler import Progress
from ..text.tools import Arguments, CallBegins, CallEnds
from .engine import ServedModel
from .events import EventStream, event, while_connected
from .problems import ApiError, answer, of_late_error
from .responses_request import ResponsesRequest
from .turns import Delta, Said, Thought, Turn, new_id

Event = tuple[str, dict[str, Any]]


async def respond(engine: ServedModel, request: Request, body: ResponsesRequest) -> Response:
    """Answer a request, as a stream or not. Raises ApiError and the errors of `Model.prepare`."""
    body.checked_request(engine.lenient)
    engine.check_name(body.model)
    prepare = functools.partial(engine.model.prepare, body.conversation(), **body.settings())
    return await while_connected(request.receive, _respond(engine, body, prepare))


async def _respond(engine: ServedModel, body: ResponsesRequest, prepare: Any) -> Response:
    (one,) = await engine.ask([prepare])
    try:
        tools = bool(body.tools) and body.tool_choice != "none"
        sure = tools and body.tool_choice not in (None, "auto")
        turn = Turn(one, tools, sure, body.parallel_tool_calls is False)
        built = Built(engine.name, body, turn)
        if not body.stream:
            async for _ in built.events():
                pass
            return answer(built.response)
    except BaseException:
        one.cancel()
        raise
    return EventStream(_stream(built), one.cancel, engine.limits.keep_alive)


async def _stream(built: Built) -> AsyncIterator[bytes]:
    number = 0
    try:
        async for name, content in built.events():
            yield event({"type": name, "sequence_number": number, **content}, name)
            number += 1
    except ApiError as problem:
        built.response |= {"status": "failed", "error": {"code": "server_error", "message": problem.message}}
        content = {"type": "response.failed", "sequence_number": number, "response": built.response}
        yield event(content, "response.failed")


class Built:
    """A response that grows.

    response  the object so far
    """

    def __init__(self, name: str, body: ResponsesRequest, turn: Turn) -> None:
        self._turn = turn
        self._item: dict[str, Any] | None = None  # the last one, while it grows
        self.response: dict[str, Any] = {
            "id": new_id("resp_"),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": name,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None if body.reasoning is None else body.reasoning.effort, "summary": None},
            "store": False,
            "temperature": body.temperature,
            "text": {"format": (body.text and body.text.format) or {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None,
            "metadata": (body.model_extra or {}).get("metadata") or {},
        }

    async def events(self) -> AsyncIterator[Event]:
        """Yield the events, while the response grows. Raises ApiError."""
        for name in ("created", "in_progress"):
            yield f"response.{name}", {"response": {**self.response, "output": []}}
        try:
            async for delta in self._turn.deltas():
                for each in self._take(delta):
                    yield each
        except Exception as problem:
            raise of_late_error(problem) from None
        cut = self._turn.finish_reason == "length"
        for each in self._close("incomplete" if cut else "completed"):
            yield each
        usage = self._turn.answer.usage
        self.response |= {
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": {
                "input_tokens": usage.prompt,
                "input_tokens_details": {"cached_tokens": usage.cached},
                "output_tokens": usage.output,
                "output_tokens_details": {"reasoning_tokens": usage.reasoning},
                "total_tokens": usage.prompt + usage.output,
            },
            "timings": self._turn.answer.timings,
        }
        yield f"response.{self.response['status']}", {"response": self.response}

    def _take(self, delta: Delta) -> Iterator[Event]:
        if isinstance(delta, Thought):
            yield from self._text("reasoning", delta.text)
        elif isinstance(delta, Said):
            yield from self._text("message", delta.text)
        elif isinstance(delta, CallBegins):
            yield from self._close()
            item = {"type": "function_call", "id": new_id("fc_"), "call_id": new_id("call_"), "name": delta.name}
            yield from self._open({**item, "arguments": "", "status": "in_progress"})
        elif isinstance(delta, Arguments):
            assert self._item is not None
            self._item["arguments"] += delta.text
            yield "response.function_call_arguments.delta", {**self._where(), "delta": delta.text}
        elif isinstance(delta, CallEnds):
            yield from self._close()
        else:
            assert isinstance(delta, Progress)

    def _text(self, kind: str, text: str) -> Iterator[Event]:
        """Add text to an item of a kind, which begins if it is not the last one."""
        if self._item is None or self._item["type"] != kind:
            yield from self._close()
            more: dict[str, Any] = {"summary": []} if kind == "reasoning" else {"role": "assistant"}
            id_ = new_id("rs_" if kind == "reasoning" else "msg_")
            yield from self._open({"type": kind, "id": id_, **more, "content": [], "status": "in_progress"})
            assert self._item is not None
            if kind == "reasoning":
                part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
            else:
                part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            self._item["content"] = [part]
            yield "response.content_part.added", {**self._where(), "content_index": 0, "part": {**part}}
        assert self._item is not None
        self._item["content"][0]["text"] += text
        logprobs: dict[str, Any] = {} if kind == "reasoning" else {"logprobs": []}
        yield f"response.{self._name}.delta", {**self._where(), "content_index": 0, "delta": text, **logprobs}

    @property
    def _name(self) -> str:
        return "reasoning_text" if self._item and self._item["type"] == "reasoning" else "output_text"

    def _where(self) -> dict[str, Any]:
        assert self._item is not None
        return {"item_id": self._item["id"], "output_index": len(self.response["output"]) - 1}

    def _open(self, item: dict[str, Any]) -> Iterator[Event]:
        self._item = item
        self.response["output"].append(item)
        yield "response.output_item.added", {"output_index": self._where()["output_index"], "item": {**item}}

    def _close(self, status: str = "completed") -> Iterator[Event]:
        """End the item that grows, if there is one."""
        item = self._item
        if item is None:
            return
        where = self._where()
        item["status"] = status
        if item["type"] == "function_call":
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield "response.function_call_arguments.done", {**where, **done}
        else:
            part = item["content"][0]
            logprobs: dict[str, Any] = {} if item["type"] == "reasoning" else {"logprobs": []}
            yield f"response.{self._name}.done", {**where, "content_index": 0, "text": part["text"], **logprobs}
            yield "response.content_part.done", {**where, "content_index": 0, "part": part}
        yield "response.output_item.done", {"output_index": where["output_index"], "item": item}
        self._item = None
