"""The requests of /v1/responses, and the conversation and settings that they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from .fields import NEUTRAL, Fields, Listed, Neutral, one_of
from .problems import ApiError
from .requests import Count, Effort, Share

_INCLUDED = {"reasoning.encrypted_content"}
_NEUTRAL: Mapping[str, Neutral] = {
    **NEUTRAL,
    "store": lambda value: isinstance(value, bool),  # nothing is kept: a client must send the whole conversation
    "truncation": one_of("disabled"),
    "background": one_of(False),
    "max_tool_calls": lambda value: False,
    "include": lambda value: isinstance(value, list) and {*map(str, value)} <= _INCLUDED,
}
_TEXTS = ("input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text")
_OUTSIDE = ("id", "status")  # fields of items that clients send back as they got them


class Reasoning(Fields):
    """The amount of reasoning."""

    effort: Effort | None = None
    summary: str | None = None
    generate_summary: str | None = None


class TextOptions(Fields):
    """The form of the text."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponsesRequest(Fields):
    """A request to /v1/responses. The server keeps nothing: the input is the whole conversation."""

    model: str | None = None
    input: str | Listed[dict[str, Any]]
    instructions: str | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Share | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    tools: Listed[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None

    def checked_request(self, lenient: bool) -> None:
        """Raise ApiError for fields that are not known, or that this server cannot do."""
        self.checked(lenient, _NEUTRAL)
        if self.previous_response_id is not None:
            message = "previous_response_id: this server keeps nothing; send the whole conversation as input"
            raise ApiError(400, message, param="previous_response_id", code="unsupported_value")
        for part in (self.reasoning, self.text):
            if part is not None:
                part.checked(lenient)
        for number, tool in enumerate(self.tools or []):
            if tool.get("type") != "function":
                message = f"tools[{number}].type: must be function: this server runs no tools of its own"
                raise ApiError(400, message, param=f"tools[{number}].type", code="unsupported_value")

    def settings(self) -> dict[str, Any]:
        """Return the settings of `Model.prepare`."""
        form = None if self.text is None or self.text.format is None else _format(self.text.format)
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "max_tokens": self.max_output_tokens,
            "reasoning_effort": None if self.reasoning is None else self.reasoning.effort,
            "response_format": form,
            "tools": [_nested(tool) for tool in self.tools or []] or None,
            "tool_choice": _nested(self.tool_choice) if isinstance(self.tool_choice, dict) else self.tool_choice,
            "parallel_tool_calls": self.parallel_tool_calls,
        }
        return {name: value for name, value in given.items() if value is not None}

    def conversation(self) -> list[dict[str, Any]]:
        """Return the input as messages of a chat. Raises ApiError, which names the item."""
        messages: list[dict[str, Any]] = []
        if self.instructions is not None:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        for number, item in enumerate(self.input):
            _add(messages, item, f"input[{number}]")
        return messages


def _nested(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a function, or a choice of one, as chats have it."""
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _format(form: dict[str, Any]) -> dict[str, Any]:
    if form.get("type") != "json_schema":
        return form
    return {"type": "json_schema", "json_schema": {name: value for name, value in form.items() if name != "type"}}


def _add(messages: list[dict[str, Any]], item: dict[str, Any], where: str) -> None:
    """Add an item of the input to the messages. Items that one turn of the assistant made become one message."""
    kind = item.get("type", "message")
    if kind == "message":
        role = "system" if item.get("role") == "developer" else item.get("role")
        text = _text(item.get("content"), f"{where}.content")
        if role == "assistant":
            _assistant(messages)["content"] = text
        else:
            messages.append({"role": role, "content": text})
    elif kind == "reasoning":
        parts = item.get("content") or item.get("summary") or []
        if text := _text(parts, f"{where}.content"):
            messages.append({"role": "assistant", "content": None, "reasoning_content": text})
    elif kind == "function_call":
        turn = _assistant(messages)
        function = {name: item.get(name) for name in ("name", "arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        turn["tool_calls"] = [*turn.get("tool_calls", []), call]
    elif kind == "function_call_output":
        text = _text(item.get("output"), f"{where}.output")
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})
    else:
        message = f"{where}.type: must be message, reasoning, function_call or function_call_output"
        raise ApiError(400, message, param=f"{where}.type", code="invalid_value")


def _assistant(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the message of the assistant at the end, or a new one: its text must not be there yet."""
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant":
        messages.append({"role": "assistant", "content": None})
    return messages[-1]


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(400, f"{where}: must be a text, or a list of them", param=where, code="invalid_value")
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, dict) else None
        if kind not in _TEXTS or not isinstance(text, str):
            message = f"{where}[{number}]: is not text; this model reads nothing else"
            raise ApiError(400, message, param=f"{where}[{number}]", code="invalid_value")
        texts.append(text)
    return "".join(texts)
