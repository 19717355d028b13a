"""Judge a model before its weights are there: before a download of many gigabytes, and before loading.

`check_choices` needs no model, `expected_memory` the list of its files and its config, `read_small` its small files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from .. import core
from ..config import Config, Rope
from ..errors import FileError, MemoryLimitError, UsageError
from ..files import is_gguf
from ..footprint import human
from ..formats import Download, GGUFSource
from ..formats.checkpoint import read_config
from ..formats.generation_config import GenerationConfig
from ..formats.names import packed_name
from ..formats.packed_folder import text_of
from ..forms import FILE, FORMS, KV_FORMS, AnyForm
from ..host import disk, memory
from ..text import Tokenizer
from ..text.template import ChatTemplate, load_chat_template, read_template
from .fit import (
    ALL_OF_IT,
    Budget,
    available_forms,
    candidates,
    core_needs,
    fitting_context,
    fitting_forms,
    numpy_needs,
    packed_needs,
)
from .streaming import SLOTS
from .streaming_fit import fitting_layout, streamed_form
from .tokens import find_tokenizer, metadata_of, no_tokenizer
from .values import at_least_one

NUMPY = "numpy, weights fp32, KV cache fp32"


def check_choices(
    backend: str | None = None,
    weights: str | None = None,
    kv: str | None = None,
    threads: int | None = None,
    isa: str | None = None,
    chat_template: str | os.PathLike[str] | None = None,
) -> None:
    """Check those arguments of `load` that are right or wrong for every model.

    Raises UsageError; CoreError for an instruction set, also that of QWQ_ISA; TemplateError for a file.
    """
    backend = backend or default_backend()
    choices = {"backend": (backend, ("core", "numpy")), "weights": (weights, (*FORMS, FILE)), "kv": (kv, KV_FORMS)}
    for name, (value, known) in choices.items():
        if value is not None and value not in known:
            raise UsageError(None, name, f"must be one of {', '.join(known)}, got {value!s:.40}")
    if threads is not None:
        at_least_one("threads", threads)
    if backend == "numpy" and (weights, kv) not in {(w, c) for w in (None, "fp32") for c in (None, "fp32")}:
        raise UsageError(None, "backend", "numpy has fp32 weights and an fp32 cache only")
    if backend == "core":
        core.chosen_isa(isa)
    if chat_template is not None:
        read_template(chat_template)


def default_backend() -> str:
    """Return the backend that `load` takes without another wish."""
    return "core" if core.available() else "numpy"


def check_forms(
    config: Config,
    packed: tuple[str, ...],
    weights: str | None,
    backend: str,
    path: str | Path,
    quantised: bool = False,
) -> None:
    """Check that a model can be loaded in a form. Raises UsageError.

    packed     its packed forms; none for a checkpoint
    quantised  whether its files are quantised, so that they have a form of their own
    """
    if backend == "numpy" and packed:
        raise UsageError(path, "backend", "numpy reads no packed weights, and there are no others here")
    forms = available_forms({}, packed, config.swiglu_beta)
    if packed and weights and weights not in forms:
        raise UsageError(path, "weights", f"{weights} are not here; {', '.join(forms)} are")
    if weights == FILE and not packed and not quantised:
        raise UsageError(path, "weights", "file is for quantised files, and here is none")


def expected_memory(
    download: Download,
    *,
    weights: str | None = None,
    kv: str | None = None,
    backend: str | None = None,
    context: int | None = None,
    rope: Rope | None = None,
    budget: Budget = ALL_OF_IT,
) -> tuple[str, int]:
    """Return the line and the sum that `load` will announce for a model that is not downloaded yet.

    The arguments are those of `load`, of which `budget` holds three. Raises MemoryLimitError if the model will not fit,
    and UsageError.
    """
    config = download.config if rope is None else dataclasses.replace(download.config, rope=rope)
    backend = backend or default_backend()
    check_forms(config, download.forms, weights, backend, download.name, download.quantised)
    if backend == "numpy":
        needs = numpy_needs(config)
        room = fitting_context(config, context, download.name, needs, budget)
        return memory_line(NUMPY, room, needs(room), budget)
    packed = tuple(form for form in download.forms if form != FILE)
    keeps_types = download.kept is None and (FILE in download.forms or download.quantised) and weights in (None, FILE)
    smaller: list[AnyForm] = [name for name, form in FORMS.items() if not form.floats]
    known = download.kept is not None or not download.quantised
    forms = candidates(download.stored, packed, config.swiglu_beta, download.kept) if known else smaller
    wanted = download.kept if weights == FILE and download.kept is not None else weights
    tried: Sequence[AnyForm] = [wanted] if wanted else forms
    try:
        if keeps_types:
            try:
                return _memory_of_file(download, config, file_bytes(download), kv, context, budget)
            except MemoryLimitError:
                if weights == FILE or not (packed or download.quantised):
                    raise
        form, cache, room = fitting_forms(config, tried, kv, context, download.name, forms, budget)
        line = f"weights {form}, KV cache {cache}"
        return memory_line(line, room, core_needs(config, form, cache, budget)(room), budget)
    except MemoryLimitError:
        if budget.maximum is None:
            raise
    if keeps_types:  # the formats of its matrices are not known yet: layers are taken to be alike
        return _memory_of_file(download, config, file_bytes(download) // config.L * SLOTS, kv, context, budget)
    form = streamed_form(wanted, forms, packed, download.name)
    cache, room, layout, parts = fitting_layout(config, form, kv, context, download.name, budget)
    line = f"weights {form}, {human(layout.streamed)} read in each pass, KV cache {cache}"
    return memory_line(line, room, parts, budget)


def _memory_of_file(
    download: Download, config: Config, weights: int, kv: str | None, context: int | None, budget: Budget
) -> tuple[str, int]:
    cache = kv or "int8"
    needs = packed_needs(config, weights, cache, budget)
    room = fitting_context(config, context, download.name, needs, budget)
    return memory_line(f"weights {FILE}, KV cache {cache}", room, needs(room), budget)


def file_bytes(download: Download) -> int:
    """Return the bytes of the weights of a download in the form of its file."""
    heavy = [name for name in download.files if name.endswith((".safetensors", ".gguf"))]
    return sum(download.files[name] or 0 for name in (heavy if download.quantised else [packed_name(FILE)]))


def memory_line(what: str, context: int, parts: dict[str, int], budget: Budget) -> tuple[str, int]:
    """Return a line that lists the memory needed, purpose -> bytes, and its sum in bytes."""
    room = f"{context} tokens of context" + (f" for each of {budget.parallel}" if budget.parallel > 1 else "")
    line = f"{what}, {room}: {memory.terms(parts)} = {human(sum(parts.values()))}"
    return f"{line}, of {human(budget.available)} available", sum(parts.values())


class Described(Protocol):
    """The parts of a model beside its weights: of a `Source`, or of a download whose weights are not there yet.

    tokenizer, template  as for `Source`
    """

    tokenizer: Path
    template: Path

    def generation_config(self) -> GenerationConfig:
        """Return the sampling defaults and end tokens. Raises ConfigError."""


class _Folder:
    """The small files in a folder, as `Described`."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = self.template = text_of(folder)
        self.folder, self.config = folder, read_config(folder)

    def generation_config(self) -> GenerationConfig:
        return GenerationConfig.from_folder(self.folder, self.config)


