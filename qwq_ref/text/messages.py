"""Conversations: check what a caller gives, and make plain data of it."""

from __future__ import annotations

from typing import Any

from ..errors import TemplateError

_ROLES = ("system", "user", "assistant", "tool")
_DEPTH = 64
_INT_BITS = 4096  # Python prints integers of up to 4,300 digits

Message = dict[str, Any]


def checked_conversation(messages: Any, tools: Any, extra: dict[str, Any]) -> tuple[list[Message], Any, dict[str, Any]]:
    """Return messages, tools and variables as plain data: JSON's types, and a content that is one string.

    Raises TemplateError, which names the part at fault.
    """
    if not isinstance(messages, list) or not messages:
        raise TemplateError(None, "messages", "must be a list of at least one message")
    chat = [_message(message, f"messages[{number}]") for number, message in enumerate(messages)]
    if tools is not None and not isinstance(tools, list):
        raise TemplateError(None, "tools", "must be a list of objects")
    for number, tool in enumerate(tools or []):
        if not isinstance(tool, dict):
            raise TemplateError(None, f"tools[{number}]", "must be an object")
    return chat, _plain(tools, "tools"), {name: _plain(value, name) for name, value in extra.items()}


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise TemplateError(None, where, "must be an object with role and content")
    # null means absent, as in Hugging Face; templates ask `is defined`.
    plain: Message = {key: value for key, value in _plain(message, where).items() if value is not None}
    role, content = plain.get("role"), plain.get("content")
    if role not in _ROLES:
        raise TemplateError(None, f"{where}.role", f"must be one of {', '.join(_ROLES)}")
    calls = plain.get("tool_calls")
    if calls is not None and (not isinstance(calls, list) or any(not isinstance(call, dict) for call in calls)):
        raise TemplateError(None, f"{where}.tool_calls", "must be a list of objects")
    if content is None and role == "assistant" and calls:
        content = ""  # clients send null; Qwen's templates would call its methods
    if isinstance(content, list):
        for number, part in enumerate(content):
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise TemplateError(None, f"{where}.content[{number}]", "is not text; this model reads nothing else")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise TemplateError(None, f"{where}.content", "must be a string or a list of text parts")
    return {**plain, "content": content}


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
