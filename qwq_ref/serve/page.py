"""The page at `/`: files of one folder, under a policy that lets them use nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"Content-Security-Policy": POLICY, "X-Frame-Options": "DENY", "Cache-Control": "no-cache"}


def add_page(api: FastAPI, folder: Path) -> bool:
    """Serve a folder's index.html at `/`, and its files under /page/ -> whether there is one."""
    index = folder / "index.html"
    if not index.is_file():
        return False

    @api.get("/", include_in_schema=False)
    async def _page() -> Response:
        return FileResponse(index, headers=_HEADERS)

    api.mount("/page", _Files(directory=folder))
    return True


class _Files(StaticFiles):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        await super().__call__(scope, receive, headed)
