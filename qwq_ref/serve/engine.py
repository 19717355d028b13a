"""The model of a server: it loads while the server answers already, and then a scheduler answers prompts."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from .. import __version__
from ..engine.model import Model, PreparedPrompt
from ..engine.scheduler import Scheduler
from ..engine.turns import certain_prefix
from ..errors import BusyError, QwqError
from .answers import ServedAnswer
from .limits import ServerLimits
from .problems import ApiError, unavailable

T = TypeVar("T")
_WAIT = 5  # seconds after which a client may try again while the model loads


class ServedModel:
    """A model that loads in a thread.

    name     as clients call it
    lenient  whether any other name means this model, too, and unknown fields are ignored
    began    seconds since 1970
    problem  the error that ended the loading
    preparing  prompts that are checked, and then wait in the scheduler
    """

    def __init__(self, name: str, load: Callable[[], Model], limits: ServerLimits, lenient: bool = False) -> None:
        self.name, self.limits, self.lenient = name, limits, lenient
        self.began = int(time.time())
        self.problem: BaseException | None = None
        self.draining = False
        self.preparing = 0
        self._load = load
        self._model: Model | None = None
        self._scheduler: Scheduler | None = None

    def start(self, ready: Callable[[], object] = lambda: None) -> None:
        """Load the model in a thread, and then call `ready` there, whether it worked or not."""

        def work() -> None:
            try:
                model = self._load()
                scheduler = Scheduler(model, self.limits.running, self.limits.waiting)
                self._model, self._scheduler = model, scheduler
            except BaseException as problem:
                self.problem = problem
            ready()

        threading.Thread(target=work, name="qwq-loader", daemon=True).start()

    @property
    def loaded(self) -> bool:
        return self._scheduler is not None

    @property
    def model(self) -> Model:
        """The model. Raises ApiError while it loads."""
        if self._model is None:
            raise unavailable("the model is loading", _WAIT, "loading")
        return self._model

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler. Raises ApiError while the model loads."""
        if self._scheduler is None:
            raise unavailable("the model is loading", _WAIT, "loading")
        return self._scheduler

    @property
    def fingerprint(self) -> str:
        """A word that changes when the bits of answers may change."""
        backend = self.model.backend
        return f"qwq_ref-{__version__}-{backend.form}-{backend.kv}"

    def check_name(self, name: str | None) -> None:
        """Raise ApiError for the name of another model."""
        if name is not None and name != self.name and not self.lenient:
            message = f"there is no model {name[:100]!r} here, but {self.name!r} (see --alias and --lenient)"
            raise ApiError(404, message, param="model", code="model_not_found")

    async def ask(self, prepare: Sequence[Callable[[], PreparedPrompt]]) -> list[ServedAnswer]:
        """Submit prompts, all or none. Raises ApiError, and the errors of `Model.prepare`."""
        self.check_room()
        self.preparing += len(prepare)
        try:
            prepared = [await asyncio.to_thread(each) for each in prepare]
        finally:
            self.preparing -= len(prepare)
        answers: list[ServedAnswer] = []
        try:
            for each in prepared:
                answers.append(ServedAnswer(self.scheduler, each))
        except BusyError:
            for answer in answers:
                answer.cancel()
            raise
        return answers

    def check_open(self) -> None:
        """Raise ApiError while the model loads, and while the server shuts down."""
        if self.draining:
            raise unavailable("the server is shutting down", _WAIT, "shutting_down")
        _ = self.scheduler

    def check_room(self) -> None:
        """Raise ApiError or BusyError where no prompt may come, before any work on it."""
        self.check_open()
        waiting = self.scheduler.counts.waiting + self.preparing
        if waiting >= self.limits.waiting:
            raise BusyError(None, "server", f"is busy: {waiting} prompts wait already", self.scheduler.patience)

    def warm(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> None:
        """Compute a conversation in the background, as the template will show it before the next question."""
        if self.model.template is None or self.draining:
            return
        with contextlib.suppress(QwqError, RuntimeError):  # of a conversation that is too long, or a shutdown
            self.scheduler.warm(certain_prefix(self.model, messages, tools=tools))

    def drain(self) -> None:
        """Take no more prompts, let those that run go on for some seconds, then cancel them. Does not wait."""
        self.draining = True
        if self._scheduler is not None:
            threading.Thread(target=self._scheduler.close, args=(self.limits.drain,), daemon=True).start()
