"""The responses in /openapi.json. FastAPI describes the requests."""

from __future__ import annotations

from typing import Any

_TEXT = {"anyOf": [{"type": "string"}, {"type": "null"}]}
_FIELDS = {"message": {"type": "string"}, "type": {"type": "string"}, "param": _TEXT, "code": _TEXT}
_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "object", "properties": _FIELDS, "required": [*_FIELDS]}},
    "required": ["error"],
}
_PROBLEM = {"application/json": {"schema": _ERROR}}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request gets no answer: the error names the field", "content": _PROBLEM},
    "5XX": {"description": "The server cannot answer now, or has a fault", "content": _PROBLEM},
}


def gives(kind: str, *more: str) -> dict[int | str, dict[str, Any]]:
    """Return the description of answers of these media types."""
    return {200: {"description": "The answer", "content": {name: {} for name in (kind, *more)}}}


EVENTS = gives("application/json", "text/event-stream")
METRICS = gives("text/plain")
