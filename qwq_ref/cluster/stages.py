"""The actors of a pipeline: each loads some layers of a model, and computes them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..engine.backends.stage import Flow, Note, Span, Stage, StagePiece, StageWeights, span_bytes
from ..engine.fit import least_context, packed_needs
from ..engine.readers import open_reader
from ..errors import ClusterError, QwqError
from ..formats import open_source
from ..host import memory
from .elsewhere import ModelThere, changed

_MEMORY = 0.8  # of the memory that is available behind the weights, for KV caches


@dataclass(frozen=True)
class StageFacts:
    """A stage that is loaded.

    pages  of keys and values that it has memory for
    """

    machine: str
    pages: int


def load_stage(model: ModelThere, span: Span, threads: int) -> Stage:
    """Load the layers of a span. Raises a QwqError; MemoryLimitError before any weight is read."""
    source = open_source(model.path())  # it stays open: rows of the embedding are read when they are needed
    try:
        config, form = changed(source, model.rope), model.form(source)
        needs = packed_needs(span.config(config), span_bytes(config, form, span), model.kv)
        memory.require(needs(least_context(config)), model.name)
        weights = StageWeights(config, form, span, open_reader(source, form, threads))
        weakref.finalize(weights, source.close)
        return Stage(config, weights, model.context, model.kv, model.isa, threads)
    except BaseException:
        source.close()
        raise


class StageActor:
    """A stage in a process of its own, which loads it with the first call."""

    def __init__(self, load: Callable[[], Stage], machine: str) -> None:
        self._load, self._machine = load, machine
        self._stage: Stage | None = None

    def ready(self) -> StageFacts:
        """Load the layers, if they are not. Raises ClusterError, which names the machine."""
        pages = int(_MEMORY * memory.available_bytes()) // self._loaded().pool.bytes
        return StageFacts(self._machine, max(1, pages))

    def flow(self, notes: Sequence[Note], pieces: Sequence[StagePiece], before: Flow | None, tapped: bool) -> Flow:
        """Compute pieces behind the stage whose result is `before`: see `Stage.flow`."""
        stage = self._loaded()
        stage.note(notes)
        return stage.flow(pieces, before, tapped)

    def _loaded(self) -> Stage:
        try:
            self._stage = self._stage or self._load()
        except QwqError as problem:
            raise ClusterError(f"machine {self._machine}", None, str(problem)) from None
        return self._stage
