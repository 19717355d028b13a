"""The outermost layer: a line for each request with -v, counts for /metrics, and an answer for every fault.

No line holds a key, a prompt or an answer.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections import Counter, defaultdict
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import printable
from .events import GoneError
from .problems import of_error

_SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Journal:
    """Counts requests, and reports those that end in a fault of this program.

    verbose   print a line for each request on stderr
    requests  (path or "other", status) -> number; the status 0: the client went first
    seconds   path -> sum of the times
    """

    def __init__(self, app: ASGIApp, paths: frozenset[str], verbose: bool = False) -> None:
        self._app, self._paths, self._verbose = app, paths, verbose
        self.requests: Counter[tuple[str, int]] = Counter()
        self.seconds: dict[str, float] = defaultdict(float)
        self.open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, begun = 0, time.monotonic()

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                names = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(pair for pair in _SECURITY if pair[0] not in names)]
            await send(message)

        self.open += 1
        try:
            await self._app(scope, receive, told)
        except GoneError:
            pass
        except Exception as problem:
            self._report(scope, problem)
            if status == 0:
                await of_error(problem).response()(scope, receive, told)
            else:
                raise
        finally:
            self.open -= 1
            path = scope["path"] if scope["path"] in self._paths else "other"
            seconds = time.monotonic() - begun
            self.requests[path, status] += 1
            self.seconds[path] += seconds
            if self._verbose:
                client = (scope.get("client") or ("?",))[0]
                line = f'{client} "{scope["method"]} {scope["path"][:200]}" {status or "closed"} {seconds:.3f} s'
                _print(printable(line))

    def _report(self, scope: Scope, problem: Exception) -> None:
        """Print the kind and the place of a fault: its text may hold what a client wrote."""
        frames = traceback.extract_tb(problem.__traceback__)
        places = [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames]
        place = places[-1] if places else "?"
        _print(
            f"qwq: fault: {type(problem).__name__} at {place}, in {scope['method']} {printable(scope['path'][:200])}"
        )
        if self._verbose:
            for line in places:
                _print(f"  {line}")


def _print(line: str) -> Any:
    print(line, file=sys.stderr, flush=True)