@dataclasses.dataclass(frozen=True)
class Small:
    """The result of `read_small`. `tokenizer` and `template` are None where the model has none."""

    tokenizer: Tokenizer | None
    template: ChatTemplate | None
    defaults: GenerationConfig


def read_small(
    source: Described,
    config: Config,
    chat_template: str | os.PathLike[str] | None = None,
    text: bool = False,
) -> Small:
    """Read the parts of a model beside its weights. The process of the template starts, and nothing waits for it.

    The arguments are those of `load`. Raises TemplateError, TokenizerError, ConfigError.
    """
    # A GGUF file holds both, and its header is long: it is read once.
    fields = source.header.fields if isinstance(source, GGUFSource) else metadata_of(source.template)
    template = load_chat_template(source.template, chat_template, fields)
    tokenizer = find_tokenizer(source.tokenizer, config.vocab_size, fields)
    if text and tokenizer is None:
        raise no_tokenizer(source.tokenizer)
    return Small(tokenizer, template, source.generation_config())


def check_small(
    path: Path,
    chat_template: str | os.PathLike[str] | None = None,
    text: bool = False,
    chat: bool = False,
) -> None:
    """Check the small files of a download, whose weights are not there yet, or the header of a GGUF file: `read_small`.

    path  as `resolve` gives it to `inspect`
    chat  whether the command asks with a chat template, which the model then needs

    Raises a QwqError.
    """
    with GGUFSource.open(path) if is_gguf(path) else contextlib.nullcontext(_Folder(path)) as described:
        small = read_small(described, described.config, chat_template, text)
    if small.template is not None:
        small.template.check()
    elif chat:
        raise no_template(path)


def no_template(path: Path) -> UsageError:
    """Return the error of a model without a chat template that a chat is asked of."""
    return UsageError(path, None, "has no chat template: give one, or a raw prompt")


def check_room(folder: Path, result: int, download: Download | None = None) -> None:
    """Check that the disk of a folder has room for a result of so many bytes, and for a download before it.

    Raises FileError.
    """
    room = disk.free_bytes(folder)
    before = download.nbytes if download is not None and disk.same(folder, download.cache) else 0
    if room is not None and before + result > room:
        parts = f"{human(result)} on its disk"
        if before:
            parts = f"{human(before)} for the download and {human(result)} for the result on its disk"
        raise FileError(folder, None, f"needs {parts}, which has {human(room)} left")
