"""Logarithms of probabilities, as OpenAI's API has them for chats and for completions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..engine.logprobs import TokenLogprob
from ..text import Tokenizer
from .answers import ServedAnswer

_LEAST = -9999.0  # OpenAI's number for a token that cannot come; JSON has no infinity


def chat_logprobs(tokenizer: Tokenizer, answer: ServedAnswer, spans: Iterable[tuple[int, int, str]]) -> dict[str, Any]:
    """Return the object `logprobs` of a choice: the tokens of the answer's text. Reasoning has none.

    spans  places in the output, and the text that their tokens gave
    """
    noted = [each for start, stop, text in spans for each in _of_text(tokenizer, answer.noted(start, stop), text)]
    return {"content": [_entry(tokenizer, each) for each in noted], "refusal": None}


def _of_text(tokenizer: Tokenizer, noted: list[TokenLogprob], text: str) -> list[TokenLogprob]:
    """Leave out first tokens that are not in the text: markers of reasoning, and the line ends behind them."""
    size = len(text.encode("utf-8", errors="replace"))
    sizes = [len(tokenizer.token_bytes(each.id)) for each in noted]
    first = 0
    while first < len(noted) - 1 and sum(sizes[first + 1 :]) >= size:
        first += 1
    return [each for each in noted[first:] if each.logprob is not None]


def _entry(tokenizer: Tokenizer, noted: TokenLogprob) -> dict[str, Any]:
    top = [_token(tokenizer, identity, value) for identity, value in noted.top]
    return {**_token(tokenizer, noted.id, noted.logprob or 0.0), "top_logprobs": top}


def _token(tokenizer: Tokenizer, identity: int, value: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(identity)
    text = data.decode("utf-8", errors="replace")
    return {"token": text, "logprob": max(value, _LEAST), "bytes": [*data]}


def completion_logprobs(tokenizer: Tokenizer, noted: Sequence[TokenLogprob], most: int) -> dict[str, Any]:
    """Return the object `logprobs` of a completion: lists with one item for each token.

    The first token of a text follows nothing, so it has no probability; nor has a token that was not chosen.
    """
    tokens = [_text(tokenizer, each.id) for each in noted]
    offsets = [0]
    for text in tokens:
        offsets.append(offsets[-1] + len(text))
    return {
        "tokens": tokens,
        "token_logprobs": [None if each.logprob is None else max(each.logprob, _LEAST) for each in noted],
        "top_logprobs": [_top(tokenizer, each) for each in noted] if most else None,
        "text_offset": offsets[:-1],
    }


def _top(tokenizer: Tokenizer, noted: TokenLogprob) -> dict[str, float] | None:
    """Return the likeliest tokens. Of several that are the same text, such as parts of characters, the likeliest."""
    if noted.logprob is None:
        return None
    return {_text(tokenizer, identity): value for identity, value in reversed(noted.top)}


def _text(tokenizer: Tokenizer, identity: int) -> str:
    return tokenizer.token_bytes(identity).decode("utf-8", errors="replace")
