"""The server's answers in the processes of a cluster: each has the model and the application."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import ASGIApp

from ..cluster.elsewhere import ModelThere
from ..cluster.load import load_there
from .app import make_app
from .local import LocalModel, post


@dataclass(frozen=True)
class Serving:
    """The application of a process, and its model."""

    app: ASGIApp
    model: LocalModel


def serving(there: ModelThere, name: str, parallel: int, rows: int, lenient: bool, threads: int) -> Serving:
    """Load a model on a machine, and return what answers its requests. The arguments are those of `LocalModel`."""
    model = LocalModel(name, load_there(there, parallel, rows, threads), parallel, lenient)
    return Serving(make_app(model), model)


async def answered(state: Serving, request: tuple[str, bytes]) -> tuple[int, bytes]:
    """Answer a request, which is the path and JSON -> the status and the body."""
    return await post(state.app, *request)
