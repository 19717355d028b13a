"""The application: which path does what."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from .. import __version__
from ..errors import QwqError
from .bodies import Bodies
from .chat import chat
from .completions import complete
from .description import EVENTS, METRICS, PROBLEMS
from .engine import ServedModel
from .guard import LOOPBACK, Guard
from .inside import InsideRequest, Looks
from .journal import Journal
from .metrics import metrics
from .models import health, models, one_model
from .page import add_page
from .problems import ApiError, of_error
from .requests import ChatRequest, CompletionRequest
from .responses import respond
from .responses_request import ResponsesRequest
from .tokens import DetokenizeRequest, TokenizeRequest, detokenize, tokenize

_STATUS = {404: "there is nothing at this path", 405: "this path does not know the method"}
PAGE = Path(__file__).parent / "page"


def make_app(
    engine: ServedModel, *, key: str | None = None, hosts: Iterable[str] = (), verbose: bool = False, page: Path = PAGE
) -> Journal:
    """Return the application with its checks.

    key    each request must show it; None: none is needed
    hosts  names beside those of loopback that Host and Origin may have
    page   a folder with index.html, which is the page at `/`; it may be missing
    """
    api = FastAPI(
        title="qwq serve",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=PROBLEMS,
    )
    _add_routes(api, engine)
    _add_tools(api, engine)
    _add_problems(api)
    pages = add_page(api, page)
    paths = frozenset(route.path for route in api.routes if hasattr(route, "path"))
    posts = frozenset(
        route.path for route in api.routes if isinstance(route, Route) and "POST" in (route.methods or ())
    )
    bodies = Bodies(api, posts, engine.limits)
    guard = Guard(bodies, [*LOOPBACK, *hosts], key, engine.limits.head, pages)
    journal = Journal(guard, paths | {"/metrics"}, verbose)

    @api.get("/metrics", summary="Counts and times, for Prometheus", response_class=Response, responses=METRICS)
    async def _metrics() -> Response:
        return metrics(engine, journal)

    return journal


def _add_routes(api: FastAPI, engine: ServedModel) -> None:
    @api.get("/health", summary="Whether the server can answer: 200, or 503 while the model loads")
    async def _health() -> Response:
        return health(engine)

    @api.get("/v1/models", summary="The model that answers")
    async def _models() -> Response:
        return models(engine)

    @api.get("/v1/models/{name:path}", summary="One model")
    async def _model(name: str) -> Response:
        return one_model(engine, name)

    @api.post("/v1/chat/completions", summary="Answer a conversation", responses=EVENTS)
    async def _chat(request: Request, body: ChatRequest) -> Response:
        return await chat(engine, request, body)

    @api.post("/v1/completions", summary="Go on with a text", responses=EVENTS)
    async def _complete(request: Request, body: CompletionRequest) -> Response:
        return await complete(engine, request, body)

    @api.post("/v1/responses", summary="Answer a conversation, as items", responses=EVENTS)
    async def _respond(request: Request, body: ResponsesRequest) -> Response:
        return await respond(engine, request, body)


def _add_tools(api: FastAPI, engine: ServedModel) -> None:
    @api.post("/tokenize", summary="The ids of a text")
    async def _tokenize(body: TokenizeRequest) -> Response:
        return await asyncio.to_thread(tokenize, engine, body)

    @api.post("/detokenize", summary="The text of ids")
    async def _detokenize(body: DetokenizeRequest) -> Response:
        return await asyncio.to_thread(detokenize, engine, body)

    looks = Looks(engine)

    @api.post("/inside", summary="Attention, the residual stream and the logit lens of a text")
    async def _inside(request: Request, body: InsideRequest) -> Response:
        return await looks.look(request, body)


def _add_problems(api: FastAPI) -> None:
    @api.exception_handler(ApiError)
    async def _problem(request: Request, problem: ApiError) -> Response:
        return problem.response()

    @api.exception_handler(QwqError)
    async def _error(request: Request, error: QwqError) -> Response:
        return of_error(error).response()

    @api.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        return _of_validation(error.errors()).response()

    @api.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        message = _STATUS.get(error.status_code, "the request cannot be answered")
        return ApiError(error.status_code, message, headers=error.headers).response()


def _of_validation(errors: Any) -> ApiError:
    """Return the problem of the first field that is wrong, without its value."""
    first = errors[0]
    place = [part for part in first["loc"] if part != "body"]
    names = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in place]
    field = "".join(names).lstrip(".") or "body"
    return ApiError(400, f"{field[:200]}: {first['msg']}", param=field, code="invalid_value")
