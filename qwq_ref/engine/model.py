"""A model to ask: a backend, a tokenizer, a chat template and sampling defaults of one checkpoint."""

from __future__ import annotations

import functools
import secrets
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..formats import GenerationConfig
from ..spec import Sampling
from ..spec.ops import Array
from ..text import ThinkingSplitter, Tokenizer, fim_ends, fim_ids, prompt_is_thinking
from ..text.template import ChatTemplate
from . import backends
from .ahead import no_template
from .backends import Backend, Progress
from .decode.plain import Run, decoding
from .decode.together import together
from .ends import end_tokens
from .generation import Budget, Generation, Transcript
from .grammar import Constraint, Vocabulary, grammar_of
from .sampler import Sampler, own_sampling
from .session import Asking, Session, alone
from .tokens import no_tokenizer
from .values import at_least_one, whole_number


class Model:
    """Made by `qwq_ref.load`.

    path                  the folder or file that it was loaded from
    config, defaults      config.json and generation_config.json
    backend               computes logits: see `engine.backends`
    tokenizer, template   text <-> ids; for a model without them, `tokenizer` raises TokenizerError, `template` is None
    context               positions that fit, prompt and output together
    parallel              sequences that memory was counted for
    """

    def __init__(
        self,
        path: Path,
        backend: Backend,
        tokenizer: Tokenizer | None,
        template: ChatTemplate | None,
        defaults: GenerationConfig,
        parallel: int = 1,
    ) -> None:
        self.path = path
        self.backend = backend
        self.config = backend.config
        self.context = backend.context
        self.parallel = parallel
        self._tokenizer = tokenizer
        self.template = template
        self.defaults = defaults
        self.told = False  # whether a warning of `sampling` was given, or is not needed

    @functools.cached_property
    def end_tokens(self) -> dict[int, str]:
        """The ids that end an answer, each with the places that say so: see `ends.end_tokens`."""
        return end_tokens(self.defaults, self._tokenizer, self.template)

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise no_tokenizer(self.path)
        return self._tokenizer

    def logits(self, token_ids: Sequence[int]) -> Array:
        """token_ids [T] -> float32 [T, V]: logits of the token after each.

        Raises ValueError for ids that the model does not have, and NonFiniteError for logits with NaN or infinity.
        """
        return backends.logits(self.backend, token_ids, self.path)

    def session(self) -> Session:
        """Return an empty session: token ids, and logits of the next one."""
        return Session(self.backend, self.path)

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary as grammars need it. Raises UsageError without llguidance."""
        return Vocabulary(self.tokenizer, min(self.tokenizer.size, self.config.V), [*self.end_tokens])

    def prompt_ids(
        self,
        prompt: str | list[dict[str, Any]],
        system: str | None = None,
        raw: bool = False,
        tools: list[dict[str, Any]] | None = None,
        suffix: str | None = None,
    ) -> list[int]:
        """A question, or a conversation of messages with `role` and `content` -> the ids of a prompt.

        raw     encode the text as it is, without the chat template; behind BOS, if the model's texts begin with it
        tools   functions that the template offers to the model, as JSON schemas
        suffix  the text behind a gap, before which the prompt stands: the model fills it. Implies raw

        Raises TemplateError, TokenizerError, UsageError.
        """
        if raw or suffix is not None:
            if not isinstance(prompt, str) or system is not None or tools:
                raise UsageError(None, "raw", "takes a plain text, with no messages, no system prompt and no tools")
            if suffix is not None:
                return fim_ids(self.tokenizer, prompt, suffix)
            return self.tokenizer.begin(self.tokenizer.encode(prompt))
        if self.template is None:
            raise no_template(self.path)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if system is not None:
            messages = [{"role": "system", "content": system}, *messages]
        return self.template.encode(self.tokenizer, messages, tools or None)

    def sampling(self, **changes: Any) -> Sampling:
        """The checkpoint's own sampling with `changes`; None keeps a value. Raises UsageError.

        Warns once without a temperature, if the checkpoint's files do not say how to sample: see `surprises`.
        """
        if not self.told and changes.get("temperature") is None:
            self.told = True
            for line in self.defaults.surprises("temperature=X"):
                warnings.warn_explicit(line, UserWarning, "qwq_ref", 1, "qwq")
        return own_sampling(self.defaults.sampling(), **changes)

    def generate(
        self,
        prompt: str | list[dict[str, Any]],
        *,
        system: str | None = None,
        raw: bool = False,
        suffix: str | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        think_budget: int | None = None,
        response_format: Mapping[str, Any] | None = None,
        tools: list[dict[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] = "auto",
        parallel_tool_calls: bool = True,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> Generation:
        """Answer a prompt -> an iterator of `Piece`; its `run` tells how far it is.

        suffix        the text behind a gap that the answer fills, for models with tokens for that: see `text.fim`
        max_tokens    None: until the model ends its answer or the context is full
        seed          None: a random one, kept in `run.seed`
        think_budget  tokens of reasoning after which it is closed, whoever opened it; 0 turns reasoning off
        response_format, tools, tool_choice, parallel_tool_calls
                      as OpenAI's clients send them. The answer keeps to the grammar that they set, if any: see
                      `grammar.grammar_of`. `text.ToolParser` finds the calls in an answer
        progress      called with the number of prompt tokens computed since its last call, fractions included
        sampling      fields of `Sampling`; the others come from the checkpoint

        Raises UsageError, before any computation, for a prompt that does not fit together with max_tokens. The iterator
        raises NonFiniteError for a step whose logits hold NaN or infinity.
        """
        ready = self.prepare(
            prompt,
            system=system,
            raw=raw,
            suffix=suffix,
            max_tokens=max_tokens,
            seed=seed,
            think_budget=think_budget,
            response_format=response_format,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            progress=progress,
            **sampling,
        )
        session = self.session()
        return ready.generation(alone(ready.work(session), self.backend, self.path))

    def generate_all(
        self,
        prompts: Iterable[str | list[dict[str, Any]]],
        *,
        parallel: int | None = None,
        **settings: Any,
    ) -> Iterator[tuple[int, Generation]]:
        """Answer prompts side by side -> pairs of a prompt's number, from 0, and its whole answer, as each ends.

        parallel  prompts that share each pass over the weights, each with a KV cache of its own; None: as many as the
                  model was loaded for
        settings  those of `generate`, for each prompt. A prompt gets the answer that it gets alone

        Raises as `generate`, before any computation, for a prompt that does not fit, with its number.
        """
        most = self.parallel if parallel is None else parallel
        at_least_one("parallel", most)
        if isinstance(prompts, str | bytes):  # its characters would be prompts
            raise UsageError(None, "prompts", "must be a list of prompts, not a text")
        ready = []
        for number, prompt in enumerate(prompts):
            try:
                ready.append(self.prepare(prompt, **settings))
            except UsageError as problem:
                if problem.field != "prompt":
                    raise
                raise UsageError(problem.file, f"prompt {number}", problem.problem) from None
        return self._answers(ready, most)

    def _answers(self, ready: Sequence[Prepared], most: int) -> Iterator[tuple[int, Generation]]:
        answers: dict[int, Generation] = {}

        def works() -> Iterator[Asking[int]]:
            for number, each in enumerate(ready):
                answers[number] = each.generation()
                yield each.work(self.session())

        for number, identity in together(works(), self.backend, most, self.path):
            if identity is not None:
                answers[number].take(identity)
                continue
            answers[number].end()
            yield number, answers.pop(number)

    def prepare(
        self,
        prompt: str | list[dict[str, Any]],
        *,
        system: str | None = None,
        raw: bool = False,
        suffix: str | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        think_budget: int | None = None,
        response_format: Mapping[str, Any] | None = None,
        tools: list[dict[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] = "auto",
        parallel_tool_calls: bool = True,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> Prepared:
        """Check a prompt and its settings. Raises UsageError."""
        for name, number in (("max_tokens", max_tokens), ("seed", seed), ("think_budget", think_budget)):
            if number is not None:
                whole_number(name, number)
        how = self.sampling(**sampling)
        if suffix is not None and response_format is not None:
            raise UsageError(None, "response_format", "does not go together with a suffix")
        grammar = grammar_of(response_format, tools, tool_choice, parallel_tool_calls)
        ids = self.prompt_ids(prompt, system, raw, None if tool_choice == "none" else tools, suffix)
        thinking, budget = prompt_is_thinking(ids, self.tokenizer), Budget(self.tokenizer, think_budget)
        state = ThinkingSplitter(self.tokenizer, thinking and think_budget != 0, opened=thinking)
        if thinking and not state.thinking:
            ids = ids + budget.closing
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
        constraint = None if grammar is None else Constraint(grammar, self.vocabulary, copy(state), think_budget != 0)
        run = Run(ids, secrets.randbits(32) if seed is None else seed)
        limits = {
            "end_ids": [*self.end_tokens, *(() if suffix is None else fim_ends(self.tokenizer))],
            "vocabulary": min(self.tokenizer.size, self.config.V),
            "context": self.context,
            "max_tokens": max_tokens,
            "never": self.tokenizer.holes,
            "constrain": None if constraint is None else constraint.mask,
            "intervene": lambda output: budget.due(state),
            "progress": progress,
        }
        return Prepared(run, Sampler(how, run.seed), Transcript(self.tokenizer, state), limits)


@dataclass(frozen=True)
class Prepared:
    """A prompt that was checked, with the settings of its answer: it can be computed.

    limits  what `decode.plain.decoding` takes beside a session, the run and the sampler
    """

    run: Run
    sampler: Sampler
    transcript: Transcript
    limits: Mapping[str, Any]

    def work(self, session: Session, progress: Progress | None = None) -> Asking[int]:
        """Return the work that adds the answer to a session: see `decode.plain.decoding`."""
        limits = self.limits if progress is None else {**self.limits, "progress": progress}
        return decoding(session, self.run, self.sampler, **limits)

    def generation(self, tokens: Iterable[int] = ()) -> Generation:
        """Return the answer, of which `tokens` are the ids. Without them, whoever runs the work adds them."""
        return Generation(self.run, tokens, self.transcript)
