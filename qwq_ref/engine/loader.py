"""Load a model: choose the form of its weights, check memory, read, build the backend."""

from __future__ import annotations

import dataclasses
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from .. import core
from ..config import Config, Rope
from ..core.magnitude import check_finite
from ..errors import FormError, MemoryLimitError, UsageError
from ..footprint import human, parameters
from ..formats import Confirm, Download, Source, Tensors, open_source, recognise, resolve
from ..forms import FILE, AnyForm, FileForm
from ..host.limits import cpus
from ..spec.ops import Array
from ..text.template import ChatTemplate
from .ahead import (
    NUMPY,
    check_choices,
    check_forms,
    check_small,
    default_backend,
    expected_memory,
    memory_line,
    read_small,
)
from .backends import Backend, Progress
from .backends.core import CoreBackend
from .backends.numpy import NumpyBackend
from .fit import ALL_OF_IT, Budget, candidates, core_needs, fitting_context, fitting_forms, numpy_needs
from .model import Model
from .readers import open_reader
from .reading import read_model
from .streaming import StreamedWeights
from .streaming_fit import fitting_layout, streamed_form
from .values import at_least_one, whole_number

Announce = Callable[[str, int], object]


def load(
    model: str | os.PathLike[str],
    *,
    backend: str | None = None,
    weights: str | None = None,
    kv: str | None = None,
    threads: int | None = None,
    isa: str | None = None,
    context: int | None = None,
    rope: Rope | None = None,
    chat_template: str | os.PathLike[str] | None = None,
    offline: bool = False,
    confirm: Confirm | None = None,
    text: bool = False,
    max_memory: int | None = None,
    parallel: int = 1,
    rows: int = 1,
    progress: Progress | None = None,
    announce: Announce | None = None,
) -> Model:
    """Read a model into memory: a folder, a .safetensors or .gguf file, a hub id, or the name of a shipped model.

    backend        "core", the C core, or "numpy", the spec itself; None: the core where it is built
    weights        the weight form, "fp32", "bf16", "q8" or "q4", or "file", the types of a quantised file without loss;
                   None: the most exact that fits in memory, and can hold all weights
    kv             the cache form, "fp32" or "int8"; None: fp32 for weights in floats, else int8
    threads        None: one for each CPU that this process may use, at most the quota of its control groups, rounded up
    isa            the instruction set, such as "avx2"; None: the best that the processor has. Results are identical
    context        positions to make room for; None: as many as the model knows, or as fit in memory
    rope           a position embedding that replaces the config's, such as YaRN
    chat_template  a Jinja file that replaces the checkpoint's template
    offline        download nothing
    confirm        called with a `formats.Download` before weights are downloaded, if they will fit in memory; a false
                   result refuses. None: download them
    text           refuse a folder without a tokenizer; such a model only computes logits of token ids
    max_memory     bytes that the process may take. If the model needs more, its layers are read again in each pass over
                   them, which gives the same results. None: what is available, without such reading
    parallel       sequences to make room for, such as prompts of `Model.generate_all`
    rows           rows of logits that a step of each sequence may ask for
    progress       called with the number of weights read since its last call, of `footprint.parameters`
    announce       called before any weight is read with a line that lists the memory needed, and its sum in bytes

    A folder made by `qwq convert` holds packed weights in one form or more, which are read as they are.
    Raises a QwqError: MemoryLimitError, before any weight is read, for a model that does not fit.
    """
    backend = backend or default_backend()
    check_choices(backend, weights, kv, threads, isa, chat_template)
    if context is not None:
        whole_number("context", context)
    for name, number in (("max_memory", max_memory), ("parallel", parallel), ("rows", rows)):
        if number is not None:
            at_least_one(name, number)
    budget = Budget(max_memory, parallel, rows)
    if rope is not None and not isinstance(rope, Rope):
        raise UsageError(None, "rope", f"must be a qwq_ref.config.Rope, got {rope!r:.40}")

    def agreed(download: Download) -> bool:
        expected_memory(download, weights=weights, kv=kv, backend=backend, context=context, rope=rope, budget=budget)
        return confirm is None or confirm(download)

    def inspect(folder: Path) -> None:
        check_small(folder, chat_template, text)

    path = resolve(model, offline=offline, confirm=agreed, inspect=inspect)
    recognise.require(path, model)
    with open_source(path) as source:
        return load_source(
            source,
            model,
            backend=backend,
            weights=weights,
            kv=kv,
            threads=threads,
            isa=isa,
            context=context,
            rope=rope,
            chat_template=chat_template,
            text=text,
            budget=budget,
            progress=progress,
            announce=announce,
        )


def load_source(
    source: Source,
    model: str | os.PathLike[str],
    *,
    backend: str | None = None,
    weights: str | None = None,
    kv: str | None = None,
    threads: int | None = None,
    isa: str | None = None,
    context: int | None = None,
    rope: Rope | None = None,
    chat_template: str | os.PathLike[str] | None = None,
    text: bool = False,
    budget: Budget = ALL_OF_IT,
    progress: Progress | None = None,
    announce: Announce | None = None,
) -> Model:
    """Read an open source into memory: `load` of `model`, whose options have been checked."""
    backend, path = backend or default_backend(), source.path
    config = source.config if rope is None else dataclasses.replace(source.config, rope=rope)
    small = read_small(source, config, chat_template, text)
    progress, compiled = _until_compiled(small.template, progress)
    kept = None if source.kept is None else source.kept.form
    check_forms(config, source.forms, weights, backend, path, kept is not None)
    made: Backend
    if backend == "numpy":
        assert source.floats is not None, "it is not packed"
        made = _numpy_backend(config, source.floats, model, context, budget, progress, announce)
    else:
        forms = candidates(source.dtypes, source.forms, config.swiglu_beta, kept)
        isa = core.chosen_isa(isa)
        threads = threads or cpus()
        chosen = kept if weights == FILE else weights
        budget = dataclasses.replace(budget, reading=0 if source.kept is None else source.kept.held)
        how = _How(config, model, kv, context, budget, isa, threads, progress, announce)
        made = _core_backend(source, how, chosen, forms)
    compiled.result()
    return Model(path, made, small.tokenizer, small.template, small.defaults, budget.parallel)


