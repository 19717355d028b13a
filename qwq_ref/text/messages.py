"""Conversations: check what a caller gives, and make plain data of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from ..errors import TemplateError

_ROLES = ("system", "user", "assistant", "tool")
_DEPTH = 64
_INT_BITS = 4096  # Python prints integers of up to 4,300 digits
_REASONING = ("reasoning_content", "thinking", "reasoning")  # one field, under the names that clients send

Message = dict[str, Any]
Spelled = list[tuple[int, int, str]]


@dataclass
class Conversation:
    """A conversation as plain data: JSON's types.

    messages  the content of each is a string, or None beside `tool_calls` or reasoning
    tools     JSON schemas, or None
    extra     further variables of the template
    spelled   numbers of a message and of its tool call, and the JSON text as which its arguments were given
    """

    messages: list[Message]
    tools: Any
    extra: dict[str, Any]
    spelled: Spelled


def checked_conversation(messages: Any, tools: Any, extra: dict[str, Any]) -> Conversation:
    """Check and copy what a caller gives. Raises TemplateError, which names the part at fault."""
    if not isinstance(messages, list) or not messages:
        raise TemplateError(None, "messages", "must be a list of at least one message")
    spelled: Spelled = []
    chat = [_message(message, number, spelled) for number, message in enumerate(messages)]
    if tools is not None and not isinstance(tools, list):
        raise TemplateError(None, "tools", "must be a list of objects")
    for number, tool in enumerate(tools or []):
        if not isinstance(tool, dict):
            raise TemplateError(None, f"tools[{number}]", "must be an object")
    more = {name: _plain(value, name) for name, value in extra.items()}
    return Conversation(chat, _plain(tools, "tools"), more, spelled)


def _message(message: Any, number: int, spelled: Spelled) -> Message:
    where = f"messages[{number}]"
    if not isinstance(message, dict):
        raise TemplateError(None, where, "must be an object with role and content")
    # null means absent, as in Hugging Face; templates ask `is defined`.
    copy: Message = _plain(message, where)
    plain = {key: value for key, value in copy.items() if value is not None or key == "content"}
    role, content = plain.get("role"), plain.get("content")
    if role not in _ROLES:
        raise TemplateError(None, f"{where}.role", f"must be one of {', '.join(_ROLES)}")
    calls = plain.get("tool_calls")
    if calls is not None and (not isinstance(calls, list) or any(not isinstance(call, dict) for call in calls)):
        raise TemplateError(None, f"{where}.tool_calls", "must be a list of objects")
    for place, call in enumerate(calls or ()):
        _read_arguments(call, f"{where}.tool_calls[{place}]", (number, place), spelled)
    if isinstance(content, list):
        for part_number, part in enumerate(content):
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                problem = "is not text; this model reads nothing else"
                raise TemplateError(None, f"{where}.content[{part_number}]", problem)
        content = "".join(part["text"] for part in content)
    reasoning = next((plain[name] for name in _REASONING if name in plain), None)
    may_be_null = role == "assistant" and (calls or reasoning is not None)  # called, or ended inside its reasoning
    if not isinstance(content, str) and not (content is None and may_be_null):
        raise TemplateError(None, f"{where}.content", "must be a string or a list of text parts")
    if reasoning is not None:
        plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
    return {**plain, "content": content}


def _read_arguments(call: Message, where: str, place: tuple[int, int], spelled: Spelled) -> None:
    """Replace arguments that are JSON text, as OpenAI's clients send them, by the object that the text spells."""
    function, where = (
        (call["function"], f"{where}.function") if isinstance(call.get("function"), dict) else (call, where)
    )
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return
    value: Any = arguments if arguments.strip() else "{}"  # a call without arguments
    try:
        while isinstance(value, str):  # some clients encode twice
            value = json.loads(value, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise TemplateError(None, f"{where}.arguments", "is not JSON") from None
    function["arguments"] = _plain(value, f"{where}.arguments")
    spelled.append((*place, arguments))


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """Copy a value deeply, with JSON's own types."""
    if depth > _DEPTH:
        raise TemplateError(None, where[:100], "is nested too deeply")
    if isinstance(value, int) and value.bit_length() > _INT_BITS:
        raise TemplateError(None, where, "is an enormous number")
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # of a subclass, only the text
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{number}]", depth + 1) for number, item in enumerate(value)]
    if isinstance(value, dict):
        if any(not isinstance(key, str) for key in value):
            raise TemplateError(None, where, "has a key that is not a string")
        return {str.__str__(key): _plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    raise TemplateError(None, where, f"is a {type(value).__name__}, which JSON does not have")
