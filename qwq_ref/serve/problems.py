"""Errors as OpenAI's API has them: a status, and an object with message, type, param and code."""

from __future__ import annotations

import json
import math
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from ..errors import BusyError, QwqError, TemplateError, TokenizerError, UsageError, printable

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_FIELD = 200  # characters of a field's name in an error


class ApiError(Exception):
    """A request that gets no answer.

    status   of HTTP
    message  one line
    param    the field at fault
    code     a word for programs
    headers  of the response
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status = status
        self.message = printable(message)
        self.param = None if param is None else printable(param)[:_FIELD]
        self.code = code
        self.headers = dict(headers or {})
        super().__init__(self.message)

    @property
    def content(self) -> dict[str, Any]:
        """The object that tells the error."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return answer(self.content, self.status, self.headers)


def answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with JSON."""
    return Response(encode(content), status, dict(headers or {}), "application/json")


def encode(content: Any) -> bytes:
    """Return JSON in ASCII, on one line. A lone surrogate is escaped, too."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def unavailable(message: str, seconds: float, code: str) -> ApiError:
    """Return the error of a server that can answer later."""
    return ApiError(503, message, code=code, headers={"Retry-After": str(math.ceil(seconds))})


def of_late_error(error: Exception) -> ApiError:
    """Return the problem of an answer that had begun. A fault of this program is told on stderr, without its text."""
    problem = of_error(error)
    if problem.code == "fault" and problem is not error:
        places = [f"at {f.filename}:{f.lineno} in {f.name}" for f in traceback.extract_tb(error.__traceback__)]
        noted = [*places, *getattr(error, "__notes__", ())]  # see `decode.batch.without_frames`
        print(f"qwq: fault: {type(error).__name__} {noted[-1] if noted else ''}".rstrip(), file=sys.stderr, flush=True)
    return problem


def of_error(error: Exception) -> ApiError:
    """Return the problem that an error of the library means for a client. It names no file of this machine."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BusyError):
        headers = {"Retry-After": str(math.ceil(error.retry_after))}
        return ApiError(429, f"the server {error.problem}", code="server_busy", headers=headers)
    if isinstance(error, UsageError | TemplateError | TokenizerError):
        long = "fit in the context" in error.problem
        message = f"{error.field}: {error.problem}" if error.field else error.problem
        return ApiError(400, message, param=error.field, code="context_length_exceeded" if long else "invalid_value")
    if isinstance(error, QwqError):
        return ApiError(500, error.problem, code="model_error")
    return ApiError(500, "the server has a fault", code="fault")