def _types(source: Source, form: AnyForm) -> str:
    """Return the types of a file that is packed as it is, and what is lost of those that are repacked."""
    if source.kept is None or not isinstance(form, FileForm) or not source.dtypes:
        return ""
    sizes = sorted(source.dtypes.items(), key=lambda item: -item[1])
    text = f" ({', '.join(name for name, size in sizes if size > sizes[0][1] / 100)})"
    repacked = source.kept.repacked
    if not repacked:
        return text
    kinds = ", ".join(f"{count} of {name}" for name, count in repacked.items())
    return f"{text}, {kinds} repacked in q8 with an error of {source.kept.loss():.2%} of the weights"


def _until_compiled(template: ChatTemplate | None, progress: Progress | None) -> tuple[Progress, Future[None]]:
    """Wait in a thread until the template is compiled: its process starts while weights are read.

    Returns a `progress` that raises TemplateError as soon as the template is known to be wrong, and the result.
    """
    compiled = Future[None]()

    def wait() -> None:
        try:
            if template is not None:
                template.check()
            compiled.set_result(None)
        except BaseException as problem:
            compiled.set_exception(problem)

    def told(count: float) -> None:
        if compiled.done():
            compiled.result()
        if progress is not None:
            progress(count)

    threading.Thread(target=wait, daemon=True).start()  # Ctrl-C does not wait for it
    return told, compiled


@dataclass(frozen=True)
class _How:
    """The choices of `load` for the core."""

    config: Config
    model: str | os.PathLike[str]
    kv: str | None
    context: int | None
    budget: Budget
    isa: str
    threads: int
    progress: Progress
    announce: Announce | None

    def tell(self, line: tuple[str, int]) -> None:
        if self.announce is not None:
            self.announce(*line)


def _core_backend(source: Source, how: _How, weights: AnyForm | None, forms: Sequence[AnyForm]) -> CoreBackend:
    """Read a model in the wanted weight form, or in the first of `forms` that fits in memory and holds its weights."""
    read, tried = 0.0, [weights] if weights else [*forms]

    def told(count: float) -> None:
        nonlocal read
        read += count
        how.progress(count)

    while True:
        try:
            form, cache, room = fitting_forms(how.config, tried, how.kv, how.context, how.model, forms, how.budget)
        except MemoryLimitError:
            if how.budget.maximum is None:
                raise
            return _streaming_backend(source, how, weights, forms)
        what = f"weights {form}{_types(source, form)}, KV cache {cache}"
        needs = core_needs(how.config, form, cache, how.budget)(room)
        how.tell(memory_line(what, room, needs, how.budget))
        try:
            weights_read = read_model(source, form, how.threads, told)
            return CoreBackend(how.config, weights_read, room, cache, how.isa, how.threads)
        except FormError:
            tried = tried[tried.index(form) + 1 :]
            if not tried:
                raise
        how.progress(-read)
        read = 0.0


def _streaming_backend(source: Source, how: _How, weights: AnyForm | None, forms: Sequence[AnyForm]) -> CoreBackend:
    """Read the layers of a model that fit in memory; each pass reads the others."""
    form = streamed_form(weights, forms, source.forms, how.model)
    cache, room, layout, parts = fitting_layout(how.config, form, how.kv, how.context, how.model, how.budget)
    where = f", {human(layout.streamed)} read in each pass" if layout.streamed else ""
    how.tell(memory_line(f"weights {form}{_types(source, form)}{where}, KV cache {cache}", room, parts, how.budget))
    share = parameters(how.config) / max(1, sum(layout.sizes) - layout.streamed)
    again = open_source(source.path)  # the files stay open as long as the weights are used
    try:
        reader = open_reader(again, form, how.threads)
        read = StreamedWeights(how.config, form, layout, reader, lambda count: how.progress(count * share))
    except BaseException:
        again.close()
        raise
    weakref.finalize(read, again.close)
    return CoreBackend(how.config, read, room, cache, how.isa, how.threads)


def _numpy_backend(
    config: Config,
    floats: Tensors,
    model: str | os.PathLike[str],
    context: int | None,
    budget: Budget,
    progress: Progress | None,
    announce: Announce | None,
) -> NumpyBackend:
    needs = numpy_needs(config)
    context = fitting_context(config, context, model, needs, budget)
    if announce is not None:
        announce(*memory_line(NUMPY, context, needs(context), budget))
    tensors: dict[str, Array] = {}
    for name in config.tensors():
        tensors[name] = floats[name]
        check_finite(tensors[name], floats.file(name), name)
        if progress is not None:
            progress(tensors[name].size)
    return NumpyBackend(config, tensors, context)
