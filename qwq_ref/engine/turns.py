"""The next turn of a conversation: the ids with which its prompt will begin, whatever the user says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import TemplateError
from .session import common_prefix

if TYPE_CHECKING:
    from .model import Model

_TEXTS = ("Hello", "0")  # two messages of a user, without a character in common


def certain_prefix(
    model: Model,
    messages: list[dict[str, Any]],
    system: str | None = None,
    tools: list[dict[str, Any]] | None = None,
) -> list[int]:
    """Return the ids that the prompt of the user's next message begins with: to compute them before it is there.

    The template renders earlier turns in another way than the last one: it drops their reasoning. So the ids of the
    conversation so far are no prefix, and two renderings with different messages tell how far they agree.

    messages  the conversation so far; empty for one that begins with a system prompt

    Empty where the template refuses the conversation.
    """
    try:
        first, second = (
            model.prompt_ids([*messages, {"role": "user", "content": text}], system, tools=tools) for text in _TEXTS
        )
    except TemplateError:
        return []
    return first[: common_prefix(first, second)]
