"""Texts as ids of tokens, and back: `/tokenize` and `/detokenize`."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from ..errors import UsageError
from ..text import check_fits
from .engine import ServedModel
from .fields import Fields, Listed
from .problems import answer
from .requests import Number


class TokenizeRequest(Fields):
    """A request to `/tokenize`: `content` as in llama.cpp, `prompt` or `messages` as in vLLM."""

    model: str | None = None
    content: str | None = None
    prompt: str | None = None
    messages: Listed[dict[str, Any]] | None = None
    tools: Listed[dict[str, Any]] | None = None
    with_pieces: bool | None = None


class DetokenizeRequest(Fields):
    """A request to `/detokenize`."""

    model: str | None = None
    tokens: Listed[Number]


def tokenize(engine: ServedModel, body: TokenizeRequest) -> Response:
    """Return the ids of a text, or of the prompt that a chat's template makes. Control tokens in it are plain text.

    Raises UsageError for more ids than the context holds, and the errors of `Model.prompt_ids`.
    """
    body.checked(engine.lenient)
    engine.check_name(body.model)
    model = engine.model
    given = [each for each in (body.content, body.prompt, body.messages) if each is not None]
    if len(given) != 1:
        raise UsageError(None, "content", "give one of content, prompt and messages")
    if isinstance(given[0], str):
        check_fits(model.tokenizer.least(given[0]), model.context, "content", least=True)
        ids = model.tokenizer.encode(given[0])
    else:
        ids = model.prompt_ids(given[0], tools=body.tools, most=model.context)
    check_fits(len(ids), model.context, "content")
    tokens: Listed[Any] = [*ids]
    if body.with_pieces:
        tokens = [{"id": i, "piece": model.tokenizer.token_bytes(i).decode("utf-8", errors="replace")} for i in ids]
    return answer({"tokens": tokens, "count": len(ids), "max_model_len": model.context})


def detokenize(engine: ServedModel, body: DetokenizeRequest) -> Response:
    """Return the text of ids, with control tokens."""
    body.checked(engine.lenient)
    engine.check_name(body.model)
    check_fits(len(body.tokens), engine.model.context, "tokens")
    text = engine.model.tokenizer.decode(body.tokens, skip_special=False)
    return answer({"content": text, "prompt": text})
