"""`qwq batch`: answer a file of requests in OpenAI's batch format, with the answers of `qwq serve`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from ..errors import UsageError
from .answer_options import add_context_argument, add_template_argument
from .batch_files import BatchRequest, Output, count_requests, read_requests
from .cluster import add_ray_argument, check_ray, wishes_of, workers_of
from .ending import blocking, kept, run_loop
from .many import PARALLEL
from .options import (
    add_download_arguments,
    add_engine_arguments,
    add_memory_arguments,
    add_model_argument,
    add_rope_arguments,
    check_rope_options,
    engine_choices,
    set_numpy_threads,
)
from .progress import Bar, shown
from .sampling import tell_sampling
from .screen import tell
from .served import ROWS, add_served_arguments, require_served, served_name
from .streams import require_output
from .text_input import HYPHEN

Ask = Callable[[str, bytes], Awaitable[tuple[int, bytes]]]  # path, JSON -> the status and the body of a response


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input", metavar="FILE", help="requests as JSON, one a line: custom_id, method, url and body; -: standard input"
    )
    add_model_argument(parser)
    parser.add_argument(
        "-o",
        "--out",
        metavar="FILE",
        help="write the answers to FILE, in the order of the requests. The same command goes on behind the answers "
        "that are there; default: standard output",
    )
    add_served_arguments(parser)
    add_context_argument(parser)
    add_template_argument(parser)
    add_download_arguments(parser)
    add_engine_arguments(parser)
    add_rope_arguments(parser)
    add_memory_arguments(parser, "requests")
    add_ray_argument(parser, "share out the requests over machines")


def run(options: argparse.Namespace) -> int:
    require_served("batch", "fastapi")
    set_numpy_threads(options)
    choices = engine_choices(options)
    check_rope_options(options)
    check_ray(options)
    if options.out is None:
        require_output()
    elif options.input != HYPHEN and os.path.exists(options.out) and os.path.samefile(options.input, options.out):
        raise UsageError(options.out, "out", "is the input, too")
    count = count_requests(options.input)

    from ..text import start_templates

    start_templates()
    options.parallel = options.parallel or PARALLEL
    answering = _here(options, choices) if options.ray is None else _over_machines(options)
    with Output(options.out) as output, answering as (ask, machines):
        work = _Work(ask, output, count)
        try:
            with kept(work.words), shown(work.bar):
                run_loop(work.answer(options.input, 2 * options.parallel * machines))
        finally:
            output.finish(whole=work.whole)
    tell(work.summary())
    return 0


@contextlib.contextmanager
def _here(options: argparse.Namespace, choices: dict[str, Any]) -> Iterator[tuple[Ask, int]]:
    """Load the model for the time of a block -> a function that answers requests, and 1."""
    from ..serve.app import make_app
    from ..serve.local import LocalModel, post
    from .loading import load_model

    model = load_model(options, choices, options.ctx_size, options.chat_template_file, rows=ROWS)
    tell_sampling(options, model)
    served = LocalModel(served_name(options), model, options.parallel, options.lenient)
    app = make_app(served, verbose=options.verbose)
    try:
        yield lambda path, body: post(app, path, body), 1
    finally:
        served.close()


@contextlib.contextmanager
def _over_machines(options: argparse.Namespace) -> Iterator[tuple[Ask, int]]:
    """Load the model on each machine for the time of a block -> a function that answers requests, and their number."""
    from ..cluster.load import whole_elsewhere
    from ..serve.elsewhere import answered, serving

    wishes = wishes_of(options, options.ctx_size, options.chat_template_file)
    model, there = whole_elsewhere(wishes, options.parallel, ROWS)
    tell_sampling(options, model)
    how = (there, served_name(options), options.parallel, ROWS, options.lenient)
    with workers_of(options, serving, *how, room=2 * options.parallel) as workers:
        yield lambda path, body: workers.ask(answered, (path, body)), len(workers.places)


class _Work:
    """The requests of a run, and how far it is.

    whole  whether all requests have an answer
    """

    def __init__(self, ask: Ask, output: Output, count: int | None) -> None:
        """`ask`: called with the path and the body of a request."""
        self._ask, self._output, self._count = ask, output, count
        self.bar = Bar("answering", count or 0, "requests")
        self.answered = self.failed = self.earlier = self.tokens = 0
        self.whole = False

    async def answer(self, path: str, most: int) -> None:
        """Answer the requests of a file, of which at most so many are under way. Raises FileError."""
        tasks: set[asyncio.Task[None]] = set()
        try:
            for place, request in enumerate(_each(read_requests(path))):
                if self._output.has(place, request):
                    self._skip()
                    continue
                if len(tasks) >= most:
                    done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    _raise_first(done)
                tasks.add(asyncio.create_task(self._one(place, request)))
            while tasks:
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                _raise_first(done)
            self.whole = True
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _skip(self) -> None:
        """Count an answer that was there. It is no part of the rate, unless new ones came before it."""
        self.earlier += 1
        if self.answered or self.failed:
            self.bar(1)
        else:
            self.bar.begin(self.earlier)

    async def _one(self, place: int, request: BatchRequest) -> None:
        identity, response, error = f"batch_req_{secrets.token_hex(12)}", None, None
        if request.problem is not None:
            error = {"code": "invalid_request", "message": f"line {request.line}: {request.problem}"}
        else:
            status, data = await self._ask(request.url, request.body)
            response = {"status_code": status, "request_id": f"req_{secrets.token_hex(12)}", "body": json.loads(data)}
        line = {"id": identity, "custom_id": request.custom_id, "response": response, "error": error}
        self._output.write(place, line)
        self._count_in(response)
        self.bar(1)

    def _count_in(self, response: dict[str, Any] | None) -> None:
        if response is None or response["status_code"] != 200:
            self.failed += 1
        else:
            self.answered += 1
            self.tokens += response["body"]["usage"]["completion_tokens"]

    def words(self) -> str:
        """Return what is kept after an interruption."""
        of = "" if self._count is None else f" of {self._count}"
        return f"{self.earlier + self.answered + self.failed}{of} requests have an answer"

    def summary(self) -> str:
        parts = [f"{self.answered} answered, {self.tokens} output tokens"]
        parts += [f"{self.failed} refused: their lines tell why"] * bool(self.failed)
        parts += [f"{self.earlier} were there already"] * bool(self.earlier)
        return "; ".join(parts)


def _each(requests: Iterator[BatchRequest]) -> Iterator[BatchRequest]:
    """Yield the requests. Ctrl-C ends the wait for the next one, too."""
    while True:
        with blocking():
            request = next(requests, None)
        if request is None:
            return
        yield request


def _raise_first(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.result()
