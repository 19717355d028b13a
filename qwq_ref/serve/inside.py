"""/inside: attention, the residual stream and the logit lens of a text, for the page's second tab.

The spec computes them from weights in floats, in a thread of its own, one text at a time. The scheduler goes on.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from ..errors import BusyError, CheckpointError, ConfigError, MemoryLimitError, UsageError
from ..footprint import parameters
from .engine import ServedModel
from .events import while_connected
from .fields import Fields
from .problems import ApiError, answer

if TYPE_CHECKING:
    from ..config import Config
    from ..engine.model import Model
    from ..spec.ops import Array

WORK = 2**39  # parameters times tokens of one text: seconds for a model of 0.5 billion, a minute for larger ones
LEAST = 32  # tokens: models for which `WORK` allows fewer are not looked into
_LINE = 4  # texts at a time, all but one of which wait
_TEXT = 20_000  # characters
Subject = Literal["attention", "residual", "lens"]


class InsideRequest(Fields):
    """A request to /inside.

    prompt    a question, which the chat template formats; `raw`: a plain text
    answer    what follows: reasoning, the marker </think>, an answer. The part that is too long is left out
    subjects  what to compute; None: all
    token     the token whose attention is shown; a negative number counts from the end; None: the last one
    """

    model: str | None = None
    prompt: Annotated[str, Field(min_length=1, max_length=_TEXT)]
    answer: Annotated[str, Field(max_length=_TEXT)] | None = None
    raw: bool | None = None
    subjects: Annotated[list[Subject], Field(min_length=1, max_length=3)] | None = None
    token: int | None = None


class Looks:
    """Looks inside the model of an engine, one at a time."""

    def __init__(self, engine: ServedModel) -> None:
        self._engine = engine
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def look(self, request: Request, body: InsideRequest) -> Response:
        """Return the data of docs/inside.md, and what was left out. Raises ApiError and BusyError.

        If the client goes away, the computation ends after the layer that it is in.
        """
        self._engine.check_open()
        self._engine.check_name(body.model)
        body.checked(self._engine.lenient)
        gone = threading.Event()
        return await while_connected(request.receive, self._look(body, gone))

    async def _look(self, body: InsideRequest, gone: threading.Event) -> Response:
        if self._waiting >= _LINE:
            raise BusyError(None, "server", f"is busy: it looks into {_LINE} texts already", 2)
        self._waiting += 1
        try:
            async with self._turn:
                work = asyncio.create_task(asyncio.to_thread(_look, self._engine.model, body, gone))
                try:
                    return answer(await asyncio.shield(work))
                except asyncio.CancelledError:
                    gone.set()
                    await asyncio.wait({work})  # the thread ends before another one begins
                    work.exception()
                    raise
        finally:
            self._waiting -= 1


class _GoneError(Exception):
    """The client has gone."""


def _look(model: Model, body: InsideRequest, gone: threading.Event) -> dict[str, Any]:
    from ..inside import MOST_TOKENS, SUBJECTS, look

    def going_on(_: int) -> None:
        if gone.is_set():
            raise _GoneError

    try:
        with _weights(model) as (config, weights):
            most = min(MOST_TOKENS, config.positions, WORK // parameters(config))
            if most < LEAST:
                raise ApiError(400, "the model is too large to look into while it serves", code="cannot_look")
            prompt = model.prompt_ids(body.prompt, raw=bool(body.raw) or model.template is None)
            if len(prompt) > most:
                problem = f"has {len(prompt)} tokens, and a look into this model takes at most {most}"
                raise UsageError(None, "prompt", problem)
            ids = prompt + _answer_ids(model, body.answer or "")
            found = look(
                config,
                weights,
                ids[:most],
                body.subjects or SUBJECTS,
                token=-1 if body.token is None else body.token,
                top=min(5, config.V),
                prompt=len(prompt),
                model=model.path,
                progress=going_on,
            )
    except MemoryLimitError as error:
        raise ApiError(400, f"the look {error.problem}", code="cannot_look") from error
    return {**found.to_dict(model.tokenizer), "left_out": max(0, len(ids) - most), "most_tokens": most}


def _answer_ids(model: Model, text: str) -> list[int]:
    """Return the ids of an answer. The marker that ends the reasoning becomes its token; all else stays text."""
    tokenizer = model.tokenizer
    end = tokenizer.think_end
    if end is None or "</think>" not in text:
        return tokenizer.encode(text)
    thought, said = text.split("</think>", 1)
    return [*tokenizer.encode(thought), end, *tokenizer.encode(said)]


@contextmanager
def _weights(model: Model) -> Iterator[tuple[Config, Mapping[str, Array]]]:
    """Yield the config and the weights in floats, from memory or from the disk. Raises ApiError for packed ones."""
    backend = model.backend
    if backend.tensors is not None:
        yield backend.config, backend.tensors
        return
    from ..formats import open_floats

    try:
        source = open_floats(model.path)
    except (CheckpointError, ConfigError) as error:
        message = "the weights of this model are packed: the model that it was made from can be looked into"
        raise ApiError(400, message, code="cannot_look") from error
    with source:
        yield source.config, source
