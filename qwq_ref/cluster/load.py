"""Load a model on other machines: whole on each of them, or shared out by layers."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from .. import core
from ..config import Config, Rope
from ..engine.ahead import read_small
from ..engine.backends import Backend
from ..engine.backends.stage import spans
from ..engine.fit import Budget, check_context, fitting_forms
from ..engine.loader import load
from ..engine.model import Model
from ..errors import UsageError
from ..formats import Source, open_source
from ..forms import AnyForm, cache_form
from .connect import Node, nodes
from .elsewhere import Elsewhere, ModelThere, changed, name_of, require_core, usable_forms, weight_files
from .pipeline import Calls, PipelineBackend
from .stages import StageActor, load_stage


@dataclass(frozen=True)
class Wishes:
    """The choices of a user for a model, as for `engine.loader.load`.

    name  of the model, as the user gave it
    path  of its folder or file on this machine
    """

    name: str
    path: Path
    weights: str | None = None
    kv: str | None = None
    isa: str | None = None
    context: int | None = None
    rope: Rope | None = None
    chat_template: str | None = None

    def there(self, form: AnyForm, kv: str, context: int) -> ModelThere:
        """Return the model for other machines, with all choices made."""
        files, name = weight_files(self.path), name_of(self.name)
        return ModelThere(name, files, str(form), kv, context, self.rope, self.isa, self.chat_template)

    def model(self, source: Source, backend: Any, parallel: int = 1) -> Model:
        """Return a model whose weights are elsewhere."""
        small = read_small(source, backend.config, self.chat_template, text=True)
        if small.template is not None:
            small.template.check()
        backend = cast(Backend, backend)
        return Model(self.path, backend, small.tokenizer, small.template, small.defaults, parallel)


def load_there(there: ModelThere, parallel: int, rows: int, threads: int) -> Model:
    """Load the whole model on a machine. Raises a QwqError."""
    return load(
        there.path(),
        backend="core",
        weights=there.weights,
        kv=there.kv,
        threads=threads,
        isa=there.isa,
        context=there.context,
        rope=there.rope,
        chat_template=there.chat_template,
        text=True,
        parallel=parallel,
        rows=rows,
    )


def whole_elsewhere(wishes: Wishes, parallel: int = 1, rows: int = 1) -> tuple[Model, ModelThere]:
    """Return a model without weights, and the choices for the processes that will have them.

    The choices are those of `engine.loader.load` on this machine, so that the bits are those of one machine. Raises
    MemoryLimitError where the model does not fit here, UsageError, CoreError.
    """
    require_core()
    with open_source(wishes.path) as source:
        config = changed(source, wishes.rope)
        forms = usable_forms(source, config, wishes.weights)
        budget = Budget(None, parallel, rows, 0 if source.kept is None else source.kept.held)
        form, kv, context = fitting_forms(config, forms, wishes.kv, wishes.context, wishes.name, forms, budget)
        isa = core.chosen_isa(wishes.isa)
        words = f"on other machines, weights {form}, KV cache {kv}, {isa} here"
        model = wishes.model(source, Elsewhere(config, context, str(form), kv, isa, words), parallel)
    return model, wishes.there(form, kv, context)


@contextlib.contextmanager
def pipeline(
    ray: Any, wishes: Wishes, stages: int | None, parallel: int = 1, told: Callable[[str], object] = lambda line: None
) -> Iterator[Model]:
    """Load a model shared out by layers, for the time of a block.

    stages  None: one for each machine, as far as the layers go
    told    called with a line about each loss

    The weight form is the most exact, if no other is wished for: it need not fit on one machine. Raises ClusterError
    for a stage that does not load, UsageError.
    """
    require_core()
    with open_source(wishes.path) as source:
        config = changed(source, wishes.rope)
        form = usable_forms(source, config, wishes.weights)[0]
        kv = wishes.kv or cache_form(form)
        context = wishes.context or check_context(config, wishes.context)
        check_context(config, context)
        count = _count(config, stages, nodes(ray))
        there = wishes.there(form, kv, context)
        calls = _calls(ray, there, config, form, count)
        isa = core.chosen_isa(wishes.isa)
        backend = PipelineBackend(config, context, str(form), kv, isa, calls, count, told)
        try:
            yield wishes.model(source, backend, parallel)
        finally:
            backend.close()


def _count(config: Config, stages: int | None, machines: list[Node]) -> int:
    if stages is None:
        return min(len(machines), config.L)
    if stages > config.L:
        raise UsageError(None, "stages", f"must be at most {config.L}, the number of layers, got {stages}")
    return stages


def _calls(ray: Any, there: ModelThere, config: Config, form: AnyForm, count: int) -> Calls:
    """Return the calls of Ray for a pipeline, which put each stage on the machine with the fewest."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    found, where = spans(config, form, count), dict[int, str]()

    def start(i: int) -> Any:
        machines = nodes(ray)
        where.pop(i, None)
        used = Counter(where.values())
        node = min(machines, key=lambda each: (used[each.id], -each.memory))
        where[i] = node.id
        together = max(1, -(-count // len(machines)))  # stages that share a machine
        threads = max(1, node.cpus // together)
        load_it = functools.partial(load_stage, there, found[i], threads)
        options = {"scheduling_strategy": NodeAffinitySchedulingStrategy(node.id, soft=True), "num_cpus": 0}
        return ray.remote(StageActor).options(**options).remote(load_it, node.name)

    errors = ray.exceptions

    def get(refs: Any, seconds: float | None) -> Any:
        return ray.get(refs, timeout=seconds)

    return Calls(start, get, ray.kill, errors.RayError, errors.RayTaskError)
