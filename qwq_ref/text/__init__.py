"""Text -> token ids and back: tokenizer and chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .thinking import ThinkingSplitter, prompt_is_thinking, split_thinking
from .tokenizer import StreamDecoder, Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from .template import ChatTemplate, load_chat_template

__all__ = [
    "ChatTemplate",
    "StreamDecoder",
    "ThinkingSplitter",
    "Tokenizer",
    "load_chat_template",
    "load_tokenizer",
    "prompt_is_thinking",
    "split_thinking",
]


def __getattr__(name: str) -> Any:
    """Importing `chat` imports Jinja: only for those who ask for a template."""
    if name in ("ChatTemplate", "load_chat_template"):
        from . import template as chat

        return getattr(chat, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
