"""A model that can be asked: weights, tokenizer, chat template and sampling defaults of one checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .. import core
from ..config import Config, Rope
from ..errors import UsageError
from ..footprint import human
from ..formats import Checkpoint, GenerationConfig, resolve
from ..formats.checkpoint import CONFIG
from ..host import memory
from ..spec import Sampling, forward
from ..spec.ops import Array
from ..text import (
    StreamDecoder,
    ThinkingSplitter,
    Tokenizer,
    load_tokenizer,
    prompt_is_thinking,
)
from ..text.template import ChatTemplate, load_chat_template
from .backends.core import CoreBackend
from .decode.plain import Run, generate
from .fit import (
    NUMPY_CHUNK,
    Needs,
    candidates,
    core_needs,
    fitting_context,
    fitting_forms,
    numpy_needs,
)
from .weights import (
    FORMS,
    pack_weights,
    packed_forms,
    read_weights,
)

Kind = Literal["thinking", "answer"]
Progress = Callable[[float], object]

# What a spent thinking budget puts in the model's mouth, before it closes its reasoning.
_ENOUGH = "\n\nI have thought long enough; here is the answer.\n"


@dataclass(frozen=True)
class Piece:
    """A piece of the output: some characters, and which part of the output they belong to."""

    text: str
    kind: Kind

    def __str__(self) -> str:
        return self.text


class NumpyBackend:
    """The spec itself, in float32."""

    chunk = NUMPY_CHUNK

    def __init__(self, config: Config, weights: Mapping[str, Array]) -> None:
        self.config = config
        self.weights = weights

    def __str__(self) -> str:
        return "numpy, weights fp32, KV cache fp32"

    def logits(self, ids: Sequence[int]) -> Array:
        return forward(self.config, self.weights, ids)[0]

    def step(
        self, ids: Sequence[int], cache: Any, progress: Callable[[float], object] | None = None
    ) -> tuple[Array, Any]:
        logits, cache = forward(self.config, self.weights, ids, cache)
        if progress is not None:
            progress(len(ids))
        return logits[-1], cache


class Model:
    """Made by `load`.

    config, defaults      config.json and generation_config.json
    backend               what computes: on the C core, or the spec itself
    tokenizer, template   text <-> ids; `template` is None for a model that has none
    context               positions that fit, prompt and output together
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        backend: NumpyBackend | CoreBackend,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        defaults: GenerationConfig,
        context: int,
    ) -> None:
        self.path = path
        self.config = config
        self.tokenizer = tokenizer
        self.template = template
        self.defaults = defaults
        self.context = context
        self.backend = backend

    def logits(self, token_ids: Sequence[int]) -> Array:
        """token_ids [T] -> float32 [T, V]: logits of the token after each."""
        return self.backend.logits(token_ids)

    def prompt_ids(self, prompt: str | list[dict[str, Any]], system: str | None = None, raw: bool = False) -> list[int]:
        """A question, or a conversation of messages with `role` and `content` -> the ids of a prompt.

        raw   the text as it is, without a chat template. Raises TemplateError, TokenizerError, UsageError.
        """
        if raw:
            if not isinstance(prompt, str) or system is not None:
                raise UsageError(None, "raw", "takes a plain text, with no messages and no system prompt")
            return self.tokenizer.encode(prompt)
        if self.template is None:
            raise UsageError(self.path, None, "has no chat template: give one, or a raw prompt")
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if system is not None:
            messages = [{"role": "system", "content": system}, *messages]
        return self.template.encode(self.tokenizer, messages)

    def sampling(self, **changes: Any) -> Sampling:
        """The checkpoint's own sampling, with `changes` (None leaves a value alone). Raises UsageError."""
        own = {
            "temperature": self.defaults.effective_temperature,
            "top_k": self.defaults.top_k,
            "top_p": self.defaults.top_p,
            "min_p": self.defaults.min_p,
            "repetition_penalty": self.defaults.repetition_penalty,
        }
        try:
            return Sampling(**own | {name: value for name, value in changes.items() if value is not None})
        except ValueError as problem:
            name, _, rest = str(problem).partition(" ")
            raise UsageError(None, name, rest) from None

    def generate(
        self,
        prompt: str | list[dict[str, Any]],
        *,
        system: str | None = None,
        raw: bool = False,
        max_tokens: int | None = None,
        seed: int | None = None,
        think_budget: int | None = None,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> Generation:
        """Answer a prompt -> an iterator of `Piece`, which carries the `Run` so far.

        max_tokens    None: until the model ends its answer or the context is full
        seed          None: a random one, kept in `run.seed`
        think_budget  tokens of reasoning after which it is closed; 0 turns reasoning off
        sampling      fields of `Sampling`; what is not given is the checkpoint's

        Raises UsageError, before anything is computed, for a prompt that does not fit, or not with max_tokens.
        """
        how = self.sampling(**sampling)
        ids = self.prompt_ids(prompt, system, raw)
        thinking = prompt_is_thinking(ids, self.tokenizer)
        budget = _Budget(self.tokenizer, think_budget, thinking)
        if thinking and think_budget == 0:
            ids, thinking = ids + budget.closing, False
        if not ids:
            raise UsageError(None, "prompt", "is empty")
        if seed is not None and not 0 <= seed < 2**64:
            raise UsageError(None, "seed", f"must be 0 to 2^64 - 1, got {seed}")
        if max_tokens is not None and max_tokens < 1:
            raise UsageError(None, "max_tokens", f"must be at least 1, got {max_tokens}")
        wanted = len(ids) + (max_tokens or 1)
        if wanted > self.context:
            output = f"{max_tokens or 'one'} more do" if (max_tokens or 1) > 1 else "one more does"
            raise UsageError(
                None, "prompt", f"of {len(ids)} tokens and {output} not fit in the context of {self.context}"
            )
        run = Run(ids, secrets.randbits(32) if seed is None else seed)
        tokens = generate(
            self.backend,
            run,
            how,
            end_ids=self.defaults.eos_token_ids,
            vocabulary=min(self.tokenizer.size, self.config.V),
            context=self.context,
            max_tokens=max_tokens,
            intervene=budget if think_budget and thinking else None,
            progress=progress,
        )
        return Generation(run, tokens, self.tokenizer, thinking)


class Generation(Iterator[Piece]):
    """Pieces of text as they are made. `run` tells how far it is and, at the end, why it ended."""

    def __init__(self, run: Run, tokens: Iterator[int], tokenizer: Tokenizer, thinking: bool) -> None:
        self.run = run
        self.still_thinking = thinking
        self._pieces = self._decode(tokens, tokenizer, thinking)

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def _decode(self, tokens: Iterator[int], tokenizer: Tokenizer, thinking: bool) -> Iterator[Piece]:
        splitter = ThinkingSplitter(tokenizer, thinking)
        decoder = StreamDecoder(tokenizer)
        kind: Kind = "thinking" if thinking else "answer"
        for token in tokens:
            part = splitter.feed(token)
            if part == "marker":
                text, part = decoder.finish(), kind
                kind = "answer" if kind == "thinking" else "thinking"
                self.still_thinking = kind == "thinking"
            else:
                text = decoder.feed(token)
            if text:
                yield Piece(text, part)
        if rest := decoder.finish():
            yield Piece(rest, kind)


class _Budget:
    """Closes the reasoning once it has taken its tokens: a hook for `generate`."""

    def __init__(self, tokenizer: Tokenizer, tokens: int | None, thinking: bool) -> None:
        if tokens is not None and tokens < 0:
            raise UsageError(None, "think_budget", f"must be at least 0, got {tokens}")
        self.end = tokenizer.think_end
        if tokens is not None and thinking and self.end is None:
            raise UsageError(None, "think_budget", "this model has no </think> token")
        self.tokens = tokens
        after = tokenizer.encode("\n\n")
        self.closing = [] if self.end is None else [self.end, *after]
        self.forced = tokenizer.encode(_ENOUGH) + self.closing

    def __call__(self, output: list[int]) -> Sequence[int]:
        return self.forced if len(output) == self.tokens and self.end not in output else ()


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
    progress: Progress | None = None,
    announce: Callable[[str, int], object] | None = None,
) -> Model:
    """Read a model into memory: a folder, a .safetensors file, a hub id, or the name of a shipped model.

    backend        "core", the C core, or "numpy", the spec itself; None: the core where it is built
    weights        "fp32", "bf16", "q8" or "q4"; None: the most exact that fits in memory
    kv             the cache: "fp32" or "int8"; None: fp32 with weights in floats, else int8
    threads        None: one for each core that this process may use
    isa            "scalar", "avx2" or "avx512"; None: the best that the processor has. No bit depends on it
    context        positions to make room for; None: as many as the model knows, or as fit in memory
    rope           another position embedding than the config's, such as YaRN
    chat_template  a Jinja file to use instead of the checkpoint's
    progress       called with the number of weights read since its last call, of `footprint.parameters`
    announce       called before anything is read with a line that says what will take how much memory, and the sum

    A folder that `convert` made holds packed weights in one form or more, which are read as they are.
    Raises a QwqError: MemoryLimitError, before any weight is read, for a model that does not fit.
    """
    backend = backend or ("core" if core.available() else "numpy")
    _check_choices(backend, weights, kv, threads)
    path = resolve(model, offline=offline)
    folder = path if path.is_dir() else path.parent
    packed = packed_forms(path)
    with contextlib.ExitStack() as stack:
        if packed:
            config, forms = Config.from_file(folder / CONFIG), list(packed)
        else:
            checkpoint = stack.enter_context(Checkpoint.open(path))
            config, forms = checkpoint.config, candidates(checkpoint.dtypes)
        config = config if rope is None else dataclasses.replace(config, rope=rope)
        tokenizer = load_tokenizer(folder, config.vocab_size)
        template = load_chat_template(folder, chat_template)
        defaults = GenerationConfig.from_folder(folder, config)

        def tell(what: str, needs: Needs) -> None:
            if announce is not None:
                parts, available = needs(context or 1), memory.available_bytes()
                line = f"{what}, {context} tokens of context: {memory.terms(parts)} = {human(sum(parts.values()))}"
                announce(f"{line}, of {human(available)} available", sum(parts.values()))

        if backend == "numpy":
            if packed:
                raise UsageError(path, "backend", "numpy reads no packed weights, which are all that is here")
            context = fitting_context(config, context, model, numpy_needs(config))
            tell("numpy, weights fp32, KV cache fp32", numpy_needs(config))
            read: dict[str, Array] = {}
            for name in checkpoint:
                read[name] = checkpoint[name]
                if progress is not None:
                    progress(read[name].size)
            return Model(path, config, NumpyBackend(config, read), tokenizer, template, defaults, context)
        if packed and weights and weights not in packed:
            raise UsageError(path, "weights", f"{weights} are not here; {', '.join(packed)} are")
        isa = core.chosen_isa(isa)
        threads = threads or memory.cpus()
        form, kv, context = fitting_forms(config, [weights] if weights else forms, kv, context, model)
        tell(f"weights {form}, KV cache {kv}", core_needs(config, form, kv))
        if packed:
            made = read_weights(config, form, packed[form], threads, progress)
        else:
            made = pack_weights(config, checkpoint, form, threads, progress)
    engine = CoreBackend(config, made, context, kv, isa, threads)
    return Model(path, config, engine, tokenizer, template, defaults, context)


def _check_choices(backend: str, weights: str | None, kv: str | None, threads: int | None) -> None:
    choices = {"backend": (backend, ("core", "numpy")), "weights": (weights, (*FORMS,)), "kv": (kv, ("fp32", "int8"))}
    for name, (value, known) in choices.items():
        if value is not None and value not in known:
            raise UsageError(None, name, f"must be one of {', '.join(known)}, got {value[:40]}")
    if threads is not None and threads < 1:
        raise UsageError(None, "threads", f"must be at least 1, got {threads}")
    if backend == "numpy" and (weights, kv) not in {(w, c) for w in (None, "fp32") for c in (None, "fp32")}:
        raise UsageError(None, "backend", "numpy has fp32 weights and an fp32 cache only")
