"""Logarithms of probabilities, as OpenAI's API has them."""

from __future__ import annotations

from typing import Any

from ..text import Tokenizer
from .answers import Answer


def chat_logprobs(tokenizer: Tokenizer, answer: Answer, spans: list[tuple[int, int, str]]) -> dict[str, Any]:
    """Return the object `logprobs` of a choice.

    spans  places in the output, and the text that their tokens gave
    """
    raise NotImplementedError
