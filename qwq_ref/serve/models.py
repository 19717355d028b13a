"""/v1/models and /health: what runs here, and whether it can answer."""

from __future__ import annotations

import dataclasses
from typing import Any

from starlette.responses import Response

from .. import __version__
from .engine import ServedModel
from .problems import ApiError, answer


def health(engine: ServedModel) -> Response:
    """Say whether prompts can come. Raises ApiError while the model loads, and while the server shuts down."""
    engine.check_open()
    return answer({"status": "ok"})


def models(engine: ServedModel) -> Response:
    """List the one model, also while it loads."""
    return answer({"object": "list", "data": [_model(engine)]})


def one_model(engine: ServedModel, name: str) -> Response:
    """Describe the model. Raises ApiError for another name."""
    if name != engine.name:
        raise ApiError(404, f"there is no model {name[:100]!r}", param="model", code="model_not_found")
    return answer(_model(engine))


def _model(engine: ServedModel) -> dict[str, Any]:
    found: dict[str, Any] = {"id": engine.name, "object": "model", "created": engine.began, "owned_by": "qwq_ref"}
    found["qwq_ref"] = {"version": __version__, "loaded": engine.loaded}
    if engine.loaded:
        model = engine.model
        found["max_model_len"] = model.context
        found["qwq_ref"] |= {
            "backend": model.backend.description,
            "sampling": dataclasses.asdict(model.sampling()),
            "chat": model.template is not None,
            "reasoning": model.tokenizer.think_end is not None,
        }
    return found
